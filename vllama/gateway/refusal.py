"""Relays for workers' replies: errors are converted to the API's format, others are relayed unchanged."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import orjson

from vllama.gateway.relay import Header, OnSlow, Relay

_MOST = 1 << 20

# vLLM's EngineDeadError (`vllm/v1/engine/exceptions.py`), same message in 0.26 and 0.32.
_ENGINE_IS_DEAD = "EngineCore encountered an issue"
# vLLM registers a route only for models that can serve it; this is the message of its web framework.
_NO_SUCH_ROUTE = "Not Found"
# vLLM's TokenizeParams (`vllm/renderers/params.py`): a prompt's tokens, or characters where even those are too many.
_TOO_LONG = re.compile(
    r"maximum context length is (?P<limit>\d+) tokens\. However, your prompt contains (?:at least )?"
    r"(?:(?P<tokens>\d+) input tokens|(?P<characters>\d+) characters \(more than (?P<most>\d+) characters)"
)
_NOT_FOUND = 404
_UNPROCESSABLE = 422
_NOT_IMPLEMENTED = 501


@dataclass(frozen=True, slots=True)
class Overflow:
    """A prompt of at least so many tokens, for a context of `limit`."""

    tokens: int
    limit: int


class Refused(Exception):
    """A worker replied with an error before the first byte.

    `param` names the invalid field, if any; `overflow` says by how much a prompt was too long, if that was the cause.
    """

    def __init__(self, status: int, body: bytes) -> None:
        message, self.param = _said(body)
        self.overflow = _overflow(message)
        # A model without this API, and a field out of range, are errors of the request (contract §5).
        self.status = 400 if status in {_UNPROCESSABLE, _NOT_IMPLEMENTED} else status
        if status == _NOT_FOUND and message == _NO_SUCH_ROUTE:
            self.status, message = 400, "the model does not support this API"
        super().__init__(message)

    @property
    def engine_is_dead(self) -> bool:
        """Whether this API server refuses everything from now on; vLLM stops it some seconds later."""
        return self.status >= 500 and _ENGINE_IS_DEAD in str(self)


class V1Relay(Relay):
    """Relay that passes success unchanged and raises an error's complete body as Refused."""

    __slots__ = ("_refusal", "_refused_with")

    def __init__(self, send: Any, extra_headers: tuple[Header, ...], on_slow: OnSlow) -> None:
        super().__init__(send, extra_headers, on_slow)
        self._refused_with = 0
        self._refusal = bytearray()

    def head(self, status: int, headers: list[Header]) -> None:
        """Record whether the reply is an error."""
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
    """Relay that keeps a whole reply for the gateway. `content` is complete after `finished`."""

    __slots__ = ("content", "reply_status")

    def __init__(self, on_slow: OnSlow) -> None:
        super().__init__(_nowhere, (), on_slow)
        self.content = b""
        self.reply_status = 0

    def head(self, status: int, headers: list[Header]) -> None:
        """Record the status."""
        super().head(status, headers)
        self.reply_status = status

    def body(self, data: bytes, *, last: bool) -> None:
        """Store a piece of the body; the last one ends the reply. An error is raised as Refused."""
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


def _overflow(message: str) -> Overflow | None:
    found = _TOO_LONG.search(message)
    if found is None:
        return None
    limit = int(found["limit"])
    if found["tokens"]:
        return Overflow(int(found["tokens"]), limit)
    return Overflow(max(limit + 1, math.ceil(int(found["characters"]) * limit / max(int(found["most"]), 1))), limit)


def _said(body: bytes) -> tuple[str, str | None]:
    """Return message and field of an error in the format of vLLM, OpenAI, Anthropic, FastAPI or our worker."""
    try:
        said = orjson.loads(body)
    except orjson.JSONDecodeError:
        return body.decode(errors="replace").strip() or "the model gave no reason", None
    error = said.get("error", said.get("detail", said)) if isinstance(said, dict) else said
    if isinstance(error, dict):
        param = error.get("param")
        return str(error.get("message") or error), param if isinstance(param, str) else None
    return str(error), None
