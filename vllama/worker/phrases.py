"""Where a reply's thinking and calls begin, for the families whose marks are plain words.

vLLM's streaming parsers for these lose text or calls (seen with 0.26 and 0.32: `phi4_mini_json` streams nothing at
all, `llama3_json` misses calls that follow text, `granite` thinking leaks half of its marks and hides calls), but read
whole replies well. So text goes out at once up to a mark, and what begins with one waits for the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import regex  # type: ignore[import-untyped]


@dataclass(frozen=True, slots=True)
class Marks:
    """Patterns (of the `regex` package, which can match a text that is still coming)."""

    calls: str
    thinking: str = ""
    answer: str = ""
    calls_come_first: bool = False  # or not at all
    prompt_opens: bool = False  # the template may have begun the thinking


_CALLS = {
    "Phi4MiniJsonToolParser": r"functools\s*\[",
    "Llama3JsonToolParser": r'<\|python_tag\|>|\{\s*"(?:name|type|function)"\s*:',
    "GraniteEngineToolParser": r"<\|tool_call\|>|<tool_call>",
    "GraniteToolParser": r"<\|tool_call\|>|<tool_call>",  # its name in 0.26
    "Granite4ToolParser": r"<tool_call>",
    "BareJsonToolParser": r"\s*[\[{]",
}
_PLAIN_CALLS = {"Phi4MiniJsonToolParser", "Llama3JsonToolParser", "BareJsonToolParser"}
_NEVER = r"(?!)"


def marks_of(parser_class: Any) -> Marks | None:
    """The marks of a vLLM `Parser` class; None where vLLM's own streaming serves."""
    tool, reasoning = parser_class.tool_parser_cls, parser_class.reasoning_parser_cls
    calls = _CALLS.get(tool.__name__, _NEVER) if tool else _NEVER
    first = tool is not None and tool.__name__ == "BareJsonToolParser"
    thinks = reasoning.__name__ if reasoning else ""
    if thinks == "GraniteReasoningParser":
        said = r"Here(?:'s| is) my "
        return Marks(calls, rf"\s*{said}thought process:", rf"{said}response:", calls_come_first=first)
    if thinks == "PlainThinkReasoningParser":
        return Marks(calls, r"\s*<think>", "</think>", calls_come_first=first, prompt_opens=True)
    if reasoning is None and tool is not None and tool.__name__ in _PLAIN_CALLS:
        return Marks(calls, calls_come_first=first)
    return None


class _Stage(Enum):
    START = auto()
    THINKING = auto()
    ANSWER = auto()
    CALLS = auto()


class PhraseStream:
    """Tells what may be said of a text that is still coming."""

    def __init__(self, marks: Marks, *, calls: bool, opened: bool = False) -> None:
        """Take the marks; without `calls` none are looked for; `opened` tells that the prompt ends in thinking."""
        self._thinking_begins = regex.compile(marks.thinking or _NEVER)
        self._answer_begins = regex.compile(marks.answer or _NEVER)
        self._calls_begin = regex.compile(marks.calls if calls else _NEVER)
        self._calls_come_first = marks.calls_come_first
        self._stage = _Stage.THINKING if opened else _Stage.START if marks.thinking else _Stage.ANSWER
        self._held = ""

    def feed(self, text: str) -> tuple[str, str]:
        """Return the thinking and the content that are certain now."""
        self._held += text
        thinking = content = ""
        if self._stage is _Stage.START:
            self._start()
        if self._stage is _Stage.THINKING:
            thinking = self._until(self._answer_begins, _Stage.ANSWER, keep_mark=False)
        if self._stage is _Stage.ANSWER:
            content = self._until(self._calls_begin, _Stage.CALLS, keep_mark=True)
            if self._calls_come_first and content.strip():
                content, self._held = content + self._held, ""
                self._stage, self._calls_begin = _Stage.ANSWER, regex.compile(_NEVER)
        return thinking, content

    def finish(self) -> tuple[str, str]:
        """Return the thinking that was held back, and the text that was: from the beginning of the calls on."""
        held, self._held = self._held, ""
        return (held, "") if self._stage is _Stage.THINKING else ("", held)

    def _start(self) -> None:
        match = self._thinking_begins.match(self._held, partial=True)
        if match is None:
            self._stage = _Stage.ANSWER
        elif not match.partial:
            self._stage, self._held = _Stage.THINKING, self._held[match.end() :]

    def _until(self, mark: Any, then: _Stage, *, keep_mark: bool) -> str:
        match = mark.search(self._held, partial=True)
        if match is None:
            said, self._held = self._held, ""
            return str(said)
        said = self._held[: match.start()]
        if match.partial:
            self._held = self._held[match.start() :]
        else:
            self._stage = then
            self._held = self._held[match.start() if keep_mark else match.end() :]
        return str(said)
