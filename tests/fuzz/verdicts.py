"""Faults of a reply: a faulty 5xx, an error in the form of another API, a reply unlike its schema."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from jsonschema import Draft202012Validator

from fuzz.replies import Reply
from fuzz.requests import Sent

_NDJSON = "application/x-ndjson"
_EVENTS = "text/event-stream"


@dataclass(frozen=True)
class Allowed:
    """A 5xx that is right: its status, the beginning of its path, its text, and why."""

    status: int
    path: str
    text: str
    reason: str


ALLOWED = (
    Allowed(500, "/api/", r"invalid format: ", "Ollama's own status for `format` (contract §2.4)"),
    Allowed(500, "/api/", r"template: ", "Ollama's own status for a template in a request (contract §1.2)"),
    Allowed(500, "/api/pull", r"pull model manifest: file does not exist", "Ollama's own status (contract §1.7)"),
    Allowed(500, "/api/pull", r"HF_HUB_OFFLINE is set", "the source cannot be reached (contract §1.7)"),
    Allowed(500, "/api/create", r"pull model manifest: |HF_HUB_OFFLINE is set", "as for /api/pull"),
    Allowed(503, "/", r"server busy, please try again", "full queue or memory of bodies (docs/configuration.md)"),
)
"""All 5xx that the fuzz accepts."""

_INTERNAL = re.compile(
    r"internal error|Internal Server Error|EngineCore|EngineDead|unexpectedly stopped|not be loaded again"
)
"""Texts of the server's own faults, also within streams that began well."""
_PYTHON = re.compile(r"Traceback|File \"|object at 0x|NoneType|<class '|__\w+__")
"""Texts that only Python writes."""

_ROUTER = {404: b"404 page not found", 405: b"405 method not allowed"}


def faulty_status(sent: Sent, reply: Reply) -> str:
    """Return why the status, or an error in a stream, is a fault of the server; empty if it is none."""
    texts = [message for message in _messages(reply) if _INTERNAL.search(message)]
    if reply.status >= 500 and not any(_fits(one, sent, reply) for one in ALLOWED):
        return f"status {reply.status}"
    return f"a fault of the server with status {reply.status}" if texts and reply.status >= 200 else ""


def _fits(allowed: Allowed, sent: Sent, reply: Reply) -> bool:
    is_here = reply.status == allowed.status and sent.route.path.startswith(allowed.path)
    return is_here and any(re.match(allowed.text, message) for message in _messages(reply))


def wrong_shape(sent: Sent, reply: Reply) -> str:
    """Return how the reply differs from its API's form; empty if it does not."""
    if not reply.status or reply.problem or sent.method == "HEAD":
        return ""
    if found := next((text for text in _messages(reply) if _PYTHON.search(text)), ""):
        return f"text of Python: {found[:200]}"
    if reply.status >= 400:
        return _wrong_error(sent, reply)
    return _wrong_success(sent, reply) if reply.status == 200 and sent.is_whole else ""


def _wrong_error(sent: Sent, reply: Reply) -> str:
    if reply.body == _ROUTER.get(reply.status) or (reply.status == 403 and not reply.body):
        return ""
    if not sent.is_whole and not reply.body:
        return ""  # it may have been read as HEAD
    if reply.status == 400 and reply.body.startswith(b"400 Bad Request: "):
        return ""  # Go's words about Host
    try:
        error = json.loads(reply.body)
    except ValueError:
        return f"an error of {reply.status} that is no JSON"
    if _is_ollamas(error) and (sent.route.path.startswith(("/api/", "/v1/systemone")) or _closes(reply)):
        return ""  # errors of the protocol itself have Ollama's form on all paths
    if sent.route.path.startswith("/v1/messages"):
        return "" if _is_anthropics(error) else "an error without Anthropic's form"
    if sent.route.path.startswith("/api/"):
        return "an error without Ollama's form"
    return "" if _is_openais(error) else "an error without OpenAI's form"


def _closes(reply: Reply) -> bool:
    return dict(reply.headers).get("connection") == "close"


def _is_ollamas(error: Any) -> bool:
    return (
        isinstance(error, dict)
        and error.keys() - {"signin_url"} == {"error"}
        and isinstance(error["error"], str)
        and bool(error["error"])
    )


def _is_openais(error: Any) -> bool:
    inner = error.get("error") if isinstance(error, dict) and list(error) == ["error"] else None
    return (
        isinstance(inner, dict)
        and set(inner) == {"message", "type", "param", "code"}
        and isinstance(inner["message"], str)
        and bool(inner["message"])
    )


def _is_anthropics(error: Any) -> bool:
    return (
        isinstance(error, dict)
        and set(error) == {"type", "error", "request_id"}
        and error["type"] == "error"
        and set(error["error"]) == {"type", "message"}
        and bool(error["error"]["message"])
    )


def _wrong_success(sent: Sent, reply: Reply) -> str:
    if reply.content_type == _EVENTS:
        return _wrong_events(sent, reply)
    if "json" not in reply.content_type:
        return ""
    lines = reply.body.splitlines() if reply.content_type == _NDJSON else [reply.body]
    try:
        records = [json.loads(line) for line in lines]
    except ValueError:
        return "a reply that is no JSON"
    if reply.content_type == _NDJSON and not records:
        return "an empty stream"
    schema = sent.route.replies.get(reply.content_type)
    if schema is None or sent.method != sent.route.method:
        return ""
    validator = Draft202012Validator({**schema, "components": {"schemas": sent.route.reply_definitions}})
    for record in records[:3] + records[-1:]:
        if found := next(validator.iter_errors(record), None):
            return f"a reply unlike its schema: {found.message[:200]}"
    return ""


def _wrong_events(sent: Sent, reply: Reply) -> str:
    text = reply.body.decode("utf-8", "replace")
    if not text.endswith("\n\n"):
        return "an event that is not complete"
    if sent.route.path in {"/v1/chat/completions", "/v1/completions"} and not text.endswith("data: [DONE]\n\n"):
        return "a stream of events without its end"
    return ""


def _messages(reply: Reply) -> list[str]:
    """The messages of the errors in a reply: of its only object, of lines or of events."""
    if reply.status >= 400:
        return [_message(reply.body) or reply.body.decode("utf-8", "replace")]
    if reply.content_type not in {_NDJSON, _EVENTS}:
        return []
    lines = (line.removeprefix(b"data: ") for line in reply.body.splitlines() if b'"error"' in line)
    return [message for message in map(_message, lines) if message]


def _message(data: bytes) -> str:
    try:
        record = json.loads(data)
    except ValueError:
        return ""
    error = record.get("error") if isinstance(record, dict) else None
    said = error.get("message") if isinstance(error, dict) else error
    return said if isinstance(said, str) else ""
