"""Text is divided at its markers alike, however it arrives, and a run of blanks is not read again with each piece."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import regex  # type: ignore[import-untyped]
from hypothesis import example, given
from hypothesis import strategies as st

from vllama.worker import text_markers
from vllama.worker.text_markers import MarkerStream, TextMarkers

FAMILIES = [
    ("Phi4MiniJsonToolParser", None),
    ("Llama3JsonToolParser", None),
    ("BareJsonToolParser", None),
    ("GraniteToolParser", "GraniteReasoningParser"),
    ("BareJsonToolParser", "PlainThinkReasoningParser"),
]
PARTS = ["functools", "[", "{", '"name":', "<|python_tag|>", "<think>", "</think>", "Here is my thought process:"]
PARTS += ["Here's my response:", "<tool_call>", " ", "\n", "\u3000", "\x1c", "word"]
LENGTH = 4_000


def markers_of(tool: str, reasoning: str | None) -> TextMarkers:
    """The markers of a parser whose classes have these names."""
    classes = SimpleNamespace(
        tool_parser_cls=type(tool, (), {}), reasoning_parser_cls=type(reasoning, (), {}) if reasoning else None
    )
    found = text_markers.text_markers(classes)
    assert found is not None
    return found


def divided(markers: TextMarkers, pieces: list[str]) -> tuple[str, str, tuple[str, str]]:
    """What comes of a text in pieces: thinking, content, and what is held until the end."""
    stream = MarkerStream(markers, calls=True)
    parts = [stream.feed(piece) for piece in pieces]
    return "".join(thinking for thinking, _ in parts), "".join(content for _, content in parts), stream.finish()


@pytest.mark.parametrize(("tool", "reasoning"), FAMILIES)
@given(parts=st.lists(st.sampled_from(PARTS), max_size=12), cuts=st.sets(st.integers(1, 60)))
@example(parts=["\x1c", "functools"], cuts={1})
def test_a_text_is_divided_alike_wherever_it_is_cut(
    tool: str, reasoning: str | None, parts: list[str], cuts: set[int]
) -> None:
    text, markers = "".join(parts), markers_of(tool, reasoning)
    ends = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]

    assert divided(markers, [text[start:end] for start, end in pairwise(ends)]) == divided(markers, [text])


class CountingRegex:
    """The `regex` package, with a count of the characters that its patterns are given to read."""

    def __init__(self) -> None:
        self.characters = 0

    def compile(self, pattern: str) -> Any:
        """Return a pattern that counts."""
        compiled = regex.compile(pattern)
        return SimpleNamespace(match=self._counting(compiled.match), search=self._counting(compiled.search))

    def _counting(self, find: Any) -> Any:
        def counted(text: str, **options: Any) -> Any:
            self.characters += len(text)
            return find(text, **options)

        return counted


@pytest.mark.parametrize(("tool", "reasoning"), FAMILIES)
@pytest.mark.parametrize("begin", ["", "functools", "{"])
def test_a_long_run_of_blanks_is_not_read_again_with_each_piece(
    tool: str, reasoning: str | None, begin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = CountingRegex()
    monkeypatch.setattr(text_markers, "regex", counting)
    pieces = [begin, *["\n"] * LENGTH, "end"]

    thinking, content, held = divided(markers_of(tool, reasoning), pieces)

    assert (thinking + content + "".join(held)) == "".join(pieces)
    assert counting.characters < 3 * LENGTH
