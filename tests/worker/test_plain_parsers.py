"""Calls and thinking of models whose vocabulary knows nothing of either: only their template shows how."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_output import Said, Speaker

# vLLM is imported (its imports warn), but no engine started.
pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("ignore")]

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
