"""vLLM's parsers for its own routes, reading calls as plain JSON too (vllama.worker.untagged_calls).

Written against vLLM 0.26 and 0.32, as vllama.worker.trimming_parsers is.

vLLM's streaming parser of Hermes' tags sends a call in doubled braces (`<tool_call>{{"name": …`) with a brace too many,
so such a reply is kept from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
import regex  # type: ignore[import-untyped]
from vllm.tool_parsers.llama_tool_parser import (
    DeltaFunctionCall,
    DeltaMessage,
    DeltaToolCall,
    FunctionCall,
    make_tool_call_id,
)

from vllama.worker.offered_tools import Call
from vllama.worker.untagged_calls import UntaggedCalls

_DOUBLED = regex.compile(r"\s*<tool_call>\s*\{\s*\{")


def reading_untagged_calls(parser_class: Any) -> Any:
    """Return a subclass of a vLLM `Parser` that does so; the class itself if it reads no calls at all."""
    if parser_class.tool_parser_cls is None:
        return parser_class

    class Reading(parser_class):  # type: ignore[misc]
        _untagged: UntaggedCalls | None = None
        _has_begun = False
        _is_doubled: bool | None = None  # None until it is known
        _held = ""
        _held_ids: tuple[int, ...] = ()

        def parse(self, model_output: str, request: Any, *rest: Any, **named: Any) -> Any:
            """Parse a whole reply."""
            thinking, text, calls = super().parse(model_output, request, *rest, **named)
            untagged = UntaggedCalls.for_request(request)
            if untagged is None or calls or not text:
                return thinking, text, calls
            text, found = untagged.feed(text, called=False, finished=True)
            return thinking, text or None, [FunctionCall(name=name, arguments=_json(given)) for name, given in found]

        def parse_delta(
            self, *, delta_text: str, delta_token_ids: Sequence[int], request: Any, finished: bool, **named: Any
        ) -> Any:
            """Parse the next piece of a streamed reply; return None if nothing of it can be sent yet."""
            if not self._has_begun:
                self._has_begun, self._untagged = True, UntaggedCalls.for_request(request)
                self._is_doubled = False if self._untagged is None else None
            if self._is_doubled is None:
                delta_text, delta_token_ids = self._held + delta_text, (*self._held_ids, *delta_token_ids)
                found = _DOUBLED.match(delta_text, partial=not finished)
                if found is not None and found.partial:
                    self._held, self._held_ids = delta_text, delta_token_ids
                    return None
                self._is_doubled = found is not None
            if self._is_doubled:
                delta = DeltaMessage(content=delta_text)
            else:
                given = {"delta_text": delta_text, "delta_token_ids": list(delta_token_ids), "request": request}
                delta = super().parse_delta(**given, finished=finished, **named)
            if self._untagged is None:
                return delta
            content, calls = (delta.content or "", bool(delta.tool_calls)) if delta else ("", False)
            text, found = self._untagged.feed(content, called=calls, finished=finished)
            return delta if text == content and not found else _changed(delta, text, found)

    Reading.__name__, Reading.__qualname__ = parser_class.__name__, parser_class.__qualname__
    return Reading


def _changed(delta: Any, text: str, calls: Any) -> Any:
    """Return the delta with this text, and these calls; None if nothing of it is left."""
    if not (text or calls or (delta and (delta.reasoning or delta.tool_calls))):
        return None
    stated: dict[str, Any] = {name: getattr(delta, name) for name in delta.model_fields_set} if delta else {}
    stated.pop("content", None)
    if text:
        stated["content"] = text
    if calls:
        stated["tool_calls"] = [_delta_call(index, call) for index, call in enumerate(calls)]
    return DeltaMessage(**stated)


def _delta_call(index: int, call: Call) -> DeltaToolCall:
    name, arguments = call
    function = DeltaFunctionCall(name=name, arguments=_json(arguments))
    return DeltaToolCall(index=index, type="function", id=make_tool_call_id(), function=function)


def _json(arguments: dict[str, Any]) -> str:
    return orjson.dumps(arguments).decode()
