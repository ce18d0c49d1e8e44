"""Pydantic AI's Ollama provider and Instructor's, both over `/v1/chat/completions`."""

from __future__ import annotations

import pytest

from clients.conftest import FRANCE, Got, RunClient, assert_black_is_not_white

pytestmark = [pytest.mark.engine, pytest.mark.clients, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def got(run_python: RunClient) -> Got:
    return run_python("pydantic_ai_python")


@pytest.fixture(scope="module")
def instructor(run_python: RunClient) -> Got:
    return run_python("instructor_python", environment="openai2")


def test_an_agent_answers_with_usage_and_streams_the_same_words(got: Got) -> None:
    assert got["run"] == {"output": FRANCE, "input_tokens": 26, "output_tokens": 8}
    assert len(got["stream"]) > 2
    assert "".join(got["stream"]) == FRANCE


def test_an_agent_thinks_calls_its_tool_and_answers(got: Got) -> None:
    assert got["tool_loop"]["calls"] == [["get_weather", {"city": "Oslo"}]]
    assert got["tool_loop"]["thoughts"]
    assert got["tool_loop"]["output"] == "It is sunny there."


@pytest.mark.parametrize("way", ["structured_by_a_tool", "structured_natively"])
def test_an_output_type_is_filled(got: Got, way: str) -> None:
    assert got[way] == {"name": "Ann", "age": 31}


def test_an_answer_depends_on_the_image(got: Got) -> None:
    assert_black_is_not_white(got["images"])


def test_an_unknown_model_is_the_agents_own_error(got: Got) -> None:
    error = got["errors"]["unknown model"]

    assert (error["type"], error["status"]) == ("ModelNotFoundError", 404)
    assert "model 'nosuchmodel' not found" in error["text"]


def test_instructor_fills_a_response_model_whole_and_in_parts(instructor: Got) -> None:
    assert instructor["structured_by_schema"] == {"name": "Ann", "age": 31}
    assert len(instructor["partial"]) > 1
    assert instructor["partial"][-1] == {"name": "Ann", "age": 31}


def test_instructor_tells_of_an_unknown_model(instructor: Got) -> None:
    assert "model 'nosuchmodel' not found" in instructor["errors"]["unknown model"]["text"]
