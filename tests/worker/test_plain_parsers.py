"""Calls and thinking of models whose vocabulary knows nothing of either: only their template shows how."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_output import Said, Speaker

# vLLM is imported (its imports warn), but no engine started.
pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

PARIS = ("get_weather", {"city": "Paris"})
ZURICH = ("get_weather", {"city": 'Zürich {"}"}'})
ONE = '{"name": "get_weather", "arguments": {"city": "Paris"}}'
OTHER = '{"name": "get_weather", "parameters": {"city": "Zürich {\\"}\\"}"}}'

CALLER = Speaker(tool="bare_json")
THINKER = Speaker(reasoning="plain_think")
BOTH = Speaker(tool="bare_json", reasoning="plain_think")
OPENED, CLOSED, NEITHER = "assistant\n<think>", "assistant\n<think>\n\n</think>\n\n", "assistant\n"


@pytest.fixture(scope="module", autouse=True)
def _registered() -> None:
    importlib.import_module("vllama.worker.plain_parsers")


def said_by(speaker: Speaker, output: str, cut: int = 0, **fields: Any) -> Said:
    """What comes of an output, whole and streamed in three ways, which must be the same."""
    whole = speaker.whole(output, **fields)
    assert speaker.streamed(output, **fields) == whole
    assert speaker.streamed(output, cuts=[cut] if cut else [1, 4, 9], **fields) == whole
    return whole


@pytest.mark.parametrize(
    ("output", "calls"),
    [
        (ONE, [PARIS]),
        (f"\n {ONE}\n", [PARIS]),
        (f"[{ONE}, {OTHER}]", [PARIS, ZURICH]),
        (f"{ONE}\n{OTHER}", [PARIS, ZURICH]),
        (f"{ONE};{OTHER}", [PARIS, ZURICH]),
        (ONE + OTHER, [PARIS, ZURICH]),
    ],
)
def test_json_that_names_a_tool_is_a_call(output: str, calls: list[Any]) -> None:
    said = said_by(CALLER, output)

    assert (said.content.strip(), said.calls) == ("", tuple(calls))


@pytest.mark.parametrize(
    "output",
    [
        "It is sunny.",
        f"I will look: {ONE}",
        '{"city": "Oslo", "degrees": 7}',
        '{"name": "another_tool", "arguments": {}}',
        '{"name": "get_weather", "arguments": "Paris"}',
        ONE[:-9],
        "[1, 2]",
        "{not json}",
        "",
    ],
)
def test_everything_else_is_text_and_none_of_it_is_lost(output: str) -> None:
    assert said_by(CALLER, output) == Said(output)


def test_without_tools_json_is_text() -> None:
    assert said_by(CALLER, ONE, tools=False) == Said(ONE)


def test_text_after_calls_is_content() -> None:
    said = said_by(CALLER, f"{ONE}\nI have asked.")

    assert (said.content.strip(), said.calls) == ("I have asked.", (PARIS,))


@pytest.mark.parametrize(
    ("prompt", "output", "thinking", "content"),
    [
        (OPENED, "\nHm.\n</think>\n\nYes.", "Hm.\n", "Yes."),
        (OPENED, "\nHm, a < b, </b>", "Hm, a < b, </b>", ""),
        (CLOSED, "Yes.", "", "Yes."),
        (NEITHER, "Yes: 1 < 2 </b>", "", "Yes: 1 < 2 </b>"),
        (NEITHER, "<think>\nHm.\n</think>\n\nYes.", "Hm.\n", "Yes."),
    ],
    ids=["opened", "cut off", "closed", "no thinking", "the model opens it"],
)
def test_thinking_is_what_stands_before_the_closing_tag(prompt: str, output: str, thinking: str, content: str) -> None:
    assert said_by(THINKER, output, prompt=prompt) == Said(content, thinking)


@given(st.integers(1, 200))
def test_calls_come_after_thinking_wherever_the_pieces_end(cut: int) -> None:
    said = said_by(BOTH, f"\nHm.\n</think>\n\n{ONE}", cut, prompt=OPENED)

    assert (said.thinking, said.content.strip(), said.calls) == ("Hm.\n", "", (PARIS,))


class Request:
    """What vLLM's own routes hand to a tool parser."""

    def __init__(self) -> None:
        self.tools = [type("Tool", (), {"function": type("Function", (), {"name": "get_weather"})})]


def streamed_by_vllm(parser: Any, method: str, output: str, size: int, *arguments: Any) -> list[Any]:
    """The deltas that vLLM's own routes would send for an output that comes some characters at a time."""
    deltas = []
    for end in range(size, len(output) + size, size):
        before, now = output[: end - size], output[:end]
        delta = getattr(parser, method)(before, now, now[len(before) :], [], [], [], *arguments)
        deltas += [delta] if delta is not None else []
    return deltas


@pytest.mark.parametrize("size", [1, 3, 7, 500])
def test_vllms_own_routes_stream_whole_calls_with_their_numbers(size: int) -> None:
    module = importlib.import_module("vllama.worker.plain_parsers")

    deltas = streamed_by_vllm(
        module.BareJsonToolParser(None), "extract_tool_calls_streaming", f"{ONE}\n{OTHER}", size, Request()
    )

    calls = [call for delta in deltas for call in delta.tool_calls]
    assert [call.index for call in calls] == [0, 1]
    assert [call.function.name for call in calls] == ["get_weather"] * 2
    assert not any(delta.content for delta in deltas)


@pytest.mark.parametrize("size", [1, 3, 7, 500])
def test_vllms_own_routes_stream_thinking_and_answer(size: int) -> None:
    module = importlib.import_module("vllama.worker.plain_parsers")

    deltas = streamed_by_vllm(
        module.PlainThinkReasoningParser(None), "extract_reasoning_streaming", "Hm, a < b.</think>Yes.", size
    )

    assert "".join(delta.reasoning or "" for delta in deltas) == "Hm, a < b."
    assert "".join(delta.content or "" for delta in deltas) == "Yes."


CALLS = "extract_tool_calls_streaming"
THINKING = "extract_reasoning_streaming"
PARTS_OF_REPLIES = [
    ONE,
    OTHER,
    "[",
    ",",
    "]",
    " ",
    "\n",
    "{",
    "}",
    '"',
    "\\",
    "x",
    "<",
    "<think>",
    "</think>",
    "</th",
    ">",
]


@pytest.mark.parametrize(("method", "is_on"), [(CALLS, True), (THINKING, True), (THINKING, False)])
@given(parts=st.lists(st.sampled_from(PARTS_OF_REPLIES), max_size=12), size=st.integers(1, 30))
def test_a_parser_that_reads_on_says_what_one_says_that_reads_all_anew(
    *, method: str, is_on: bool, parts: list[str], size: int
) -> None:
    output = "".join(parts)
    one = new_parser(method, is_on=is_on)
    for end in range(size, len(output) + size, size):
        asked = output[: end - size], output[:end], *rest_of(method)
        expected = getattr(new_parser(method, is_on=is_on), method)(*asked)
        assert _without_ids(getattr(one, method)(*asked)) == _without_ids(expected)


class CountingText:
    """A text that counts the characters that are read of it."""

    def __init__(self, text: str, counts: list[int]) -> None:
        self._text, self._counts = text, counts

    def __len__(self) -> int:
        return len(self._text)

    def __getitem__(self, part: slice) -> str:
        self._counts.append(len(self._text[part]))
        return self._text[part]


@pytest.mark.parametrize(
    ("method", "is_on", "output"),
    [
        (CALLS, True, ONE[:-3] + "x" * 4000),
        (CALLS, True, ONE * 50 + "text"),
        (THINKING, True, "x" * 4000),
        (THINKING, False, "x" * 4000),
        (THINKING, True, "Hm.</think>" + "x" * 4000),
    ],
    ids=["one long call", "many calls", "thinking", "no thinking", "answer"],
)
def test_each_character_of_a_streamed_reply_is_read_once(method: str, output: str, *, is_on: bool) -> None:
    parser, counts = new_parser(method, is_on=is_on), list[int]()
    for end in range(4, len(output) + 4, 4):
        texts = CountingText(output[: end - 4], counts) if end > 4 else "", CountingText(output[:end], counts)
        getattr(parser, method)(*texts, *rest_of(method))
    assert sum(counts) == len(output)


def new_parser(method: str, *, is_on: bool) -> Any:
    module = importlib.import_module("vllama.worker.plain_parsers")
    if method == CALLS:
        return module.BareJsonToolParser(None)
    return module.PlainThinkReasoningParser(None, chat_template_kwargs={"enable_thinking": is_on})


def rest_of(method: str) -> tuple[Any, ...]:
    """The arguments of a streaming method after both texts."""
    return ("", [], [], [], *([Request()] if method == CALLS else []))


def _without_ids(delta: Any) -> Any:
    """What a delta says; the ids of calls are random."""
    if delta is None:
        return None
    calls = [(call.index, call.function.name, call.function.arguments) for call in delta.tool_calls]
    return delta.content, delta.reasoning, calls


def test_text_that_was_sent_is_not_read_again() -> None:
    from vllama.worker.parsing import ParsedText

    class CountedText(str):
        """A text that counts the characters that `strip` reads."""

        __slots__ = ()

        def strip(self, chars: str | None = None, /) -> str:
            counts.append(len(self))
            return super().strip(chars)

    parsed, counts = ParsedText(), list[int]()
    for piece in [" "] * 500 + ["word "] * 500:
        parsed.append(CountedText(piece))

    assert sum(counts) == 500 + len("word ")
    assert str(parsed) == " " * 500 + "word " * 500


@pytest.mark.parametrize("end", ["", "Hello", "<think>Hm.</think>Hello"])
def test_blanks_before_the_first_word_hide_neither_thinking_nor_answer(end: str) -> None:
    speaker = Speaker(reasoning="deepseek_r1", plain=("<think>", "</think>"))
    said = speaker.streamed(" " * 50 + end)

    assert said.thinking == ("Hm." if "Hm." in end else "")
    assert said.content.strip() == end.rpartition(">")[2]
