"""The official Python client, unchanged, against the real engine."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator

import ollama
import pytest

from engine.server import Server

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

MODEL = "smollm2:135m"
MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]
GREEDY = {"temperature": 0, "num_predict": 32}


@pytest.fixture
def client(server: Server) -> Iterator[ollama.Client]:
    made = ollama.Client(host=server.url, timeout=120)
    yield made
    made._client.close()


@pytest.fixture
async def async_client(server: Server) -> AsyncIterator[ollama.AsyncClient]:
    made = ollama.AsyncClient(host=server.url, timeout=120)
    yield made
    await made._client.aclose()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def test_list_names_the_model_with_its_size_and_details(client: ollama.Client) -> None:
    (model,) = (model for model in client.list().models if model.model == MODEL)

    assert model.size
    assert model.size > 200_000_000
    assert model.digest
    assert len(model.digest) == 64
    assert model.modified_at is not None
    assert model.details
    assert (model.details.format, model.details.family, model.details.parameter_size) == (
        "safetensors",
        "llama",
        "134.52M",
    )


def test_show_describes_the_model(client: ollama.Client) -> None:
    shown = client.show(MODEL)

    assert shown.capabilities == ["completion"]
    assert shown.modelinfo
    assert shown.modelinfo["general.architecture"] == "llama"
    assert shown.modelinfo["llama.context_length"] == 8192
    assert shown.template
    assert "<|im_start|>" in shown.template
    assert shown.parameters
    assert "stop" in shown.parameters


def test_ps_shows_what_is_loaded(client: ollama.Client) -> None:
    (model,) = client.ps().models

    assert (model.name, model.context_length) == (MODEL, 8192)
    assert model.expires_at is not None


def test_chat_answers(client: ollama.Client) -> None:
    reply = client.chat(MODEL, MESSAGES, options=GREEDY)

    assert reply.message.role == "assistant"
    assert "Paris" in (reply.message.content or "")
    assert (reply.done, reply.done_reason) == (True, "stop")
    assert reply.eval_count
    assert reply.total_duration


def test_chat_streams_the_same_words(client: ollama.Client) -> None:
    whole = client.chat(MODEL, MESSAGES, options=GREEDY)
    *pieces, last = client.chat(MODEL, MESSAGES, options=GREEDY, stream=True)

    assert len(pieces) > 1
    assert "".join(piece.message.content or "" for piece in pieces) == whole.message.content
    assert not last.message.content
    assert last.eval_count == whole.eval_count


def test_generate_answers_and_streams_the_same_words(client: ollama.Client) -> None:
    whole = client.generate(MODEL, "What is the capital of France?", options=GREEDY)
    *pieces, last = client.generate(MODEL, "What is the capital of France?", options=GREEDY, stream=True)

    assert "Paris" in (whole.response or "")
    assert "".join(piece.response or "" for piece in pieces) == whole.response
    assert last.context == whole.context
    assert whole.context


def test_a_conversation_goes_on(client: ollama.Client) -> None:
    first = client.chat(MODEL, MESSAGES, options=GREEDY)
    history = [
        *map(ollama.Message.model_validate, MESSAGES),
        first.message,
        ollama.Message(role="user", content="Why?"),
    ]
    second = client.chat(MODEL, history, options=GREEDY)

    assert second.prompt_eval_count
    assert first.prompt_eval_count
    assert second.prompt_eval_count > first.prompt_eval_count + (first.eval_count or 0)


def test_a_schema_shapes_the_answer(client: ollama.Client) -> None:
    schema = {"type": "object", "properties": {"capital": {"enum": ["Rome", "Paris"]}}, "required": ["capital"]}
    reply = client.chat(MODEL, MESSAGES, format=schema, options={"temperature": 0, "num_predict": 100})

    assert json.loads(reply.message.content or "")["capital"] in {"Rome", "Paris"}


def test_keep_alive_loads_and_stays(client: ollama.Client) -> None:
    reply = client.generate(MODEL, keep_alive="1h")

    assert reply.done_reason == "load"
    assert client.generate(MODEL, keep_alive=-1).done_reason == "load"


def test_a_model_that_is_not_there_is_a_response_error_404(client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError) as whole:
        client.chat("nosuchmodel", MESSAGES)
    with pytest.raises(ollama.ResponseError) as streamed:
        list(client.chat("nosuchmodel", MESSAGES, stream=True))

    for raised in (whole, streamed):
        assert (raised.value.status_code, raised.value.error) == (404, "model 'nosuchmodel' not found")


def test_a_wrong_option_is_a_response_error_400(client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match='option "temperature" must be of type float32') as raised:
        client.chat(MODEL, MESSAGES, options={"temperature": "hot"})

    assert raised.value.status_code == 400


def test_show_of_a_model_that_is_not_there_is_a_response_error_404(client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match="not found") as raised:
        client.show("nosuchmodel")

    assert raised.value.status_code == 404


def test_embed_on_a_model_that_cannot_is_a_response_error(client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError):
        client.embed(MODEL, "text")


@pytest.mark.anyio
async def test_the_async_client_chats_and_streams(async_client: ollama.AsyncClient) -> None:
    whole = await async_client.chat(MODEL, MESSAGES, options=GREEDY)
    pieces = [piece async for piece in await async_client.chat(MODEL, MESSAGES, options=GREEDY, stream=True)]

    assert "Paris" in (whole.message.content or "")
    assert "".join(piece.message.content or "" for piece in pieces) == whole.message.content
    assert pieces[-1].done


@pytest.mark.anyio
async def test_the_async_client_lists_shows_and_generates(async_client: ollama.AsyncClient) -> None:
    assert MODEL in {model.model for model in (await async_client.list()).models}
    assert (await async_client.show(MODEL)).capabilities == ["completion"]
    assert [model.name for model in (await async_client.ps()).models] == [MODEL]
    reply = await async_client.generate(MODEL, "What is the capital of France?", options=GREEDY)
    assert "Paris" in (reply.response or "")
    with pytest.raises(ollama.ResponseError, match="not found"):
        await async_client.generate("nosuchmodel", "Hi")
