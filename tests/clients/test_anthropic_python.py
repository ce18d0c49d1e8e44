"""Anthropic's Python SDK."""

from __future__ import annotations

import pytest

from clients.conftest import FRANCE, Got, RunClient, assert_black_is_not_white

pytestmark = [pytest.mark.engine, pytest.mark.clients, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def got(run_python: RunClient) -> Got:
    return run_python("anthropic_python")


def test_a_message_is_answered_with_usage(got: Got) -> None:
    message = got["message"]

    assert (message["type"], message["role"], message["stop_reason"]) == ("message", "assistant", "end_turn")
    assert _text(message) == FRANCE
    assert message["model"] == "smollm2:135m"
    assert (message["usage"]["input_tokens"], message["usage"]["output_tokens"]) == (26, 8)


def test_blocks_of_text_say_the_same_as_strings(got: Got) -> None:
    assert _text(got["text_blocks"]) == FRANCE
    assert got["text_blocks"]["usage"]["input_tokens"] == 26


def test_an_answer_that_was_cut_says_so(got: Got) -> None:
    assert got["cut_short"]["stop_reason"] == "max_tokens"
    assert got["cut_short"]["usage"]["output_tokens"] == 3


def test_a_stop_sequence_ends_the_answer_and_is_named(got: Got) -> None:
    assert _text(got["stop_sequence"]) == "The capital of France"
    assert (got["stop_sequence"]["stop_reason"], got["stop_sequence"]["stop_sequence"]) == ("stop_sequence", " is")


def test_a_stream_is_anthropics_sequence_of_events(got: Got) -> None:
    kinds = [event["type"] for event in got["raw_stream"]]

    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert kinds.count("content_block_delta") > 1


def test_the_stream_helper_yields_the_same_words(got: Got) -> None:
    assert len(got["stream_helper"]["pieces"]) > 1
    assert "".join(got["stream_helper"]["pieces"]) == FRANCE
    assert _text(got["stream_helper"]["final"]) == FRANCE
    assert got["stream_helper"]["final"]["usage"]["output_tokens"] == 8


def test_a_tool_is_used(got: Got) -> None:
    (use,) = (block for block in got["tools"]["content"] if block["type"] == "tool_use")

    assert got["tools"]["stop_reason"] == "tool_use"
    assert use["id"]
    assert (use["name"], use["input"]) == ("get_weather", {"city": "Oslo"})


def test_the_use_of_a_tool_streams(got: Got) -> None:
    (use,) = (block for block in got["tools_stream"]["final"]["content"] if block["type"] == "tool_use")

    assert (use["name"], use["input"]) == ("get_weather", {"city": "Oslo"})
    assert got["tools_stream"]["final"]["stop_reason"] == "tool_use"
    assert got["tools_stream"]["events"][-1] == "message_stop"


def test_the_result_of_a_tool_leads_to_an_answer(got: Got) -> None:
    assert got["tool_loop"]["stop_reason"] == "end_turn"
    assert _text(got["tool_loop"]) == "It is sunny there."


def test_an_answer_depends_on_the_image(got: Got) -> None:
    assert_black_is_not_white(got["images"])


def test_the_asynchronous_client_gets_the_same(got: Got) -> None:
    assert _text(got["asynchronous"]) == FRANCE


@pytest.mark.parametrize(
    ("case", "exception", "text"),
    [
        ("unknown model", "NotFoundError", "model 'nosuchmodel' not found"),
        ("unknown model, streamed", "NotFoundError", "model 'nosuchmodel' not found"),
        ("tools without support", "BadRequestError", "does not support tools"),
        ("no messages", "BadRequestError", "messages"),
    ],
)
def test_a_refusal_is_the_sdks_own_exception(got: Got, case: str, exception: str, text: str) -> None:
    assert got["errors"][case]["type"] == exception
    assert text in got["errors"][case]["text"]


def _text(message: dict[str, list[dict[str, str]]]) -> str:
    return "".join(block["text"] for block in message["content"] if block["type"] == "text")
