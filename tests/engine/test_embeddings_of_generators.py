"""Embeddings of SmolLM2, which generates: from a second worker, pooled as llama.cpp does (contract §1.4)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ollama
import openai
import pytest
from replay.recording import exchanges
from vectors import cosine

from engine.server import Server
from vllama.names import ModelName
from vllama.store.model_store import ModelStore
from vllama.store.pull import pull

pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore:::transformers"),
    pytest.mark.filterwarnings("ignore:::torch"),
]

MODEL = "smollm2:135m"
TEXTS = ["hello world", "Why is the sky blue?", "Interest rates rose again in March, and nobody was surprised. " * 8]


def embedded(server: Server, **fields: Any) -> list[list[float]]:
    vectors: list[list[float]] = server.ask("/api/embed", {"model": MODEL, **fields})["embeddings"]
    return vectors


@pytest.fixture(scope="module")
def server(store: ModelStore) -> Iterator[Server]:
    """A server of its own, because its second worker stays."""
    running = Server(store.root)
    yield running
    running.close()


@pytest.fixture(scope="module")
def last_states(gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> list[list[float]]:
    """The hidden state at the last token of each text, after the last norm, by transformers in float32."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    decoded, name = ModelStore(tmp_path_factory.mktemp("decoded"), "bf16"), ModelName.parse(MODEL)
    for _ in pull(decoded, name, from_path=gguf):  # transformers cannot read repacked weights
        pass
    snapshot = decoded.get(name).snapshot
    tokenizer = AutoTokenizer.from_pretrained(snapshot)
    model = AutoModel.from_pretrained(snapshot, dtype=torch.float32).eval()
    with torch.no_grad():
        return [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0, -1].tolist() for text in TEXTS]


def test_vectors_are_the_last_token_s_state_as_transformers_computes_it(
    server: Server, last_states: list[list[float]]
) -> None:
    vectors = embedded(server, input=TEXTS)
    assert [math.hypot(*vector) for vector in vectors] == pytest.approx([1.0] * 3, abs=1e-5)
    assert min(map(cosine, vectors, last_states)) > 0.998  # bfloat16 against float32
    assert cosine(vectors[0], last_states[1]) < 0.9


def test_vectors_point_where_ollama_s_do(server: Server) -> None:
    """Ollama 0.24.0 made them of the same weights in four bits."""
    recorded = json.loads(exchanges()["300_embed_string"].response.body)["embeddings"][0]
    assert cosine(embedded(server, input="hello world")[0], recorded) > 0.97


def test_the_old_route_gives_the_vector_as_the_model_makes_it(server: Server, last_states: list[list[float]]) -> None:
    raw = server.ask("/api/embeddings", {"model": MODEL, "prompt": TEXTS[0]})["embedding"]
    assert math.hypot(*raw) == pytest.approx(math.hypot(*last_states[0]), rel=0.02)


def test_clients_get_vectors_of_a_model_that_chats(server: Server) -> None:
    (unit,) = embedded(server, input=TEXTS[1])
    with ollama.Client(server.url) as client:
        theirs = client.embed(MODEL, TEXTS[1]).embeddings[0]
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as other:
        of_openai = other.embeddings.create(model=MODEL, input=TEXTS[1]).data[0].embedding
    assert cosine(unit, theirs) > 0.99999
    assert cosine(unit, of_openai) > 0.99999


def test_the_model_goes_on_writing_text_beside_its_vectors(server: Server) -> None:
    embedded(server, input="hello")
    record = server.ask("/api/generate", {"model": MODEL, "prompt": "Hi", "options": {"num_predict": 4}})
    assert record["eval_count"] == 4
    assert server.loaded() == [MODEL]
    rows = server.client.get("/api/ps?all=true").json()["models"]
    assert sorted((row["name"], row.get("embeds", False)) for row in rows) == [(MODEL, False), (MODEL, True)]
    assert len(server.workers()) == 2
