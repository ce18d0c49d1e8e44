"""LangChain's `langchain-ollama`."""

from __future__ import annotations

import pytest

from clients.conftest import FRANCE, Got, RunClient, assert_alike_texts_are_near, assert_black_is_not_white

pytestmark = [pytest.mark.engine, pytest.mark.clients, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def got(run_python: RunClient) -> Got:
    return run_python("langchain_python")


def test_a_model_that_is_validated_answers_with_usage(got: Got) -> None:
    reply = got["invoke"]

    assert reply["content"] == FRANCE
    assert reply["response_metadata"]["done_reason"] == "stop"
    assert reply["response_metadata"]["model"] == "smollm2:135m"
    assert reply["usage_metadata"] == {"input_tokens": 26, "output_tokens": 8, "total_tokens": 34}


def test_the_same_words_stream(got: Got) -> None:
    assert len(got["stream"]) > 2
    assert "".join(chunk["content"] for chunk in got["stream"]) == FRANCE


def test_a_batch_is_answered_in_order(got: Got) -> None:
    france, italy = got["batch"]

    assert "Paris" in france
    assert "Italy" in italy


@pytest.mark.parametrize("way", ["tools", "tools_stream"])
def test_a_bound_tool_is_called(got: Got, way: str) -> None:
    (call,) = got[way]["tool_calls"]

    assert (call["name"], call["args"], call["type"]) == ("get_weather", {"city": "Oslo"}, "tool_call")
    assert call["id"]


def test_the_result_of_a_tool_leads_to_an_answer(got: Got) -> None:
    assert got["tool_loop"]["content"].strip() == "It is sunny there."
    assert got["tool_loop"]["tool_calls"] == []


@pytest.mark.parametrize("method", ["json_schema", "json_mode"])
def test_structured_output_is_an_object_of_the_schema(got: Got, method: str) -> None:
    assert got["structured"][method] == {"name": "Ann", "age": 31}


def test_structured_output_can_come_by_a_tool(got: Got) -> None:
    assert got["structured_by_a_tool"] == {"name": "Ann", "age": 31}


def test_reasoning_is_kept_from_the_answer(got: Got) -> None:
    answer = "Because air scatters blue light most."

    assert {reply["content"].strip() for reply in got["reasoning"].values()} == {answer}
    assert got["reasoning"]["True"]["additional_kwargs"]["reasoning_content"].strip() == "Air scatters light."
    assert "reasoning_content" not in got["reasoning"]["False"]["additional_kwargs"]


def test_an_answer_depends_on_the_image(got: Got) -> None:
    assert_black_is_not_white(got["images"])


def test_the_completion_model_uses_generate(got: Got) -> None:
    assert got["completion"]["invoke"] == FRANCE
    assert len(got["completion"]["stream"]) > 2
    assert "".join(got["completion"]["stream"]) == FRANCE


def test_embeddings_are_near_for_alike_texts(got: Got) -> None:
    documents, query = got["embeddings"]["documents"], got["embeddings"]["query"]

    assert_alike_texts_are_near(documents)
    assert query == pytest.approx(documents[0], abs=1e-4)
    assert len(got["embeddings"]["chat model"]) == 576


def test_the_asynchronous_ways_get_the_same(got: Got) -> None:
    assert got["asynchronous"]["invoke"]["content"] == FRANCE
    assert "".join(chunk["content"] for chunk in got["asynchronous"]["stream"]) == FRANCE
    assert len(got["asynchronous"]["embedding"]) == 384


@pytest.mark.parametrize(
    ("case", "exception", "text"),
    [
        ("unknown model", "ResponseError", "model 'nosuchmodel' not found"),
        ("unknown model, validated", "ValidationError", "Model `nosuchmodel` not found in Ollama"),
        ("tools without support", "ResponseError", "does not support tools"),
    ],
)
def test_a_refusal_is_an_exception_with_its_reason(got: Got, case: str, exception: str, text: str) -> None:
    assert got["errors"][case]["type"] == exception
    assert text in got["errors"][case]["text"]
