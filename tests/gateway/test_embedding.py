"""`/api/embed` and `/api/embeddings` at the gateway: checks, loads, what reaches the worker (contract §1.4, §1.5)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fake_worker import ChannelExchange, within
from tiny_snapshot import make_manifest, write_snapshot

from .conftest import MODEL, Running

pytestmark = pytest.mark.anyio

ROUTES = {"/api/embed": "input", "/api/embeddings": "prompt"}
EMPTY = {"/api/embed": {"model": "minilm", "embeddings": []}, "/api/embeddings": {"embedding": []}}
BERT = {"architectures": ["BertModel"], "model_type": "bert"}
MADE = b'{"model":"minilm","embeddings":[[0.6,0.8]],"prompt_eval_count":4}'


@pytest.fixture
def embedder(gateway: Running, tmp_path: Path) -> Running:
    """The gateway with an embedding model beside the other."""
    gateway.store.put(make_manifest("minilm", write_snapshot(tmp_path / "bert", config=BERT)))
    return gateway


async def refusal(gateway: Running, path: str, body: bytes | dict[str, Any]) -> tuple[int, str]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    reply = await gateway.post(path, content=content)
    assert reply.headers["content-type"] == "application/json; charset=utf-8"
    assert list(reply.json()) == ["error"]
    return reply.status_code, reply.json()["error"]


@pytest.mark.parametrize("path", ROUTES)
async def test_the_body_reaches_the_worker_and_the_reply_the_client_byte_for_byte(embedder: Running, path: str) -> None:
    body = b' {"model" : "MiniLM", "%b": "hello"}' % ROUTES[path].encode()
    sent = embedder.send("POST", path, content=body)
    exchange = await within((await embedder.worker()).next_exchange())
    assert (exchange.path, exchange.body) == (path, body)
    exchange.reply(MADE)
    reply = await sent
    assert (reply.status_code, reply.content) == (200, MADE)


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("text", ["", None, "absent"])
async def test_without_a_text_the_model_is_loaded_and_the_reply_is_empty(
    embedder: Running, path: str, text: str | None
) -> None:
    body = {"model": "minilm"} | ({} if text == "absent" else {ROUTES[path]: text})
    reply = await embedder.post(path, body)
    assert (reply.status_code, reply.json()) == (200, EMPTY[path])
    assert len(embedder.launcher.workers) == 1
    assert embedder.leases == 0


@pytest.mark.parametrize("path", ROUTES)
async def test_without_a_text_and_with_a_keep_alive_of_zero_the_model_is_unloaded(embedder: Running, path: str) -> None:
    await embedder.post(path, {"model": "minilm"})
    assert embedder.scheduler.residents()
    reply = await embedder.post(path, {"model": "minilm", "keep_alive": 0})
    assert (reply.status_code, reply.json()) == (200, EMPTY[path])
    assert not embedder.scheduler.residents()


async def test_a_keep_alive_is_kept(embedder: Running) -> None:
    await embedder.post("/api/embed", {"model": "minilm", "keep_alive": -1})
    assert [view.expires_at for view in embedder.scheduler.residents()] == [None]


@pytest.mark.parametrize("path", ROUTES)
async def test_a_model_that_writes_text_gets_a_second_worker_for_its_embeddings(gateway: Running, path: str) -> None:
    writer = await gateway.load()
    await gateway.post(path, {"model": MODEL})
    embedder = gateway.launcher.workers[-1]
    for _ in range(2):
        sent = gateway.send("POST", path, json={"model": MODEL, ROUTES[path]: "hello"})
        exchange = await within(embedder.next_exchange())
        assert isinstance(exchange, ChannelExchange)
        assert exchange.profile.capabilities == ("embedding",)
        exchange.reply(MADE)
        assert (await sent).content == MADE
    assert gateway.launcher.workers == [writer, embedder]
    assert (writer.manifest.embeds, embedder.manifest.embeds) == (False, True)
    listed = (await gateway.get("/api/ps?all=true")).json()["models"]
    assert sorted((item["name"], item.get("embeds", False)) for item in listed) == [(MODEL, False), (MODEL, True)]
    (model,) = (await gateway.get("/api/ps")).json()["models"]
    assert (model["name"], model["size"], model["size_vram"]) == (MODEL, 2000, 1600)
    assert {item["digest"] for item in listed} == {model["digest"]}


async def test_both_workers_of_a_model_end_when_it_is_unloaded(gateway: Running) -> None:
    await gateway.load()
    await gateway.post("/api/embed", {"model": MODEL})
    assert len(gateway.scheduler.residents()) == 2
    await gateway.post("/api/generate", {"model": MODEL, "keep_alive": 0})
    assert not gateway.scheduler.residents()


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("text", ["hello", ""])
async def test_a_model_that_only_ranks_makes_no_embeddings_and_is_not_loaded(
    gateway: Running, tmp_path: Path, path: str, text: str
) -> None:
    ranker = {"architectures": ["BertForSequenceClassification"], "model_type": "bert", "num_labels": 1}
    gateway.store.put(make_manifest("ranker", write_snapshot(tmp_path / "ranker", config=ranker)))
    body = {"model": "ranker", ROUTES[path]: text}
    assert await refusal(gateway, path, body) == (400, '"ranker" does not support embeddings')
    assert not gateway.launcher.workers


@pytest.mark.parametrize(
    ("path", "body", "verb"),
    [
        ("/api/generate", {"prompt": "hi"}, "generate"),
        ("/api/generate", {}, "generate"),
        ("/api/chat", {"messages": [{"role": "user", "content": "hi"}]}, "chat"),
        ("/api/chat", {}, "chat"),
    ],
)
async def test_a_model_that_makes_embeddings_writes_no_text_and_is_not_loaded(
    embedder: Running, path: str, body: dict[str, Any], verb: str
) -> None:
    assert await refusal(embedder, path, {"model": "minilm", **body}) == (400, f'"minilm" does not support {verb}')
    assert not embedder.launcher.workers


# As Ollama 0.24.0 answered, but for the second, which contract §1.4 and §1.5 state.
@pytest.mark.parametrize(
    ("path", "body", "status", "error"),
    [
        ("/api/embed", {"input": "x"}, 404, "model '' not found"),
        ("/api/embed", {"model": "nope", "input": "x"}, 404, 'model "nope" not found, try pulling it first'),
        ("/api/embed", {"model": MODEL, "input": 5}, 400, "invalid input type"),
        ("/api/embed", {"input": 5}, 400, "invalid input type"),
        ("/api/embed", b"", 400, "missing request body"),
        ("/api/embeddings", {"prompt": "x"}, 400, "model is required"),
        ("/api/embeddings", {"model": "nope", "prompt": "x"}, 404, 'model "nope" not found, try pulling it first'),
        ("/api/embeddings", b"", 400, "missing request body"),
        ("/api/embed", {"model": "a b", "input": "x"}, 400, "invalid model name"),
        ("/api/embed", {"model": "minilm", "options": {"seed": "x"}}, 400, 'option "seed" must be of type integer'),
    ],
)  # fmt: skip
async def test_what_cannot_be_served_is_refused_in_ollama_s_words(
    embedder: Running, path: str, body: bytes | dict[str, Any], status: int, error: str
) -> None:
    assert await refusal(embedder, path, body) == (status, error)
    assert not embedder.launcher.workers
