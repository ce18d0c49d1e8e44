"""Haystack's Ollama integration."""

from __future__ import annotations

import pytest

from clients.conftest import FRANCE, Got, RunClient, assert_alike_texts_are_near

pytestmark = [pytest.mark.engine, pytest.mark.clients, pytest.mark.timeout(600)]

OSLO, BERGEN = ["get_weather", {"city": "Oslo"}], ["get_weather", {"city": "Bergen"}]


@pytest.fixture(scope="module")
def got(run_python: RunClient) -> Got:
    return run_python("haystack_python", environment="haystack")


def test_a_generator_answers_with_usage_and_streams_the_same_words(got: Got) -> None:
    assert (got["chat"]["text"], got["chat"]["finish_reason"]) == (FRANCE, "stop")
    assert got["chat"]["usage"]["completion_tokens"] == 8
    assert len(got["stream"]["pieces"]) > 2
    assert "".join(got["stream"]["pieces"]) == got["stream"]["text"] == FRANCE


def test_a_tool_is_called(got: Got) -> None:
    assert got["tools"]["calls"] == [OSLO]


@pytest.mark.parametrize("way", ["two_calls", "two_calls_stream"])
def test_all_calls_of_a_reply_arrive(got: Got, way: str) -> None:
    assert got[way]["calls"] == [OSLO, BERGEN]


def test_an_agent_calls_its_tool_and_answers_while_streaming(got: Got) -> None:
    assert got["agent"]["roles"] == ["user", "assistant", "tool", "assistant"]
    assert got["agent"]["calls"] == [OSLO]
    assert got["agent"]["answer"].strip() == "It is sunny there."
    assert got["agent"]["pieces"] > 2


def test_thinking_comes_beside_the_answer(got: Got) -> None:
    assert got["thinking"]["thinking"].strip() == "Air scatters light."
    assert got["thinking"]["text"].strip() == "Because air scatters blue light most."


def test_a_schema_shapes_the_answer(got: Got) -> None:
    assert got["structured"]["text"] == '{"name": "Ann", "age": 31}'


@pytest.mark.parametrize("kind", ["texts", "documents"])
def test_embeddings_are_near_for_alike_texts(got: Got, kind: str) -> None:
    assert_alike_texts_are_near(got["embed"][kind])


@pytest.mark.parametrize(
    ("case", "status", "text"),
    [
        ("unknown model", 404, "model 'nosuchmodel' not found"),
        ("unknown model, streamed", 404, "model 'nosuchmodel' not found"),
        ("tools without support", 400, "registry.ollama.ai/library/smollm2:135m does not support tools"),
    ],
)
def test_a_refusal_is_an_error_with_ollamas_text(got: Got, case: str, status: int, text: str) -> None:
    assert got["errors"][case] == {"type": "ResponseError", "text": f"{text} (status code: {status})", "status": status}
