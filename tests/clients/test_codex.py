"""Codex without its screen, over `/v1/responses`."""

from __future__ import annotations

from typing import Any

import pytest

from clients.conftest import Got, RunClient

pytestmark = [pytest.mark.engine, pytest.mark.clients, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def got(run_node: RunClient) -> Got:
    return run_node("codex")


def items(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """The finished items of one kind."""
    return [event["item"] for event in events if event["type"] == "item.completed" and event["item"]["type"] == kind]


def test_a_session_answers_with_usage(got: Got) -> None:
    (answer,) = items(got["chat"], "agent_message")

    assert answer["text"] == "Hello! How can I help you?"
    assert got["chat"][-1]["type"] == "turn.completed"
    assert got["chat"][-1]["usage"]["output_tokens"] > 0


def test_a_call_goes_to_codex_and_its_result_to_the_model(got: Got) -> None:
    (answer,) = items(got["call"], "agent_message")

    assert answer["text"] == "The tool has answered."
