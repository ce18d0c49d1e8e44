"""Simon Willison's `llm` with its plugin `llm-ollama`."""

from __future__ import annotations

import pytest

from clients.conftest import FRANCE, Got, RunClient, assert_alike_texts_are_near, assert_black_is_not_white

pytestmark = [pytest.mark.engine, pytest.mark.clients, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def got(run_python: RunClient) -> Got:
    return run_python("llm_python")


def test_models_register_by_what_they_can_do(got: Got) -> None:
    assert "ollama/smollm2:135m" in got["models"]["chat"]
    assert "ollama/all-minilm:latest" not in got["models"]["chat"]
    assert "ollama/all-minilm:latest" in got["models"]["embedding"]
    assert "ollama/smollm2:135m" not in got["models"]["embedding"]
    assert got["models"]["supports tools"] == [False, True]


def test_a_prompt_is_answered_with_usage_and_streams_the_same_words(got: Got) -> None:
    assert got["prompt"]["text"] == FRANCE
    assert got["prompt"]["usage"] == [16, 8]
    assert got["prompt"]["json"]["done_reason"] == "stop"
    assert len(got["stream"]) > 2
    assert "".join(got["stream"]) == FRANCE


def test_a_conversation_goes_on(got: Got) -> None:
    first, second = got["conversation"]

    assert second > first + 8


def test_a_schema_shapes_the_answer(got: Got) -> None:
    assert got["schema"] == {"name": "Ann", "age": 31}


def test_a_chain_calls_the_tool_and_answers(got: Got) -> None:
    assert got["tools"]["calls"] == [["get_weather", {"city": "Oslo"}]]
    assert got["tools"]["text"].strip() == "It is sunny there."


def test_an_answer_depends_on_the_image(got: Got) -> None:
    assert_black_is_not_white(got["images"])


def test_embeddings_are_near_for_alike_texts(got: Got) -> None:
    assert_alike_texts_are_near(got["embeddings"])


def test_the_asynchronous_model_gets_the_same(got: Got) -> None:
    assert got["asynchronous"] == FRANCE


def test_the_command_line_lists_models_and_answers(got: Got) -> None:
    assert "smollm2:135m" in got["command_line"]["models"]
    assert got["command_line"]["prompt"].strip() == FRANCE


def test_an_unknown_model_is_not_registered(got: Got) -> None:
    assert got["errors"]["unknown model"]["type"] == "UnknownModelError"
