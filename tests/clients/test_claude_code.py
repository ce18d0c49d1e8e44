"""Claude Code without its screen, over `/v1/messages`."""

from __future__ import annotations

from typing import Any

import pytest

from clients.conftest import Got, RunClient

pytestmark = [pytest.mark.engine, pytest.mark.clients, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def got(run_node: RunClient) -> Got:
    return run_node("claude_code")


def blocks(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """The content blocks of one kind in all messages."""
    messages = [event["message"] for event in events if event["type"] in ("assistant", "user")]
    return [block for message in messages for block in message["content"] if block["type"] == kind]


def result(events: list[dict[str, Any]]) -> dict[str, Any]:
    assert events[-1]["type"] == "result"
    return events[-1]


def test_a_session_answers_with_usage(got: Got) -> None:
    assert result(got["chat"])["subtype"] == "success"
    assert result(got["chat"])["result"] == "Hello! How can I help you?"
    assert result(got["chat"])["usage"]["output_tokens"] > 0


def test_an_answer_streams_in_pieces(got: Got) -> None:
    events = [event["event"] for event in got["stream"] if event["type"] == "stream_event"]
    pieces = [event["delta"]["text"] for event in events if event.get("delta", {}).get("type") == "text_delta"]

    assert len(pieces) > 2
    assert "".join(pieces).strip() == "Hello! How can I help you?"


def test_a_call_goes_to_claude_code_and_its_result_to_the_model(got: Got) -> None:
    (call,) = blocks(got["call"], "tool_use")
    (output,) = blocks(got["call"], "tool_result")

    assert (call["name"], call["input"]) == ("get_weather", {"city": "Oslo"})
    assert output["tool_use_id"] == call["id"]
    assert result(got["call"])["result"] == "The tool has answered."


def test_a_prompt_with_all_tools_is_answered(got: Got) -> None:
    answer = result(got["whole_prompt"])

    assert (answer["subtype"], answer["is_error"]) == ("success", False)
    assert answer["result"]
