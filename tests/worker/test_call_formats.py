"""Where calls end is found wherever a reply is cut, once per call, and without reading a text twice."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllama.worker.call_formats import CALL_FORMATS, CallEnds, CallFormat

_HERMES, _MISTRAL, _GLM, _LFM2, _DEEPSEEK = (
    CALL_FORMATS[name]
    for name in (
        "Hermes2ProToolParser", "MistralToolParser", "Glm47MoeModelToolParser", "Lfm2ToolParser", "DeepSeekV3ToolParser"
    )
)  # fmt: skip
_TAGS = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f{}<｜tool▁call▁end｜>"

WRITTEN = [
    (_HERMES, 'Text {a} <tool_call>\n{"name": "f", "arguments": {"s": "}\\""}}', "\n</tool_call>", "</tool_call>"),
    (_MISTRAL, '[TOOL_CALLS] [{"name": "f", "arguments": {"l": [1, 2]}}', ", ", "]"),
    (_MISTRAL, '[TOOL_CALLS]f[ARGS]{"l": [1, {"a": "]"}]}', "[TOOL_CALLS]g", ""),
    (_GLM, "<tool_call>f\n<arg_key>a</arg_key><arg_value>}</arg_value></tool_call>", "\n<tool_call>g", ""),
    (_LFM2, "<|tool_call_start|>[f(s=')\\'', n={'a': (1, 2)})", ", g(", "]<|tool_call_end|>"),
    (_DEEPSEEK, _TAGS, "\n<｜tool▁call▁begin｜>", ""),
]
"""A format, a reply up to the end of its first call, what comes then, and what completes the text up to that end."""


def ends(calls: CallFormat, pieces: list[str]) -> list[tuple[int, str]]:
    found = CallEnds(calls)
    return [end for piece in pieces if (end := found.feed(piece)) is not None]


@pytest.mark.parametrize(("calls", "reply", "more", "completion"), WRITTEN)
@given(cuts=st.sets(st.integers(1, 120)))
def test_an_end_is_found_wherever_the_reply_is_cut(
    calls: CallFormat, reply: str, more: str, completion: str, cuts: set[int]
) -> None:
    text = reply + more
    places = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    assert ends(calls, [text[start:end] for start, end in pairwise(places)]) == [(len(reply), completion)]


@pytest.mark.parametrize(("calls", "reply", "more", "completion"), WRITTEN)
def test_an_end_is_found_with_the_character_that_makes_it(
    calls: CallFormat, reply: str, more: str, completion: str
) -> None:
    found = CallEnds(calls)
    assert [found.feed(char) for char in reply[:-1]] == [None] * (len(reply) - 1)
    assert found.feed(reply[-1]) == (len(reply), completion)


def test_of_several_calls_at_once_the_last_end_is_told() -> None:
    text = '<tool_call>{"a": 1}</tool_call><tool_call>{"b": 2}'
    assert ends(_HERMES, [text + "</tool_call>"]) == [(len(text), "</tool_call>")]


@pytest.mark.parametrize("calls", CALL_FORMATS.values(), ids=CALL_FORMATS.keys())
def test_text_without_an_opening_has_no_end_of_a_call(calls: CallFormat) -> None:
    assert ends(calls, list("A long answer. </tool_call> It has (brackets) and <b>tags</b> </invoke>.")) == []


@pytest.mark.parametrize("calls", CALL_FORMATS.values(), ids=CALL_FORMATS.keys())
@pytest.mark.parametrize("begin", ["", "functools", "{", "<", "["])
def test_no_more_than_an_opening_and_a_closing_is_held(calls: CallFormat, begin: str) -> None:
    found = CallEnds(calls)
    found.feed(begin)
    for _ in range(1_000):
        found.feed("   ")
        assert len(found._held) < 128
