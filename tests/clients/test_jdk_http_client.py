"""The JDK's HTTP client, beneath nearly every client in Java and Kotlin."""

from __future__ import annotations

import json

import pytest

from clients.conftest import FRANCE, Got, RunClient, assert_alike_texts_are_near

pytestmark = [pytest.mark.engine, pytest.mark.clients, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def got(run_python: RunClient) -> Got:
    return run_python("jdk_http_client", environment="java")


def test_a_first_request_that_offers_http_2_is_answered_over_http_1(got: Got) -> None:
    assert got["first_post"] == {"status": 200, "protocol": "HTTP_1_1", "capabilities": ["completion"]}
    assert "smollm2:135m" in got["tags"]


def test_chat_answers_and_streams_the_same_words(got: Got) -> None:
    *pieces, last = got["chat_stream"]

    assert got["chat"]["message"] == {"role": "assistant", "content": FRANCE}
    assert 1 < len(pieces) <= 7  # one for each token, unless the machine is busy
    assert "".join(piece["message"]["content"] for piece in pieces) == FRANCE
    assert (last["done"], last["done_reason"], last["eval_count"]) == (True, "stop", 8)


def test_a_body_that_waits_for_100_continue_is_read(got: Got) -> None:
    assert got["chat_after_100_continue"]["message"]["content"] == FRANCE


def test_requests_at_the_same_time_are_all_answered(got: Got) -> None:
    assert got["at_the_same_time"] == [FRANCE] * 4


def test_the_openai_route_streams_events(got: Got) -> None:
    *chunks, end = got["openai_stream"]
    deltas = [choice["delta"] for chunk in chunks for choice in json.loads(chunk)["choices"]]

    assert "".join(delta.get("content") or "" for delta in deltas) == FRANCE
    assert end == "[DONE]"


def test_a_tool_is_called_and_its_result_leads_to_an_answer(got: Got) -> None:
    (call,) = (call for message in got["tools_stream"] for call in message.get("tool_calls", []))

    assert (call["function"]["name"], call["function"]["arguments"]) == ("get_weather", {"city": "Oslo"})
    assert got["tool_loop"]["message"]["content"].strip() == "It is sunny there."


def test_a_schema_shapes_the_answer(got: Got) -> None:
    assert got["structured"] == {"name": "Ann", "age": 31}


def test_embeddings_are_near_for_alike_texts(got: Got) -> None:
    assert_alike_texts_are_near(got["embed"])


def test_an_unknown_model_is_refused_in_ollamas_words(got: Got) -> None:
    assert got["errors"]["unknown model"] == [404, {"error": "model 'nosuchmodel' not found"}]
