"""LiteLLM with `ollama_chat/` (`/api/chat`) and `ollama/` (`/api/generate`, `/api/embed`)."""

from __future__ import annotations

import json

import pytest

from clients.conftest import FRANCE, Got, RunClient, assert_alike_texts_are_near, assert_black_is_not_white

pytestmark = [pytest.mark.engine, pytest.mark.clients, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def got(run_python: RunClient) -> Got:
    return run_python("litellm_python", environment="openai2")


@pytest.mark.parametrize("way", ["chat", "generate"])
def test_both_ways_answer_with_usage(got: Got, way: str) -> None:
    (choice,) = got[way]["choices"]

    assert "Paris" in choice["message"]["content"]
    assert choice["finish_reason"] == "stop"
    assert got[way]["usage"]["completion_tokens"] > 0
    assert got[way]["usage"]["prompt_tokens"] > 0


@pytest.mark.parametrize("way", ["chat", "generate"])
def test_both_ways_stream_the_same_words(got: Got, way: str) -> None:
    chunks = got[f"{way}_stream"]
    whole = got[way]["choices"][0]["message"]["content"]

    assert len(chunks) > 2
    assert _text(chunks) == whole


def test_a_stream_ends_with_usage_where_it_was_asked_for(got: Got) -> None:
    assert got["chat_stream"][-1]["usage"]["total_tokens"] == 24


def test_a_tool_is_called(got: Got) -> None:
    (choice,) = got["tools"]["choices"]
    (call,) = choice["message"]["tool_calls"]

    assert choice["finish_reason"] == "tool_calls"
    assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("get_weather", {"city": "Oslo"})


def test_a_tool_call_streams(got: Got) -> None:
    deltas = [choice["delta"] for chunk in got["tools_stream"] for choice in chunk["choices"]]
    (call,) = (call for delta in deltas for call in delta.get("tool_calls") or [])

    assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("get_weather", {"city": "Oslo"})


def test_the_result_of_a_tool_leads_to_an_answer(got: Got) -> None:
    assert got["tool_loop"]["choices"][0]["message"]["content"].strip() == "It is sunny there."


def test_a_response_format_shapes_the_answer(got: Got) -> None:
    assert got["structured"] == {"name": "Ann", "age": 31}


def test_reasoning_stands_beside_the_answer(got: Got) -> None:
    message = got["reasoning"]["choices"][0]["message"]

    assert message["reasoning_content"].strip() == "Air scatters light."
    assert message["content"].strip() == "Because air scatters blue light most."


@pytest.mark.parametrize("provider", ["ollama_chat", "ollama"])
def test_an_answer_depends_on_the_image(got: Got, provider: str) -> None:
    assert_black_is_not_white(got["images"][provider])


def test_embeddings_are_near_for_alike_texts(got: Got) -> None:
    assert_alike_texts_are_near([item["embedding"] for item in got["embeddings"]["data"]])
    assert got["embeddings"]["usage"]["prompt_tokens"] == 27


def test_show_and_tags_tell_it_what_a_model_can_do(got: Got) -> None:
    assert got["model_info"]["supports_function_calling"] is True
    assert got["model_info"]["max_tokens"] == 32768
    assert "ollama/smollm2:135m" in got["valid_models"]


def test_the_asynchronous_ways_get_the_same(got: Got) -> None:
    assert got["asynchronous"]["chat"]["choices"][0]["message"]["content"] == FRANCE
    assert _text(got["asynchronous"]["stream"]) == FRANCE


@pytest.mark.parametrize(
    ("case", "text"),
    [
        ("unknown model", "model 'nosuchmodel' not found"),
        ("unknown model, ollama/", "model 'nosuchmodel' not found"),
        ("tools without support", "does not support tools"),
    ],
)
def test_a_refusal_is_an_exception_with_ollamas_text(got: Got, case: str, text: str) -> None:
    assert got["errors"][case]["type"]
    assert text in got["errors"][case]["text"]


def _text(chunks: list[dict[str, list[dict[str, dict[str, str]]]]]) -> str:
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
