"""The order that turns a spare into a worker: one line of JSON on its standard input."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class SpareOrder:
    """A worker's arguments, the changes to its environment, and the file that its output goes to."""

    arguments: Sequence[str]
    environment: Mapping[str, str]
    log: str

    def encode(self) -> bytes:
        """Return the order as one line of JSON."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def decode(cls, line: bytes) -> SpareOrder:
        """Read what `encode` wrote."""
        return cls(**json.loads(line))
