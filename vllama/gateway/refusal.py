"""A worker's refusal is read and told in the API's own shape; whatever else it says goes to the client as it is."""

from __future__ import annotations

from typing import Any

import orjson

from vllama.gateway.relay import Header, OnSlow, Relay

_MOST = 1 << 20

# vLLM's EngineDeadError (`vllm/v1/engine/exceptions.py`), in the words of 0.26 and 0.32 alike.
_ENGINE_IS_DEAD = "EngineCore encountered an issue"
# vLLM registers a route only for models that can serve it; these are the words of its web framework.
_NO_SUCH_ROUTE = "Not Found"
_NOT_FOUND = 404
_UNPROCESSABLE = 422
_NOT_IMPLEMENTED = 501


class Refused(Exception):
    """A worker answered with an error before the first byte of a reply. `param` names the field at fault, if any."""

    def __init__(self, status: int, body: bytes) -> None:
        message, self.param = _said(body)
        # A model without this API, and a field out of bounds: the request is at fault (contract §5).
        self.status = 400 if status in {_UNPROCESSABLE, _NOT_IMPLEMENTED} else status
        if status == _NOT_FOUND and message == _NO_SUCH_ROUTE:
            self.status, message = 400, "the model does not support this API"
        super().__init__(message)

    @property
    def engine_is_dead(self) -> bool:
        """Whether this API server will refuse everything from now on; vLLM ends it some seconds later."""
        return self.status >= 500 and _ENGINE_IS_DEAD in str(self)


class V1Relay(Relay):
    """Relays success byte for byte; an error's body is kept, and raised as Refused when it is complete."""

    __slots__ = ("_refusal", "_refused_with")

    def __init__(self, send: Any, extra_headers: tuple[Header, ...], on_slow: OnSlow) -> None:
        super().__init__(send, extra_headers, on_slow)
        self._refused_with = 0
        self._refusal = bytearray()

    def head(self, status: int, headers: list[Header]) -> None:
        """Note whether it is a refusal."""
        super().head(status, headers)
        self._refused_with = status if status >= 400 else 0

    def body(self, data: bytes, *, last: bool) -> None:
        """Pass on a piece of the body, or keep it."""
        if not self._refused_with:
            super().body(data, last=last)
            return
        self._refusal += data[: _MOST - len(self._refusal)]
        if last:
            self.is_complete = True
            self.fail(Refused(self._refused_with, bytes(self._refusal)))


class Kept(Relay):
    """Keeps a whole reply that is for us. `content` is complete once `finished` has returned."""

    __slots__ = ("content", "reply_status")

    def __init__(self, on_slow: OnSlow) -> None:
        super().__init__(_nowhere, (), on_slow)
        self.content = b""
        self.reply_status = 0

    def head(self, status: int, headers: list[Header]) -> None:
        """Note the status."""
        super().head(status, headers)
        self.reply_status = status

    def body(self, data: bytes, *, last: bool) -> None:
        """Keep a piece of the body; the last one ends it. An error is raised as Refused."""
        self.content += data
        if not last:
            return
        if self.reply_status >= 400:
            self.is_complete = True
            self.fail(Refused(self.reply_status, self.content))
        else:
            self._finish()


async def _nowhere(message: Any) -> None:
    del message


def _said(body: bytes) -> tuple[str, str | None]:
    """Message and field of an error: vLLM's and OpenAI's shape, Anthropic's, FastAPI's, or our worker's own."""
    try:
        said = orjson.loads(body)
    except orjson.JSONDecodeError:
        return body.decode(errors="replace").strip() or "the model gave no reason", None
    error = said.get("error", said.get("detail", said)) if isinstance(said, dict) else said
    if isinstance(error, dict):
        param = error.get("param")
        return str(error.get("message") or error), param if isinstance(param, str) else None
    return str(error), None
