"""Where a reply's thinking and calls begin, for the families whose marks are plain words.

vLLM's streaming parsers for these lose text or calls (seen with 0.26 and 0.32: `phi4_mini_json` streams nothing at
all, `llama3_json` misses calls that follow text, `hunyuan_a13b` leaks its mark, `granite` thinking leaks half of its
marks and hides calls), but read whole replies well. So text goes out at once up to a mark. Calls wait until they are
closed, all else waits for the end of the reply.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Any

import regex  # type: ignore[import-untyped]

from vllama.worker.call_formats import TAGGED_LISTS, call_format


@dataclass(frozen=True, slots=True)
class TextMarkers:
    """Patterns (of the `regex` package, which can match a text that is still coming)."""

    calls: str
    thinking: str = ""
    answer: str = ""
    calls_come_first: bool = False  # or later, with one of these marks
    calls_later: str = ""
    prompt_opens: bool = False  # the template may have begun the thinking


_PLAIN_CALLS = {"Phi4MiniJsonToolParser", "Llama3JsonToolParser", "BareJsonToolParser", "HunyuanA13BToolParser"}
_NEVER = r"(?!)"
_BLANK = regex.compile(r"\s+")
_BLANKS = regex.compile(r"\s*")


def text_markers(parser_class: Any) -> TextMarkers | None:
    """Return the marks of a vLLM `Parser` class; None if vLLM's own streaming works."""
    tool, reasoning = parser_class.tool_parser_cls, parser_class.reasoning_parser_cls
    written = call_format(tool)
    calls = written.opening if written is not None else _NEVER
    marks = TextMarkers(calls)
    if tool is not None and tool.__name__ == "BareJsonToolParser":
        marks = TextMarkers(rf"\s*{calls}", calls_come_first=True, calls_later=TAGGED_LISTS)
    thinks = reasoning.__name__ if reasoning else ""
    if thinks == "GraniteReasoningParser":
        said = r"Here(?:'s| is) my "
        return replace(marks, thinking=rf"\s*{said}thought process:", answer=rf"{said}response:")
    if thinks == "PlainThinkReasoningParser":
        return replace(marks, thinking=r"\s*<think>", answer="</think>", prompt_opens=True)
    if reasoning is None and tool is not None and tool.__name__ in _PLAIN_CALLS:
        return marks
    return None


class _Stage(Enum):
    START = auto()
    THINKING = auto()
    ANSWER = auto()
    CALLS = auto()


class MarkerStream:
    """Splitter of a streamed text into the parts that are already certain.

    Blanks that continue a run of held blanks are kept apart and are not read again: a mark has at most one blank in a
    row, except where it allows any number.
    """

    def __init__(self, marks: TextMarkers, *, calls: bool, opened: bool = False) -> None:
        """Take the marks; without `calls` none are looked for; `opened` tells that the prompt ends in thinking."""
        self._match_thinking = regex.compile(marks.thinking or _NEVER).match
        self._find_answer = regex.compile(marks.answer or _NEVER).search
        # Calls that come first are not searched for: each position of a run of blanks would be tried.
        pattern = regex.compile(marks.calls if calls else _NEVER)
        self._find_calls = pattern.match if marks.calls_come_first else pattern.search
        self._calls_come_first = marks.calls_come_first
        self._calls_later = (marks.calls_later if calls else "") or _NEVER
        self._stage = _Stage.THINKING if opened else _Stage.START if marks.thinking else _Stage.ANSWER
        self._held = ""
        self._blanks: list[str] = []  # held as well, after `_held`
        self._calls: list[str] = []
        self._taken = 0  # of `_calls`

    def feed(self, text: str) -> tuple[str, str]:
        """Return the thinking and content that are now certain."""
        if self._stage is _Stage.CALLS:
            self._calls.append(text)
            return "", ""
        if _ends_in_run_of_blanks(self._held) and _BLANK.fullmatch(text):
            self._blanks.append(text)
            return "", ""
        self._held = "".join((self._held, *self._blanks, text))
        self._blanks.clear()
        thinking = content = ""
        if self._stage is _Stage.START:
            self._start()
        if self._stage is _Stage.THINKING:
            thinking = self._until(self._find_answer, _Stage.ANSWER, keep_mark=False)
        if self._stage is _Stage.ANSWER:
            content = self._until(self._find_calls, _Stage.CALLS, keep_mark=True)
            if self._calls_come_first:
                blanks = _BLANKS.match(content)[0]  # `lstrip` would remove more than the marks allow
                if begun := content[len(blanks) :]:
                    self._held, self._calls_come_first = begun + self._held, False
                    self._find_calls = regex.compile(self._calls_later).search
                    content = blanks + self._until(self._find_calls, _Stage.CALLS, keep_mark=True)
            self._keep_begun_calls()
        return thinking, content

    def _keep_begun_calls(self) -> None:
        if self._stage is _Stage.CALLS:
            self._calls.append(self._held)
            self._held = ""

    def take_calls(self) -> str:
        """Return what has come of the calls, from their beginning on, since this was asked last."""
        new = "".join(self._calls[self._taken :])
        self._taken = len(self._calls)
        return new

    def finish(self) -> tuple[str, str]:
        """Return the thinking that was held back, and the text that was: from the beginning of the calls on."""
        held = "".join((*self._calls, self._held, *self._blanks))
        self._held, self._blanks, self._calls, self._taken = "", [], [], 0
        return (held, "") if self._stage is _Stage.THINKING else ("", held)

    def _start(self) -> None:
        match = self._match_thinking(self._held, partial=True)
        if match is None:
            self._stage = _Stage.ANSWER
        elif not match.partial:
            self._stage, self._held = _Stage.THINKING, self._held[match.end() :]

    def _until(self, find: Callable[..., Any], then: _Stage, *, keep_mark: bool) -> str:
        match = find(self._held, partial=True)
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


def _ends_in_run_of_blanks(text: str) -> bool:
    """Return whether the text ends in two blanks or more."""
    return len(text) > 1 and _BLANK.fullmatch(text, len(text) - 2) is not None
