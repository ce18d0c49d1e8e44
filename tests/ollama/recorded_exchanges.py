"""Exchanges recorded from a real Ollama 0.24.0, one JSON object a line in `recorded/`.

It served SmolLM2-135M, and the same weights with a template for tools (`smoltools`) and one for thinking (`smolthink`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RECORDED = Path(__file__).parent / "recorded"


@dataclass(frozen=True)
class Exchange:
    """One request and what Ollama answered to it. `sent` and `answered` are the bodies."""

    record: str
    path: str
    sent: str
    status: int
    content_type: str
    answered: str

    @property
    def body(self) -> bytes:
        return self.sent.encode()

    @property
    def error(self) -> str:
        """The text of the `error` field."""
        answered: dict[str, Any] = json.loads(self.answered)
        assert list(answered) == ["error"]
        return str(answered["error"])


def exchanges(name: str) -> dict[str, Exchange]:
    """Exchanges of a file, by the names of their records."""
    lines = (RECORDED / name).read_text(encoding="utf-8").splitlines()
    return {exchange.record: exchange for exchange in (Exchange(**json.loads(line)) for line in lines)}


REFUSED = exchanges("refused.ndjson")
ANSWERED = exchanges("answered.ndjson")
