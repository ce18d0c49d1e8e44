"""Ranking and classifying: a cross-encoder of random weights, and an embedding model, in the real engine."""

from __future__ import annotations

import base64
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.server import Server
from vllama.names import ModelName
from vllama.store.model_store import ModelStore
from vllama.store.pull import pull

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

_BUILD = Path(__file__).parents[1] / "tiny_cross_encoder.py"
QUERY = "What is the capital of France?"
DOCUMENTS = ["Paris is the capital of France.", "Bread is made of flour.", "France has a capital."]


@pytest.fixture(scope="module")
def ranker(store: ModelStore, minilm: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a random cross-encoder in the store."""
    snapshot = tmp_path_factory.mktemp("ranker")
    tokenizer_from = store.get(ModelName.parse(minilm)).snapshot
    subprocess.run([sys.executable, _BUILD, tokenizer_from, snapshot], check=True, capture_output=True)
    name = ModelName.parse("ranker")
    for _ in pull(store, name, from_path=snapshot):
        pass
    return name.display


@pytest.fixture(scope="module")
def server_of_pools(store: ModelStore, ranker: str, minilm: str) -> Iterator[Server]:
    running = Server(store.root)
    yield running
    running.close()


def ranked(server: Server, path: str, **fields: Any) -> Any:
    reply = server.post(path, {"query": QUERY, "documents": DOCUMENTS, **fields})
    assert reply.status_code == 200, reply.text
    return reply.json()


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_a_cross_encoder_ranks(server_of_pools: Server, ranker: str, path: str) -> None:
    answer = ranked(server_of_pools, path, model="Ranker", top_n=2)
    scores = [result["relevance_score"] for result in answer["results"]]
    assert answer["model"] == "Ranker"
    assert len(scores) == 2
    assert scores == sorted(scores, reverse=True)
    assert len({round(score, 6) for score in scores}) == 2


def test_a_cross_encoder_classifies_and_scores_and_does_nothing_else(server_of_pools: Server, ranker: str) -> None:
    classified = server_of_pools.post("/classify", {"model": ranker, "input": QUERY}).json()
    assert len(classified["data"][0]["probs"]) == 1
    scored = server_of_pools.post("/score", {"model": ranker, "text_1": QUERY, "text_2": DOCUMENTS}).json()
    assert len(scored["data"]) == 3
    reply = server_of_pools.post(
        "/v1/chat/completions", {"model": ranker, "messages": [{"role": "user", "content": "x"}]}
    )
    assert (reply.status_code, reply.json()["error"]["message"]) == (400, '"ranker:latest" does not support chat')
    refused = server_of_pools.refusal("/api/embed", {"model": ranker, "input": "x"})
    assert refused == (400, '"ranker:latest" does not support embeddings')
    assert server_of_pools.client.post("/api/show", json={"model": ranker}).json()["capabilities"] == ["rerank"]


def test_an_embedding_model_ranks_by_the_cosine_of_its_vectors(server_of_pools: Server, minilm: str) -> None:
    results = ranked(server_of_pools, "/v1/rerank", model=minilm)["results"]
    question, *vectors = server_of_pools.ask("/api/embed", {"model": minilm, "input": [QUERY, *DOCUMENTS]})[
        "embeddings"
    ]
    cosines = [sum(x * y for x, y in zip(question, vector, strict=True)) for vector in vectors]
    assert {result["index"]: result["relevance_score"] for result in results} == pytest.approx(
        dict(enumerate(cosines)), abs=1e-4
    )
    assert [result["index"] for result in results] == sorted(range(3), key=cosines.__getitem__, reverse=True)


def test_embeddings_can_be_short_and_in_base64(server_of_pools: Server, minilm: str) -> None:
    asked = {"model": minilm, "input": ["hello world", ""], "dimensions": 4}
    floats = server_of_pools.post("/v1/embeddings", asked).json()
    packed = server_of_pools.post("/v1/embeddings", {**asked, "encoding_format": "base64"}).json()
    native = server_of_pools.ask("/api/embed", asked)["embeddings"]

    for index, vector in enumerate(native):
        assert floats["data"][index]["embedding"] == pytest.approx(vector, abs=1e-5)
        unpacked = struct.unpack("<4f", base64.b64decode(packed["data"][index]["embedding"]))
        assert list(unpacked) == pytest.approx(vector, abs=1e-5)
    assert floats["usage"] == packed["usage"] == {"prompt_tokens": 6, "total_tokens": 6}


@pytest.mark.parametrize(
    ("fields", "text"),
    [({"input": [1, 2]}, "invalid input type"), ({"input": None}, "invalid input"), ({"input": []}, "invalid input")],
)
def test_embeddings_refuse_what_ollama_refuses(
    server_of_pools: Server, minilm: str, fields: dict[str, Any], text: str
) -> None:
    reply = server_of_pools.post("/v1/embeddings", {"model": minilm, **fields})
    error = {"message": text, "type": "invalid_request_error", "param": None, "code": None}
    assert (reply.status_code, reply.json()) == (400, {"error": error})


def test_a_text_that_is_too_long_loses_its_end(server_of_pools: Server, minilm: str) -> None:
    reply = server_of_pools.post("/v1/embeddings", {"model": minilm, "input": "word " * 400})
    assert reply.json()["usage"]["prompt_tokens"] == 256
