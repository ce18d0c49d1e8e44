"""Replies of the gateway itself, and errors in the format of the requested API."""

from __future__ import annotations

import secrets
from typing import Any

import orjson

from vllama.errors import Unauthenticated, VllamaError
from vllama.gateway.refusal import Refused
from vllama.gateway.routing import Request
from vllama.ollama.status import JSON, error_body, error_line, status_of

_TEXT = "text/plain"


class BrokenReply(Exception):
    """An incomplete reply cannot be ended in its own format: the server closes the connection."""


_ANTHROPIC = "/v1/messages"
_OLLAMAS_OWN = ("/api/", "/v1/systemone")
"""Beginnings of paths whose errors have Ollama's format."""

_ENDING_WITH_DONE = frozenset({"/v1/chat/completions", "/v1/completions"})
_OPENAI_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
}
_OPENAI_CODES = {401: "invalid_api_key", 429: "rate_limit_exceeded"}
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    529: "overloaded_error",
}


async def send_bytes(
    request: Request,
    status: int,
    content_type: str,
    body: bytes,
    headers: tuple[tuple[bytes, bytes], ...] = (),
) -> None:
    """Send a complete reply; without a content type if it is empty."""
    request.status = status
    typed = [(b"content-type", content_type.encode())] if content_type else []
    length = [(b"content-length", b"%d" % len(body))] if status != 204 else []
    all_headers = [*typed, *length, *headers, *request.extra_headers]
    await request.send({"type": "http.response.start", "status": status, "headers": all_headers})
    await request.send({"type": "http.response.body", "body": body, "more_body": False})


async def send_json(request: Request, value: Any, status: int = 200) -> None:
    """Send a JSON value."""
    await send_bytes(request, status, JSON, orjson.dumps(value))


async def send_record(request: Request, record: bytes) -> None:
    """Send one record of Ollama's API."""
    await send_bytes(request, 200, JSON, record)


async def send_text(request: Request, status: int, text: str, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
    """Send plain text."""
    await send_bytes(request, status, _TEXT, text.encode(), headers)


async def send_error(request: Request, error: VllamaError) -> None:
    """Send an error before the first chunk, with its status, and Retry-After if known."""
    status = status_of(error)
    headers = () if error.retry_after is None else ((b"retry-after", b"%d" % error.retry_after),)
    if isinstance(error, Unauthenticated):
        headers = ((b"www-authenticate", b"Bearer"),)
    await send_bytes(request, status, JSON, shaped_error(request.path, status, str(error)), headers)


async def send_refusal(request: Request, refusal: Refused) -> None:
    """Send an error from a worker; if a prompt is too long, as the API's clients expect, who shorten it and retry."""
    overflow, message, code = refusal.overflow, str(refusal), None
    if overflow is not None:
        code = "context_length_exceeded"
        if request.path.startswith(_ANTHROPIC):
            message = f"prompt is too long: {overflow.tokens} tokens > {overflow.limit} maximum"
    body = shaped_error(request.path, refusal.status, message, refusal.param, code)
    await send_bytes(request, refusal.status, JSON, body)


def shaped_error(path: str, status: int, message: str, param: str | None = None, code: str | None = None) -> bytes:
    """Return the error body in the API's format: Ollama's, OpenAI's or Anthropic's (contract §1.1, §5, §5.7)."""
    if path.startswith(_OLLAMAS_OWN):
        return error_body(message)
    if path.startswith(_ANTHROPIC):
        kind = _ANTHROPIC_TYPES.get(status, "api_error")
        error = {"type": "error", "error": {"type": kind, "message": message}}
        return orjson.dumps({**error, "request_id": f"req_{secrets.token_hex(12)}"})
    kind = _OPENAI_TYPES.get(status, "api_error")
    code = code or _OPENAI_CODES.get(status)
    return orjson.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}})


def closing_error(path: str, content_type: bytes, error: VllamaError, *, after: bytes) -> tuple[bytes, ...] | None:
    """Return the last chunks of a stream that failed after its first; None if the format cannot express an error.

    `after` is the last byte that the client got: an incomplete line is ended first.
    """
    rest_of_line = b"" if after in {b"", b"\n"} else b"\n"
    if content_type.startswith(b"application/x-ndjson"):
        return (rest_of_line, error_line(str(error)))
    if content_type.startswith(b"text/event-stream"):
        event = b"event: error\n" if path.startswith(_ANTHROPIC) else b""
        done = b"data: [DONE]\n\n" if path in _ENDING_WITH_DONE else b""  # as vLLM itself does (contract §5.1)
        data = b"data: " + shaped_error(path, status_of(error), str(error)) + b"\n\n"
        # A blank line ends an incomplete event and has no effect elsewhere.
        return (rest_of_line + b"\n" + event + data, done)
    return None
