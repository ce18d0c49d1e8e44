"""Two parsers for what vLLM has none for: calls as JSON that nothing marks, and `<think>` that is no token.

Ollama serves any model whose template shows how it calls tools or thinks, even a template written by a user for a
model whose vocabulary has no such tokens. vLLM's parsers each need tokens of their family. vLLM loads this file by
`--tool-parser-plugin` and `--reasoning-parser-plugin`, which both 0.26 and 0.32 have.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto
from typing import Any

import orjson
import regex  # type: ignore[import-untyped]
from vllm.reasoning import ReasoningParser, ReasoningParserManager
from vllm.tool_parsers import ToolParser, ToolParserManager
from vllm.tool_parsers.llama_tool_parser import (
    DeltaFunctionCall,
    DeltaMessage,
    DeltaToolCall,
    ExtractedToolCallInformation,
    FunctionCall,
    ToolCall,
    make_tool_call_id,
)

from vllama.worker.call_formats import TAGGED_LISTS, ItemEnd

_LONGEST_TAG = 16
"""Tokens, at least, that a tag takes."""

_OPENS, _CLOSES = "<think>", "</think>"
_BEFORE_CALLS = regex.compile(rf"[\[\s]*(?:(?:{TAGGED_LISTS}|functools|Action:\s*```(?:json)?)[\[\s]*)?")
_AFTER_CALL = regex.compile(r"[\s,;\]]*(?:(?:</tool_calls>|</TOOLCALL>)\s*)?")
_AFTER_FENCED_CALL = regex.compile(r"[\s,;\]]*(?:```\s*)?")
_LATER_CALLS = regex.compile(TAGGED_LISTS)
"""Marks around such JSON in replies of MiniMax M1, Apriel, Nemotron Nano 2, Firefunction and Command R."""


@ToolParserManager.register_module("bare_json")
class BareJsonToolParser(ToolParser):  # type: ignore[misc]
    """`{"name": …, "arguments": {…}}`, one or several, alone or in a list, and nothing before but a family's mark.

    A reply that begins otherwise holds no calls, unless the mark is a tag, and neither does JSON that names none of the
    tools, as in Ollama.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._reader: _CallReader | None = None

    def extract_tool_calls(self, model_output: str, request: Any) -> Any:
        """Read a whole reply."""
        reader = _CallReader(_names(request))
        calls, text = reader.feed(model_output)
        rest = text + reader.remaining
        return ExtractedToolCallInformation(
            tools_called=bool(calls),
            tool_calls=[
                ToolCall(type="function", function=FunctionCall(name=name, arguments=arguments))
                for name, arguments in calls
            ],
            content=(rest if calls else model_output) or None,
        )

    def extract_tool_calls_streaming(  # noqa: PLR0917 - the signature is vLLM's
        self,
        previous_text: str,
        current_text: str,
        delta_text: str,
        previous_token_ids: Sequence[int],
        current_token_ids: Sequence[int],
        delta_token_ids: Sequence[int],
        request: Any,
    ) -> Any:
        """Return each call when it is complete; text that cannot become a call is returned at once."""
        del delta_text, previous_token_ids, current_token_ids, delta_token_ids
        reader = self._reader
        if reader is None or reader.length != len(previous_text):
            reader = self._reader = _CallReader(_names(request))
            self._note(reader.feed(previous_text)[0], first=0)
        first = reader.number_of_calls
        new, content = reader.feed(current_text[reader.length :])
        self._note(new, first)
        if not new and not content:
            return None
        return DeltaMessage(
            content=content or None,
            tool_calls=[
                DeltaToolCall(
                    index=first + offset,
                    type="function",
                    id=make_tool_call_id(),
                    function=DeltaFunctionCall(name=name, arguments=arguments),
                )
                for offset, (name, arguments) in enumerate(new)
            ],
        )

    def _note(self, calls: list[tuple[str, str]], first: int) -> None:
        """Keep what vLLM's routes look for at the end of a stream; `first` is the index of the first of the calls."""
        del self.prev_tool_call_arr[first:], self.streamed_args_for_tool[first:]
        self.prev_tool_call_arr += [{"name": name, "arguments": arguments} for name, arguments in calls]
        self.streamed_args_for_tool += [arguments for _, arguments in calls]
        self.current_tool_id = len(self.prev_tool_call_arr) - 1


def _names(request: Any) -> frozenset[str]:
    tools = [getattr(tool, "function", tool) for tool in request.tools or ()]
    return frozenset(str(tool.name) for tool in tools)


class _Place(Enum):
    """Where in a reply a reader of calls is."""

    START = auto()
    OBJECT = auto()
    AFTER_CALL = auto()
    TEXT = auto()


class _CallReader:
    """Finds the calls at the beginning of a reply, and the text after them. Reads each character once."""

    def __init__(self, names: frozenset[str]) -> None:
        """Take the names of the tools: an object that names another one is text."""
        self._names = names
        self._place = _Place.START
        self._prefix = ""  # what stands before an object, and is text if that is no call
        self._held: list[str] = []  # the beginning of an object, which may become a call
        self._object = ItemEnd("{")
        self._withheld = ""  # may become a mark
        self.length = 0
        """Number of characters read."""
        self.number_of_calls = 0

    @property
    def remaining(self) -> str:
        """The text that is held back, where the reply ends here: of a mark or a call that was cut off."""
        return "".join(self._held) or ("" if self._place is _Place.AFTER_CALL else self._withheld)

    def feed(self, text: str) -> tuple[list[tuple[str, str]], str]:
        """Take the next characters; return the calls that they complete, and the text that is in none."""
        self.length += len(text)
        calls: list[tuple[str, str]] = []
        said = ""
        text, self._withheld = self._withheld + text, ""
        while text:
            if self._place is _Place.TEXT:
                begun, text = self._to_mark(text)
                said += begun
            elif self._place is _Place.OBJECT:
                end = self._object.find(text)
                if end is None:
                    self._held.append(text)
                    break
                self._held.append(text[:end])
                said += self._close_object(calls)
                text = text[end:]
            else:
                begun, text = self._to_object(text)
                said += begun
        return calls, said

    def _to_mark(self, text: str) -> tuple[str, str]:
        """Return the text before a mark, and the rest from the mark on; hold back what may become one."""
        match = _LATER_CALLS.search(text, partial=True)
        if match is None:
            return text, ""
        if match.partial:
            self._withheld = text[match.start() :]
            return text[: match.start()], ""
        self._place = _Place.START
        return text[: match.start()], text[match.start() :]

    def _to_object(self, text: str) -> tuple[str, str]:
        """Skip what may stand before an object; return what of it is text, and the rest. Hold back what may be such."""
        starts = self._place is _Place.START
        between = _BEFORE_CALLS if starts else _AFTER_FENCED_CALL if "`" in self._prefix else _AFTER_CALL
        if between.fullmatch(text, partial=True):
            self._withheld = text
            return "", ""
        skipped = between.match(text).group()
        if text.startswith("{", len(skipped)):
            self._prefix = skipped if starts else self._prefix
            self._place, self._object = _Place.OBJECT, ItemEnd("{")
            return "", text[len(skipped) :]
        self._place = _Place.TEXT
        return skipped if starts else "", text[len(skipped) :]

    def _close_object(self, calls: list[tuple[str, str]]) -> str:
        """Take the object that has just ended for a call; return it where it is text."""
        held, self._held = "".join(self._held), []
        call = _call(held, self._names)
        if call is None:
            self._place = _Place.TEXT
            return held if self.number_of_calls else self._prefix + held
        self._place = _Place.AFTER_CALL
        self.number_of_calls += 1
        calls.append(call)
        return ""


def _call(text: str, names: frozenset[str]) -> tuple[str, str] | None:
    """Return the call's name and its arguments as JSON."""
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    arguments = value.get("arguments", value.get("parameters"))
    name = value.get("name", value.get("tool_name"))
    if name not in names or not isinstance(arguments, dict):
        return None
    return name, orjson.dumps(arguments).decode()


@ReasoningParserManager.register_module("plain_think")
class PlainThinkReasoningParser(ReasoningParser):  # type: ignore[misc]
    """`<think>…</think>` in ordinary tokens; the first tag may be the template's."""

    reasoning_start_str = _OPENS
    reasoning_end_str = _CLOSES

    def __init__(self, tokenizer: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(tokenizer, *args, **kwargs)
        switches = kwargs.get("chat_template_kwargs") or {}
        self._is_on = switches.get("enable_thinking") is not False
        self._reader: _ThinkingReader | None = None

    def is_reasoning_end(self, input_ids: Sequence[int]) -> bool:
        """Return whether no thinking is open at the end of these tokens."""
        text = self._text(input_ids)
        return text.rfind(self.reasoning_start_str) <= text.rfind(self.reasoning_end_str)

    def is_reasoning_end_streaming(self, input_ids: Sequence[int], delta_ids: Any) -> bool:
        """Return whether thinking has ended with the last tokens."""
        return self.reasoning_end_str in self._text(input_ids, len(list(delta_ids)))

    def extract_content_ids(self, input_ids: list[int]) -> list[int]:
        """Return the tokens after the end of thinking."""
        for end in range(1, len(input_ids) + 1):
            if self.reasoning_end_str in self._text(input_ids[max(0, end - _LONGEST_TAG) : end]):
                return input_ids[end:]
        return []

    def extract_reasoning(self, model_output: str, request: Any) -> tuple[str | None, str | None]:
        """Return thinking and answer of a complete reply."""
        del request
        thinking, content = _split(model_output, is_on=self._is_on)
        return thinking or None, content or None

    def extract_reasoning_streaming(  # noqa: PLR0917 - the signature is vLLM's
        self,
        previous_text: str,
        current_text: str,
        delta_text: str,
        previous_token_ids: Sequence[int],
        current_token_ids: Sequence[int],
        delta_token_ids: Sequence[int],
    ) -> Any:
        """Return the new text, holding back a possible tag."""
        del delta_text, previous_token_ids, current_token_ids, delta_token_ids
        reader = self._reader
        if reader is None or reader.length != len(previous_text):
            reader = self._reader = _ThinkingReader(is_on=self._is_on)
            reader.feed(previous_text)
        thinking, content = reader.feed(current_text[reader.length :])
        return DeltaMessage(reasoning=thinking or None, content=content or None) if thinking or content else None

    def _text(self, ids: Sequence[int], more: int = 0) -> str:
        """Return the end of the text of these tokens."""
        return str(self.model_tokenizer.decode(list(ids[-(_LONGEST_TAG + more) :]), skip_special_tokens=False))


class _ThinkingReader:
    """Separates thinking from the answer in a reply that comes in pieces. Reads each character once."""

    def __init__(self, *, is_on: bool) -> None:
        self._is_on = is_on
        self._part: str | None = None  # "thinking" or "content" once it is certain what comes next
        self._seen: list[str] = []  # all that was said while it was not
        self._has_begun = False  # with anything but blanks
        self._withheld = ""  # may become a tag
        self.length = 0
        """Number of characters read."""

    def feed(self, text: str) -> tuple[str, str]:
        """Take the next characters; return the thinking and the content that are new."""
        self.length += len(text)
        text = self._withheld + text
        certain = _without_partial_tag(text)  # a tag is never divided between two of these
        self._withheld = text[len(certain) :]
        if self._part == "content":
            return "", certain
        if self._part == "thinking":
            thinking, tag, content = certain.partition(_CLOSES)
            self._part = "content" if tag else "thinking"
            return thinking, content
        if _CLOSES not in certain and (self._has_begun or not certain.strip()):
            self._seen.append(certain)
            return (certain, "") if self._is_on else ("", certain)
        return self._decide(certain)

    def _decide(self, text: str) -> tuple[str, str]:
        """Look at the whole reply: it has just begun, or a tag shows that the text so far is thinking."""
        said = "".join(self._seen)
        self._seen.append(text)
        self._has_begun = True
        before, after = (_split(each, is_on=self._is_on) for each in (said, said + text))
        if _CLOSES in text:
            self._part = "content"
        elif self._is_on or text.lstrip().startswith(_OPENS):
            self._part = "thinking"
        thinking, content = (new.removeprefix(old) for old, new in zip(before, after, strict=True))
        return thinking, content


def _split(text: str, *, is_on: bool) -> tuple[str, str]:
    """Thinking and answer of a text."""
    begun = text.lstrip()
    if begun.startswith(_OPENS):
        text = begun.removeprefix(_OPENS)
    elif not is_on and _CLOSES not in text:
        return "", text
    thinking, _, content = text.partition(_CLOSES)
    return thinking, content


def _without_partial_tag(text: str) -> str:
    for length in range(len("</think>") - 1, 0, -1):
        if text.endswith(("</think>"[:length], "<think>"[:length])):
            return text[:-length]
    return text
