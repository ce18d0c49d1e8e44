"""How the families write tool calls: what begins them, and where each ends in a reply that is still coming.

vLLM's streaming parsers lose calls and arguments where many tokens come at once, as they do under load; what is
complete they read well. So a call is read when its end has come, from the text up to there, made complete where it
stands in a list or between tags. The formats are those of vLLM's parsers (`vllm/tool_parsers`, names of 0.26 to 0.32).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import regex  # type: ignore[import-untyped]


@dataclass(frozen=True, slots=True)
class CallFormat:
    """A format. `opening` is a pattern (of the `regex` package); the calls begin with it.

    Each call is an item that begins with the bracket `item` and ends where that is closed; or it ends with the text
    `closing`. `after` is what vLLM's parser needs after the last item.
    """

    opening: str
    item: str = ""
    closing: str = ""
    after: str = ""


TAGGED_LISTS = r"<tool_calls>|<TOOLCALL>"
"""Tags before calls as JSON that may also follow text, as MiniMax M1 and Nemotron Nano 2 write them."""

_TAGGED_JSON = CallFormat("<tool_call>", "{", after="</tool_call>")
_TAGGED = CallFormat("<tool_call>", closing="</tool_call>")
_JSON_LIST = CallFormat("<tool_calls>", "{", after="</tool_calls>")
_GRANITE = CallFormat(r"<\|tool_call\|>|<tool_call>", "{")
_DEEPSEEK = CallFormat("<｜tool▁calls▁begin｜>", closing="<｜tool▁call▁end｜>")
_DSML = CallFormat("<｜DSML｜(?:function_calls|tool_calls)", closing="</｜DSML｜invoke>")
_INVOKE = CallFormat("<minimax:tool_call>", closing="</invoke>")
_SEED = CallFormat("<seed:tool_call>", closing="</seed:tool_call>")
_GEMMA4 = CallFormat(r"<\|tool_call>", closing="<tool_call|>")

CALL_FORMATS = {
    "ApertusToolParser": CallFormat(r"<\|tools_prefix\|>", "{", after="<|tools_suffix|>"),
    "BareJsonToolParser": CallFormat(rf"(?:[\[{{]|{TAGGED_LISTS}|functools\s*\[|Action:\s*```)", "{"),
    "DeepSeekV3ToolParser": _DEEPSEEK,
    "DeepSeekV31ToolParser": _DEEPSEEK,
    "DeepSeekV32EngineToolParser": _DSML,
    "DeepSeekV32ToolParser": _DSML,
    "DeepSeekV4EngineToolParser": _DSML,
    "DeepSeekV41EngineToolParser": CallFormat("<｜DSML｜ calls>", closing="</｜DSML｜ invoke>"),
    "DotsToolParser": CallFormat("<dots_function_call>", closing="</invoke>", after="</dots_function_call>"),
    "Ernie45ToolParser": _TAGGED_JSON,
    "FunctionGemmaToolParser": CallFormat("<start_function_call>", closing="<end_function_call>"),
    "Gemma4EngineToolParser": _GEMMA4,
    "Gemma4ToolParser": _GEMMA4,
    "Glm47MoeModelToolParser": _TAGGED,
    "Glm4MoeModelToolParser": _TAGGED,
    "Granite4ToolParser": _TAGGED_JSON,
    "GraniteEngineToolParser": _GRANITE,
    "GraniteToolParser": _GRANITE,
    "Hermes2ProToolParser": _TAGGED_JSON,
    "HunyuanA13BToolParser": _JSON_LIST,
    "JambaToolParser": _JSON_LIST,
    "KimiK2ToolParser": CallFormat(r"<\|tool_calls_section_begin\|>", closing="<|tool_call_end|>"),
    "Lfm2ToolParser": CallFormat(r"<\|tool_call_start\|>", "(", after="<|tool_call_end|>"),
    "Llama3JsonToolParser": CallFormat(r'<\|python_tag\|>|\{\s*"(?:name|type|function)"\s*:', "{"),
    "Llama4PythonicToolParser": CallFormat(r"<\|python_start\|>|\[(?=[A-Za-z_]\w*\()", "("),
    "LongcatFlashToolParser": replace(_TAGGED_JSON, opening="<longcat_tool_call>", after="</longcat_tool_call>"),
    "MiMoToolParser": _TAGGED,
    "MinimaxM2ToolParser": _INVOKE,
    "MistralToolParser": CallFormat(r"\[TOOL_CALLS\]", "{"),
    "Olmo3PythonicToolParser": CallFormat("<function_calls>", "(", after="</function_calls>"),
    "Phi4MiniJsonToolParser": CallFormat(r"functools\s*\[", "{"),
    "PythonicToolParser": CallFormat(r"\[(?=[A-Za-z_]\w*\()", "("),
    "Qwen3CoderToolParser": _TAGGED,
    "Qwen3EngineToolParser": _TAGGED,
    "Qwen3XMLToolParser": _TAGGED,
    "SeedOssEngineToolParser": _SEED,
    "SeedOssToolParser": _SEED,
    "Step3ToolParser": CallFormat(
        "<｜tool_calls_begin｜>", closing="<｜tool_call_end｜>", after="<｜tool_calls_end｜>"
    ),
    "Step3p5ToolParser": _TAGGED,
}
"""By the name of vLLM's class. The calls of all others are read at the end of the reply."""


def call_format(tool_parser: Any) -> CallFormat | None:
    """Return the format of a vLLM `ToolParser` class; None if it has none or the format is not known."""
    return CALL_FORMATS.get(tool_parser.__name__) if tool_parser is not None else None


_LONGEST_OPENING = 64
"""Characters, with blanks. The calls of a longer one are read at the end of the reply."""


class CallEnds:
    """Finds where calls end in a reply that comes in pieces. Reads each character once."""

    def __init__(self, calls: CallFormat) -> None:
        self._format = calls
        self._find_opening = regex.compile(calls.opening).search
        self._is_open = False
        self._held = ""  # may become an opening or a closing
        self._read = 0  # all before what is held
        self._lists = 0  # brackets that are open around the item
        self._item: ItemEnd | None = None

    def feed(self, text: str) -> tuple[int, str] | None:
        """Take the next characters; return where the last call that they complete ends, and what completes the text.

        The end is counted from the beginning of the reply. None if they complete no call.
        """
        text = self._held + text
        self._held = ""
        if not self._is_open:
            text = self._open(text)
        if not text:
            return None
        return self._closings(text) if self._format.closing else self._items(text)

    def _open(self, text: str) -> str:
        """Return the text from the opening on; empty if there is none yet."""
        match = self._find_opening(text, partial=True)
        begin = match.start() if match is not None else len(text)
        self._read += begin
        if match is not None and not match.partial:
            self._is_open = True
            return text[begin:]
        if len(text) - begin <= _LONGEST_OPENING:
            self._held = text[begin:]
        else:
            self._read += len(text) - begin
        return ""

    def _closings(self, text: str) -> tuple[int, str] | None:
        closing = self._format.closing
        at = text.rfind(closing)
        end = at + len(closing) if at >= 0 else 0
        found = (self._read + end, self._format.after) if end else None
        done = max(end, len(text) - len(closing) + 1)
        self._read += done
        self._held = text[done:]
        return found

    def _items(self, text: str) -> tuple[int, str] | None:
        found, position = None, 0
        while position < len(text):
            if self._item is not None:
                end = self._item.find(text, position)
                if end is None:
                    break
                self._item, position = None, end
                found = (self._read + end, "]" * self._lists + self._format.after)
                continue
            char = text[position]
            if char == self._format.item:
                self._item = ItemEnd(char)
                continue
            if char in "[]":
                self._lists = max(0, self._lists + (1 if char == "[" else -1))
            position += 1
        self._read += len(text)
        return found


_BRACKETS = {"{": ("{[", "}]", '"'), "(": ("{[(", "}])", "\"'")}
"""What opens, what closes and what quotes, in JSON and in Python."""


class ItemEnd:
    """Finds the end of a JSON object, or of a call's arguments in Python, that comes in pieces."""

    def __init__(self, begins: str) -> None:
        """Take the bracket with which it begins."""
        self._opening, self._closing, self._quotes = _BRACKETS[begins]
        self._depth, self._quote, self._escaped = 0, "", False

    def find(self, text: str, start: int = 0) -> int | None:
        """Return where in this piece, from `start` on, the item ends; None if it goes on."""
        depth, quote, escaped = self._depth, self._quote, self._escaped
        opening, closing, quotes = self._opening, self._closing, self._quotes
        for index in range(start, len(text)):
            char = text[index]
            if quote:
                if char == quote and not escaped:
                    quote = ""
                escaped = char == "\\" and not escaped
            elif char in quotes:
                quote = char
            elif char in opening:
                depth += 1
            elif char in closing:
                depth -= 1
                if depth == 0:
                    return index + 1
        self._depth, self._quote, self._escaped = depth, quote, escaped
        return None
