"""What was recorded of `/api/generate` and `/api/chat` with a real Ollama 0.24.0; see tests/replay/recording.py.

It served SmolLM2-135M, and the same weights with a template for tools (`smoltools`) and one for thinking (`smolthink`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from replay import recording


@dataclass(frozen=True)
class Exchange:
    """One request and what Ollama answered to it. `answered` is the body."""

    path: str
    body: bytes
    status: int
    content_type: str
    answered: str

    @property
    def error(self) -> str:
        """The text of the `error` field."""
        answered: dict[str, Any] = json.loads(self.answered)
        assert list(answered) == ["error"]
        return str(answered["error"])


def _exchange(exchange: recording.Exchange) -> Exchange:
    request, response = exchange.request, exchange.response
    return Exchange(
        request.path, request.body, response.status, response.header("content-type"), response.body.decode()
    )


NATIVE = {
    name: _exchange(exchange)
    for name, exchange in recording.exchanges().items()
    if exchange.request.path in {"/api/generate", "/api/chat"} and exchange.request.method == "POST"
}
ANSWERED = {name: exchange for name, exchange in NATIVE.items() if exchange.status == 200}
REFUSED = {name: exchange for name, exchange in NATIVE.items() if exchange.status in {400, 500}}
