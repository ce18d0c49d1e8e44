"""Progress of long operations on the store, as records of `/api/pull` and `/api/create` (contract §1.7, §1.9)."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Progress:
    """One step. `digest` is "sha256:<64 hex>", or "" where the step is about no file.

    `total` and `completed` are bytes; `total` is None where it is unknown. `pause` is the number of seconds after which
    the next step may be asked for: the work waits for something, and holds no thread meanwhile.
    """

    status: str
    digest: str = ""
    total: int | None = None
    completed: int = 0
    pause: float = 0.0

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Progress:
        """Return the step that a line of the stream tells."""
        status, digest = (str(record.get(key, "")) for key in ("status", "digest"))
        return cls(status, digest, record.get("total"), record.get("completed", 0))

    def to_record(self) -> dict[str, Any]:
        """Return the line of the stream; what is unknown, empty or zero is left out, as Ollama does."""
        record = {
            "status": self.status,
            "digest": self.digest,
            "total": self.total,
            "completed": self.completed,
        }
        return {key: value for key, value in record.items() if value or key == "status"}


def paced(steps: Iterable[Progress]) -> Iterator[Progress]:
    """Yield the steps, and sleep where one asks for a pause."""
    for step in steps:
        yield step
        if step.pause:
            time.sleep(step.pause)
