"""Two parsers for what vLLM has none for: calls as JSON that nothing marks, and `<think>` that is no token.

Ollama serves any model whose template shows how it calls tools or thinks, also one that somebody has written for a
model whose vocabulary knows nothing of it. vLLM's parsers each need tokens of their family. vLLM loads this file by
`--tool-parser-plugin` and `--reasoning-parser-plugin`, which 0.26 and 0.32 have alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
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

_LONGEST_TAG = 16
"""Tokens, at least, that a tag takes."""


@ToolParserManager.register_module("bare_json")
class BareJsonToolParser(ToolParser):  # type: ignore[misc]
    """`{"name": …, "arguments": {…}}`, one or several, alone or in a list, and nothing before.

    As in Ollama, a reply that begins otherwise holds no calls, and neither does JSON that names none of the tools.
    """

    def extract_tool_calls(self, model_output: str, request: Any) -> Any:
        """Read a whole reply."""
        calls, _, rest = _calls_in(model_output, _names(request))
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
        """Give each call when it is whole; what cannot become a call is text at once."""
        del delta_text, previous_token_ids, current_token_ids, delta_token_ids
        names = _names(request)
        before, _, said_before = _calls_in(previous_text, names)
        calls, _, said = _calls_in(current_text, names)
        new = calls[len(before) :]
        self.prev_tool_call_arr = [{"name": name, "arguments": arguments} for name, arguments in calls]
        self.streamed_args_for_tool = [arguments for _, arguments in calls]
        self.current_tool_id = len(calls) - 1
        content = said.removeprefix(said_before)
        if not new and not content:
            return None
        return DeltaMessage(
            content=content or None,
            tool_calls=[
                DeltaToolCall(
                    index=len(before) + offset,
                    type="function",
                    id=make_tool_call_id(),
                    function=DeltaFunctionCall(name=name, arguments=arguments),
                )
                for offset, (name, arguments) in enumerate(new)
            ],
        )


def _names(request: Any) -> frozenset[str]:
    tools = [getattr(tool, "function", tool) for tool in request.tools or ()]
    return frozenset(str(tool.name) for tool in tools)


def _calls_in(text: str, names: frozenset[str]) -> tuple[list[tuple[str, str]], str, str]:
    """The calls at the beginning of a text, what may still become one, and what is neither."""
    calls: list[tuple[str, str]] = []
    rest = text.lstrip("[ \n\t")
    while rest.startswith("{"):
        end = _object_end(rest)
        if end is None:
            return calls, rest, ""
        call = _call(rest[:end], names)
        if call is None:
            break
        calls.append(call)
        rest = rest[end:].lstrip(" ,;]\n\t")
    if calls:
        return calls, "", rest
    return ([], text, "") if not rest else ([], "", text)


def _object_end(text: str) -> int | None:
    """Where the object ends with which the text begins; None while it does not."""
    depth, in_string, escaped = 0, False, False
    for index, char in enumerate(text):
        if in_string:
            in_string = escaped or char != '"'
            escaped = char == "\\" and not escaped
        elif char == '"':
            in_string = True
        elif char in "{[":
            depth += 1
        elif char in "}]":
            depth -= 1
            if depth == 0:
                return index + 1
    return None


def _call(text: str, names: frozenset[str]) -> tuple[str, str] | None:
    """Name and arguments, as JSON."""
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    arguments = value.get("arguments", value.get("parameters"))
    if value.get("name") not in names or not isinstance(arguments, dict):
        return None
    return value["name"], orjson.dumps(arguments).decode()


@ReasoningParserManager.register_module("plain_think")
class PlainThinkReasoningParser(ReasoningParser):  # type: ignore[misc]
    """`<think>…</think>` in ordinary tokens; the first tag may be the template's."""

    reasoning_start_str = "<think>"
    reasoning_end_str = "</think>"

    def __init__(self, tokenizer: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(tokenizer, *args, **kwargs)
        switches = kwargs.get("chat_template_kwargs") or {}
        self._is_on = switches.get("enable_thinking") is not False

    def is_reasoning_end(self, input_ids: Sequence[int]) -> bool:
        """Whether no thinking is open at the end of these tokens."""
        text = self._text(input_ids)
        return text.rfind(self.reasoning_start_str) <= text.rfind(self.reasoning_end_str)

    def is_reasoning_end_streaming(self, input_ids: Sequence[int], delta_ids: Any) -> bool:
        """Whether thinking has ended with the last tokens."""
        return self.reasoning_end_str in self._text(input_ids, len(list(delta_ids)))

    def extract_content_ids(self, input_ids: list[int]) -> list[int]:
        """The tokens after the end of thinking."""
        for end in range(1, len(input_ids) + 1):
            if self.reasoning_end_str in self._text(input_ids[:end]):
                return input_ids[end:]
        return []

    def extract_reasoning(self, model_output: str, request: Any) -> tuple[str | None, str | None]:
        """Thinking and answer of a whole reply."""
        del request
        thinking, content = self._split(model_output)
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
        """What is new; what may become a tag waits."""
        del delta_text, previous_token_ids, current_token_ids, delta_token_ids
        before, after = (self._split(_without_partial_tag(text)) for text in (previous_text, current_text))
        thinking, content = (new.removeprefix(old) for old, new in zip(before, after, strict=True))
        return DeltaMessage(reasoning=thinking or None, content=content or None) if thinking or content else None

    def _split(self, text: str) -> tuple[str, str]:
        begun = text.lstrip()
        if begun.startswith(self.reasoning_start_str):
            text = begun.removeprefix(self.reasoning_start_str)
        elif not self._is_on and self.reasoning_end_str not in text:
            return "", text
        thinking, _, content = text.partition(self.reasoning_end_str)
        return thinking, content

    def _text(self, ids: Sequence[int], more: int = 0) -> str:
        """The end of what these tokens say."""
        return str(self.model_tokenizer.decode(list(ids[-(_LONGEST_TAG + more) :]), skip_special_tokens=False))


def _without_partial_tag(text: str) -> str:
    for length in range(len("</think>") - 1, 0, -1):
        if text.endswith(("</think>"[:length], "<think>"[:length])):
            return text[:-length]
    return text
