"""Calls that a model writes as plain JSON where its family's format wants tags.

Small models do that often. vLLM and Ollama hand such a reply out as text. Here it becomes calls if tools were offered
and the whole reply, after the thinking, consists of JSON objects that each name an offered tool and fit its parameters.
This works on what the family's parser leaves as text, so a call in the family's own format stays one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

import orjson

from vllama.protocol.environment import UNTAGGED_CALLS
from vllama.settings import parse_bool
from vllama.worker.call_prefix import CallPrefix
from vllama.worker.offered_tools import Call, OfferedTools

_JSON = re.compile(r"\bjson\b", re.IGNORECASE)


class UntaggedCalls:
    """The text of one reply, fed in pieces in order; a whole reply is one piece.

    Text is held back while it can still become calls. The moment it cannot, all of it is returned.
    """

    def __init__(self, tools: OfferedTools) -> None:
        self._tools = tools
        self._prefix = CallPrefix(tools.parameters)
        self._held: list[str] = []
        self._checked = 0  # objects

    @classmethod
    def for_request(cls, request: Any) -> UntaggedCalls | None:
        """Return what reads a reply to a vLLM request of chat completions or responses; None if nothing may be read.

        That is without tools, where the client forbids or forces a call, where it wants a format for the text, where
        the user asks for JSON in words, and where the operator has turned this off.
        """
        if not parse_bool(os.environ.get(UNTAGGED_CALLS) or "1"):
            return None
        if not request.tools or request.tool_choice not in (None, "auto") or _wants_format(request):
            return None
        if _JSON.search(_question(request)):
            return None  # a small model that is asked for data in JSON may write it as the call of some tool
        tools = OfferedTools.of(request.tools)
        return cls(tools) if tools.parameters else None

    def feed(self, text: str, *, called: bool, finished: bool) -> tuple[str, Sequence[Call]]:
        """Take the next text; return what is certain to be text, and the calls that the reply consists of.

        `called` tells that the family's parser has found a call in the reply: all its other text is content then.
        """
        prefix = self._prefix
        if not prefix.can_be_calls:
            return text, ()
        self._held.append(text)
        prefix.feed(text)
        if called or not self._are_calls():
            prefix.can_be_calls = False
        elif not finished:
            return "", ()
        elif prefix.is_complete:
            return "", [call for text in prefix.objects if (call := self._call(text))]
        return "".join(self._held), ()

    def _are_calls(self) -> bool:
        """Return whether the text can still be calls, and each object that is complete is one."""
        new = self._prefix.objects[self._checked :]
        self._checked += len(new)
        return self._prefix.can_be_calls and all(self._call(text) for text in new)

    def _call(self, text: str) -> Call | None:
        try:
            return self._tools.call(orjson.loads(text))
        except orjson.JSONDecodeError:
            return None


def _wants_format(request: Any) -> bool:
    """Return whether the client asks for text in a format (`response_format`, `text.format`, `structured_outputs`).

    Some of vLLM's parsers put a structural tag into the request themselves, which therefore does not count.
    """
    stated = getattr(request, "response_format", None) or getattr(getattr(request, "text", None), "format", None)
    if getattr(stated, "type", "text") != "text":
        return True
    bound = getattr(request, "structured_outputs", None)
    kinds = ("json", "regex", "choice", "grammar", "json_object")
    return any(getattr(bound, kind, None) is not None for kind in kinds)


def _question(request: Any) -> str:
    """Return the text of the user's last message; "" if there is none."""
    messages: Any = getattr(request, "messages", None)
    if messages is None:
        messages = getattr(request, "input", "")
    if isinstance(messages, str):
        return messages
    asked = (message for message in reversed(messages) if _field(message, "role") == "user")
    content = _field(next(asked, {}), "content")
    parts = content if isinstance(content, list) else [{"text": content}]
    return "\n".join(text for part in parts if isinstance(text := _field(part, "text"), str))


def _field(message: Any, name: str) -> Any:
    """Return a field of a message or of a part of its content, which may be a dictionary or an object."""
    return message.get(name) if isinstance(message, dict) else getattr(message, name, None)
