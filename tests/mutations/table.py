"""The table of faults, and how one is planted in a tree."""

from __future__ import annotations

import importlib.util
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
TABLE = Path(__file__).with_name("faults.toml")


class DoesNotApply(Exception):
    """The text of a fault does not stand in its file exactly once: the row has to follow the code."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A row of faults.toml, which explains the fields."""

    name: str
    file: str
    text: str
    fault: str
    means: str
    tests: tuple[str, ...]
    engine: str

    def applied_to(self, root: Path) -> str:
        """Return the content of the file with the fault. Raises DoesNotApply."""
        path = root / self.file
        content = path.read_text(encoding="utf-8") if path.is_file() else ""
        if (times := content.count(self.text)) != 1:
            raise DoesNotApply(
                f"{self.name}: its text stands {times} times in {self.file}, not once. "
                f"Change the row in tests/mutations/faults.toml. The text:\n{self.text}"
            )
        return content.replace(self.text, self.fault)

    @contextmanager
    def planted(self, root: Path) -> Iterator[None]:
        """Plant the fault in this tree until the block ends. Raises DoesNotApply."""
        path = root / self.file
        before, after = path.read_text(encoding="utf-8"), self.applied_to(root)
        try:
            _rewrite(path, after)
            yield
        finally:
            _rewrite(path, before)


@contextmanager
def all_planted(faults: Iterable[Fault], root: Path) -> Iterator[None]:
    """Plant all these faults at once until the block ends."""
    with ExitStack() as planted:
        for fault in faults:
            planted.enter_context(fault.planted(root))
        yield


def read_table() -> list[Fault]:
    """Return all faults."""
    rows = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    return [Fault(name=name, **{**row, "tests": tuple(row["tests"])}) for name, row in rows.items()]


def _rewrite(path: Path, content: str) -> None:
    """Write the file, and remove its bytecode: Python compares only sizes and whole seconds."""
    path.write_text(content, encoding="utf-8")
    Path(importlib.util.cache_from_source(str(path))).unlink(missing_ok=True)
