"""vLLM's own `/v1` routes under our names, with the OpenAI client that vLLM brings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from engine.server import Server

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

MODEL = "smollm2:135m"
QUESTION = "What is the capital of France?"
MESSAGES: list[Any] = [{"role": "user", "content": QUESTION}]


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="ollama", max_retries=0, timeout=120) as made:
        yield made


def test_models_lists_the_store_and_one_can_be_retrieved(client: openai.OpenAI) -> None:
    (listed,) = (model for model in client.models.list().data if model.id == MODEL)

    assert (listed.object, listed.owned_by) == ("model", "library")
    assert client.models.retrieve(MODEL) == listed


@pytest.mark.parametrize("name", [MODEL, "SmolLM2:135M", "registry.ollama.ai/library/smollm2:135m"])
def test_chat_completions_answer_under_every_spelling_of_the_name(client: openai.OpenAI, name: str) -> None:
    reply = client.chat.completions.create(model=name, messages=MESSAGES, temperature=0, max_tokens=32)

    assert "Paris" in (reply.choices[0].message.content or "")
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage
    assert reply.usage.prompt_tokens == 16


def test_chat_completions_stream_the_same_words_and_the_usage(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=MESSAGES, temperature=0, max_tokens=32)
    *chunks, last = client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        temperature=0,
        max_tokens=32,
        stream=True,
        stream_options={"include_usage": True},
    )

    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content
    assert last.usage == whole.usage


def test_completions_answer_and_stream_the_same_words(client: openai.OpenAI) -> None:
    prompt = "The capital of France is"
    whole = client.completions.create(model=MODEL, prompt=prompt, temperature=0, max_tokens=8)
    chunks = client.completions.create(model=MODEL, prompt=prompt, temperature=0, max_tokens=8, stream=True)

    assert "Paris" in whole.choices[0].text
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text


@pytest.mark.parametrize("content_type", ["application/json", "application/x-www-form-urlencoded", "text/plain"])
def test_the_routes_work_whatever_content_type_the_client_names(server: Server, content_type: str) -> None:
    body = {"model": MODEL, "messages": MESSAGES, "temperature": 0, "max_tokens": 8}
    reply = server.post("/v1/chat/completions", body, **{"content-type": content_type})

    assert reply.status_code == 200
    assert "Paris" in reply.json()["choices"][0]["message"]["content"]


def test_the_routes_work_without_a_content_type(server: Server) -> None:
    body = {"model": MODEL, "prompt": "The capital of France is", "temperature": 0, "max_tokens": 8}
    request = server.client.build_request("POST", "/v1/completions", content=json.dumps(body))
    assert "content-type" not in request.headers
    reply = server.client.send(request)

    assert reply.status_code == 200
    assert "Paris" in reply.json()["choices"][0]["text"]


def test_a_stream_is_server_sent_events_up_to_done(server: Server) -> None:
    body = {"model": MODEL, "messages": MESSAGES, "temperature": 0, "max_tokens": 8, "stream": True}
    reply = server.post("/v1/chat/completions", body)

    assert reply.headers["content-type"].startswith("text/event-stream")
    events = reply.text.removesuffix("\n\n").split("\n\n")
    assert events[-1] == "data: [DONE]"
    assert all(json.loads(event.removeprefix("data: "))["model"] == MODEL for event in events[:-1])


def test_a_model_that_is_not_there_is_not_found_in_openais_shape(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="model 'nosuchmodel' not found"):
        client.chat.completions.create(model="nosuchmodel", messages=MESSAGES)
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nosuchmodel")


def test_what_vllm_refuses_is_a_bad_request(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=100_000)
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model=MODEL, messages=MESSAGES, temperature=-1)


def test_vllms_other_routes_come_through_too(server: Server) -> None:
    reply = server.post("/v1/responses", {"model": MODEL, "input": QUESTION, "temperature": 0, "max_output_tokens": 16})

    assert reply.status_code == 200
    assert "Paris" in reply.text
