"""The steps of what takes long in the store, as the records of `/api/pull` and `/api/create` (contract §1.7, §1.9)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Progress:
    """One step. `digest` is "sha256:<64 hex>"; `total` and `completed` are bytes; all three may be unknown."""

    status: str
    digest: str = ""
    total: int = 0
    completed: int = 0

    def to_record(self) -> dict[str, Any]:
        """Return the line of the stream; what is empty or zero is left out, as Ollama does."""
        record = {
            "status": self.status,
            "digest": self.digest,
            "total": self.total,
            "completed": self.completed,
        }
        return {key: value for key, value in record.items() if value or key == "status"}
