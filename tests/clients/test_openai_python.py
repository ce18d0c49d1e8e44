"""OpenAI's Python SDK, of this and of the last major version."""

from __future__ import annotations

import json

import pytest

from clients.conftest import FRANCE, Got, RunClient, assert_alike_texts_are_near, assert_black_is_not_white

pytestmark = [pytest.mark.engine, pytest.mark.clients, pytest.mark.timeout(600)]


@pytest.fixture(scope="module", params=["current", "openai2"])
def got(run_python: RunClient, request: pytest.FixtureRequest) -> Got:
    return run_python("openai_python", environment=request.param)


def test_models_are_listed_and_retrieved(got: Got) -> None:
    listed = {model["id"]: model for model in got["models"]["list"]}

    assert {"smollm2:135m", "all-minilm:latest"} <= set(listed)
    assert got["models"]["retrieve"] == listed["smollm2:135m"]


def test_chat_answers_with_usage(got: Got) -> None:
    (choice,) = got["chat"]["choices"]

    assert (choice["message"]["content"], choice["finish_reason"]) == (FRANCE, "stop")
    assert got["chat"]["model"] == "smollm2:135m"
    assert (got["chat"]["usage"]["prompt_tokens"], got["chat"]["usage"]["completion_tokens"]) == (16, 8)


def test_chat_streams_the_same_words_and_then_the_usage(got: Got) -> None:
    *chunks, last = got["chat_stream"]

    assert len(chunks) > 2
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == FRANCE
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == 24
    assert len({chunk["id"] for chunk in (*chunks, last)}) == 1


def test_the_stream_helper_puts_the_answer_together(got: Got) -> None:
    assert got["stream_helper"]["events"][-1] == "content.done"
    assert got["stream_helper"]["final"]["choices"][0]["message"]["content"] == FRANCE


def test_an_answer_that_was_cut_says_so(got: Got) -> None:
    assert got["cut_short"]["choices"][0]["finish_reason"] == "length"
    assert got["cut_short"]["usage"]["completion_tokens"] == 3


def test_parse_returns_an_object_of_the_schema(got: Got) -> None:
    assert got["structured"] == {"name": "Ann", "age": 31}


def test_a_tool_is_called(got: Got) -> None:
    (choice,) = got["tools"]["choices"]
    (call,) = choice["message"]["tool_calls"]

    assert choice["finish_reason"] == "tool_calls"
    assert call["type"] == "function"
    assert call["id"]
    assert call["function"]["name"] == "get_weather"
    assert json.loads(call["function"]["arguments"]) == {"city": "Oslo"}


def test_a_tool_call_streams(got: Got) -> None:
    choices = [choice for chunk in got["tools_stream"] for choice in chunk["choices"]]
    parts = [part for choice in choices for part in choice["delta"].get("tool_calls") or []]

    assert {part["index"] for part in parts} == {0}
    assert "".join(part["function"].get("name") or "" for part in parts) == "get_weather"
    assert json.loads("".join(part["function"].get("arguments") or "" for part in parts)) == {"city": "Oslo"}
    assert choices[-1]["finish_reason"] == "tool_calls"


def test_the_result_of_a_tool_leads_to_an_answer(got: Got) -> None:
    (choice,) = got["tool_loop"]["choices"]

    assert choice["message"]["content"].strip() == "It is sunny there."
    assert choice["finish_reason"] == "stop"


def test_reasoning_stands_beside_the_answer_and_can_be_turned_off(got: Got) -> None:
    answer, thought = "Because air scatters blue light most.", "Air scatters light."
    default, none = (got["reasoning"][key]["choices"][0]["message"] for key in ("default", "none"))
    deltas = [choice["delta"] for chunk in got["reasoning"]["stream"] for choice in chunk["choices"]]

    assert (default["reasoning"].strip(), default["content"].strip()) == (thought, answer)
    assert none["content"].strip() == answer
    assert not none.get("reasoning")
    assert "".join(delta.get("reasoning") or "" for delta in deltas).strip() == thought
    assert "".join(delta.get("content") or "" for delta in deltas).strip() == answer


def test_an_answer_depends_on_the_image(got: Got) -> None:
    assert_black_is_not_white(got["images"])


def test_completions_answer_and_stream_the_same_words(got: Got) -> None:
    whole, chunks = got["completions"]["whole"], got["completions"]["stream"]

    assert "Paris" in whole["choices"][0]["text"]
    assert len(chunks) > 1
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["choices"][0]["text"]


def test_embeddings_come_in_base64_and_as_numbers(got: Got) -> None:
    vectors = [item["embedding"] for item in got["embeddings"]["default"]["data"]]

    assert_alike_texts_are_near(vectors)
    assert got["embeddings"]["float"]["data"][0]["embedding"] == pytest.approx(vectors[0], abs=1e-4)
    assert got["embeddings"]["default"]["usage"]["prompt_tokens"] == 27


def test_responses_answer(got: Got) -> None:
    reply = got["responses"]

    assert (reply["object"], reply["status"]) == ("response", "completed")
    assert reply["output"][-1]["content"][0]["text"] == FRANCE
    assert (reply["usage"]["input_tokens"], reply["usage"]["output_tokens"]) == (26, 8)
    assert got["responses_text"] == FRANCE


def test_responses_stream_the_same_words(got: Got) -> None:
    events = got["responses_stream"]

    assert events[0]["type"] == "response.created"
    assert "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta") == FRANCE
    assert events[-1]["type"] == "response.completed"
    assert [event["sequence_number"] for event in events] == list(range(len(events)))


def test_responses_call_a_tool(got: Got) -> None:
    (call,) = (item for item in got["responses_tools"]["output"] if item["type"] == "function_call")

    assert call["name"] == "get_weather"
    assert json.loads(call["arguments"]) == {"city": "Oslo"}


def test_responses_parse_returns_an_object_of_the_schema(got: Got) -> None:
    assert got["responses_structured"] == {"name": "Ann", "age": 31}


def test_the_asynchronous_client_gets_the_same(got: Got) -> None:
    assert got["asynchronous"]["chat"]["choices"][0]["message"]["content"] == FRANCE
    chunks = got["asynchronous"]["stream"]
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == FRANCE


@pytest.mark.parametrize(
    ("case", "exception", "text"),
    [
        ("unknown model", "NotFoundError", "model 'nosuchmodel' not found"),
        ("unknown model, streamed", "NotFoundError", "model 'nosuchmodel' not found"),
        ("unknown model, retrieved", "NotFoundError", "model 'nosuchmodel' not found"),
        ("unknown model, embeddings", "NotFoundError", 'model "nosuchmodel" not found, try pulling it first'),
        ("unknown model, responses", "NotFoundError", "model 'nosuchmodel' not found"),
        ("tools without support", "BadRequestError", "does not support tools"),
        ("no messages", "BadRequestError", "messages"),
    ],
)
def test_a_refusal_is_the_sdks_own_exception(got: Got, case: str, exception: str, text: str) -> None:
    assert got["errors"][case]["type"] == exception
    assert text in got["errors"][case]["text"]


def test_a_model_that_chats_makes_embeddings_too(got: Got) -> None:
    assert len(got["embeddings"]["chat model"]["data"][0]["embedding"]) == 576
