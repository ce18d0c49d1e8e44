"""LlamaIndex's `llama-index-llms-ollama` and `llama-index-embeddings-ollama`."""

from __future__ import annotations

import pytest

from clients.conftest import FRANCE, Got, RunClient, assert_alike_texts_are_near, assert_black_is_not_white

pytestmark = [pytest.mark.engine, pytest.mark.clients, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def got(run_python: RunClient) -> Got:
    return run_python("llama_index_python")


def test_the_context_window_comes_from_show(got: Got) -> None:
    assert got["metadata"]["context_window"] == 8192


def test_complete_answers_and_streams_the_same_words(got: Got) -> None:
    assert got["complete"]["whole"] == FRANCE
    assert len(got["complete"]["stream"]) > 2
    assert "".join(got["complete"]["stream"]) == FRANCE


def test_chat_answers_with_usage_and_streams_the_same_words(got: Got) -> None:
    assert got["chat"]["message"]["blocks"][-1]["text"] == FRANCE
    assert got["chat"]["raw"]["usage"] == {"prompt_tokens": 26, "completion_tokens": 8, "total_tokens": 34}
    assert len(got["stream_chat"]) > 2
    assert "".join(got["stream_chat"]) == FRANCE


def test_a_tool_is_called(got: Got) -> None:
    (call,) = got["tools"]

    assert (call["tool_name"], call["tool_kwargs"]) == ("get_weather", {"city": "Oslo"})
    assert got["tool_is_called"] == "7 degrees and sunny"


def test_structured_output_is_an_object_of_the_schema(got: Got) -> None:
    assert got["structured"] == {"name": "Ann", "age": 31}
    assert got["structured_llm"] == {"name": "Ann", "age": 31}


def test_thinking_is_a_block_of_its_own(got: Got) -> None:
    thinking, answer = got["thinking"]["blocks"]

    assert (thinking["block_type"], thinking["content"].strip()) == ("thinking", "Air scatters light.")
    assert (answer["block_type"], answer["text"].strip()) == ("text", "Because air scatters blue light most.")


def test_an_answer_depends_on_the_image(got: Got) -> None:
    assert_black_is_not_white(got["images"])


def test_embeddings_are_near_for_alike_texts(got: Got) -> None:
    assert_alike_texts_are_near(got["embeddings"]["texts"])
    assert got["embeddings"]["query"] == pytest.approx(got["embeddings"]["texts"][0], abs=1e-4)


def test_the_asynchronous_ways_get_the_same(got: Got) -> None:
    assert got["asynchronous"]["chat"]["message"]["blocks"][-1]["text"] == FRANCE
    assert "".join(got["asynchronous"]["stream"]) == FRANCE


@pytest.mark.parametrize(
    ("case", "text"),
    [
        ("unknown model", "model 'nosuchmodel' not found"),
        ("unknown model, its context asked", "model 'nosuchmodel' not found"),
        ("tools without support", "does not support tools"),
    ],
)
def test_a_refusal_is_ollamas_exception_with_its_reason(got: Got, case: str, text: str) -> None:
    assert got["errors"][case]["type"] == "ResponseError"
    assert text in got["errors"][case]["text"]
