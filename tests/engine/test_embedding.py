"""Embeddings of a real model, all-MiniLM-L6-v2, beside a model that writes text."""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import ollama
import openai
import pytest
from vectors import cosine

from engine.server import Server
from vllama.store.model_store import ModelStore

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

WIDTH = 384
CONTEXT = 256
LONG = "word " * 400

# The first numbers of the vectors on the model's card, which come from sentence-transformers in float32.
CARD = {
    "This is an example sentence": (0.0676, 0.0635, 0.0487, 0.0793),
    "Each sentence is converted": (0.0864, 0.1027, 0.0053, 0.0020),
}


@pytest.fixture(scope="module")
def both(store: ModelStore, minilm: str, tiny: str) -> Iterator[Server]:
    """A server with an embedding model and a chat model loaded."""
    running = Server(store.root)
    try:
        assert running.ask("/api/embed", {"model": minilm}) == {"model": minilm, "embeddings": []}
        running.load(tiny)
        yield running
    finally:
        running.close()


@pytest.fixture
def client(both: Server) -> Iterator[ollama.Client]:
    made = ollama.Client(host=both.url, timeout=120)
    yield made
    made._client.close()


def dot(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(one, other, strict=True))


def test_an_empty_input_has_loaded_it_beside_the_other_model(both: Server, minilm: str, tiny: str) -> None:
    assert set(both.loaded()) == {minilm, tiny}
    assert {model["name"]: model["context_length"] for model in both.client.get("/api/ps").json()["models"]}[
        minilm
    ] == CONTEXT


def test_the_vectors_are_those_of_the_model_s_card(both: Server, minilm: str) -> None:
    made = both.ask("/api/embed", {"model": minilm, "input": list(CARD)})["embeddings"]
    for vector, known in zip(made, CARD.values(), strict=True):
        assert vector[: len(known)] == pytest.approx(known, abs=1e-4)


def test_every_vector_has_length_one_and_the_model_s_width(both: Server, minilm: str) -> None:
    made = both.ask("/api/embed", {"model": minilm, "input": ["a", "b c d", LONG, "", "日本語 🦙"]})["embeddings"]
    assert [len(vector) for vector in made] == [WIDTH] * 5
    assert [dot(vector, vector) for vector in made] == pytest.approx([1] * 5, abs=1e-5)


def test_a_batch_keeps_the_order_and_gives_what_single_requests_give(both: Server, minilm: str) -> None:
    texts = [f"{'very ' * (index % 7)}different sentence number {index}" for index in range(64)]
    batch = both.ask("/api/embed", {"model": minilm, "input": texts})
    assert len(batch["embeddings"]) == len(texts)
    for index in (0, 1, 17, 63):
        (alone,) = both.ask("/api/embed", {"model": minilm, "input": texts[index]})["embeddings"]
        assert cosine(batch["embeddings"][index], alone) > 0.9999
        assert max(cosine(batch["embeddings"][other], alone) for other in (2, 18, 62)) < 0.999


def test_the_reply_counts_the_tokens_with_their_special_ones(both: Server, minilm: str) -> None:
    reply = both.ask("/api/embed", {"model": minilm, "input": ["hello world", "hello"]})
    assert list(reply) == ["model", "embeddings", "total_duration", "load_duration", "prompt_eval_count"]
    assert reply["prompt_eval_count"] == 4 + 3
    assert reply["total_duration"] > reply["load_duration"] > 0


def test_dimensions_cut_and_normalise_again(both: Server, minilm: str) -> None:
    body = {"model": minilm, "input": "hello world"}
    (whole,) = both.ask("/api/embed", body)["embeddings"]
    (cut,) = both.ask("/api/embed", {**body, "dimensions": 8})["embeddings"]
    length = math.sqrt(dot(whole[:8], whole[:8]))
    assert cut == pytest.approx([value / length for value in whole[:8]], abs=1e-6)
    for without_effect in (0, -1, WIDTH, 10_000):
        assert len(both.ask("/api/embed", {**body, "dimensions": without_effect})["embeddings"][0]) == WIDTH


def test_what_is_too_long_loses_its_end_and_keeps_its_special_tokens(both: Server, minilm: str) -> None:
    long = both.ask("/api/embed", {"model": minilm, "input": LONG})
    fitting = both.ask("/api/embed", {"model": minilm, "input": "word " * (CONTEXT - 2), "truncate": False})
    assert long["prompt_eval_count"] == fitting["prompt_eval_count"] == CONTEXT
    assert cosine(long["embeddings"][0], fitting["embeddings"][0]) > 0.9999


def test_num_ctx_makes_the_context_smaller(both: Server, minilm: str) -> None:
    body = {"model": minilm, "input": "one two three four five six", "options": {"num_ctx": 5}}
    assert both.ask("/api/embed", body)["prompt_eval_count"] == 5
    (cut,) = both.ask("/api/embed", body)["embeddings"]
    (short,) = both.ask("/api/embed", {"model": minilm, "input": "one two three"})["embeddings"]
    assert cosine(cut, short) > 0.9999


def test_without_truncation_what_is_too_long_is_refused(both: Server, minilm: str) -> None:
    refused = both.refusal("/api/embed", {"model": minilm, "input": ["short", LONG], "truncate": False})
    assert refused == (400, "the input length exceeds the context length")
    refused = both.refusal("/api/embed", {"model": minilm, "input": "a", "options": {"num_ctx": 2}})
    assert refused == (400, "input after truncation exceeds maximum context length")


def test_the_old_route_gives_the_vector_as_the_model_makes_it(both: Server, minilm: str) -> None:
    raw = both.ask("/api/embeddings", {"model": minilm, "prompt": "hello world"})
    (unit,) = both.ask("/api/embed", {"model": minilm, "input": "hello world"})["embeddings"]
    assert list(raw) == ["embedding"]
    assert dot(raw["embedding"], raw["embedding"]) > 4
    assert cosine(raw["embedding"], unit) > 0.999999


def test_similar_sentences_are_closer_than_others(both: Server, minilm: str) -> None:
    texts = ["A cat sits on the mat.", "A kitten rests on a rug.", "Interest rates rose again in March."]
    cat, kitten, rates = both.ask("/api/embed", {"model": minilm, "input": texts})["embeddings"]
    assert cosine(cat, kitten) > 0.5
    assert cosine(cat, rates) < 0.2


def test_an_embedding_model_refuses_to_write(both: Server, minilm: str) -> None:
    assert both.refusal("/api/generate", {"model": minilm, "prompt": "hi"}) == (
        400, f'"{minilm}" does not support generate',
    )  # fmt: skip
    assert both.refusal("/api/chat", {"model": minilm}) == (400, f'"{minilm}" does not support chat')


def test_both_models_answer_at_the_same_time(both: Server, minilm: str, tiny: str) -> None:
    generate = {"model": tiny, "prompt": "Hi", "options": {"num_predict": 32, "temperature": 0}}
    with both.stream("/api/generate", generate) as records, ThreadPoolExecutor(4) as pool:
        first = next(records)
        texts = [[f"text {number}", "and another"] for number in range(8)]
        replies = list(pool.map(lambda text: both.ask("/api/embed", {"model": minilm, "input": text}), texts))
        *_, last = [first, *records]
    assert last["done"] is True
    assert [len(reply["embeddings"]) for reply in replies] == [2] * 8


def test_the_ollama_client_embeds(client: ollama.Client, minilm: str) -> None:
    one = client.embed(minilm, "hello world")
    several = client.embed(minilm, ["hello world", "goodbye"], dimensions=16, keep_alive="10m")
    old = client.embeddings(minilm, "hello world")
    assert one.model == minilm
    assert one.prompt_eval_count == 4
    assert [len(vector) for vector in several.embeddings] == [16, 16]
    assert cosine(one.embeddings[0], old.embedding) > 0.999999
    assert client.embed(minilm, []).embeddings == []


def test_the_ollama_client_is_told_what_cannot_be(client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match='model "nope" not found, try pulling it first') as missing:
        client.embed("nope", "text")
    assert missing.value.status_code == 404


def test_show_and_tags_tell_that_it_makes_embeddings(client: ollama.Client, minilm: str) -> None:
    shown = client.show(minilm)
    assert shown.capabilities == ["embedding"]
    assert shown.modelinfo
    assert shown.modelinfo["general.architecture"] == "bert"
    assert (shown.modelinfo["bert.embedding_length"], shown.modelinfo["bert.context_length"]) == (WIDTH, CONTEXT)
    (listed,) = (model for model in client.list().models if model.model == minilm)
    assert listed.details
    assert (listed.details.family, listed.details.families) == ("bert", ["bert"])
    assert (listed.details.parameter_size, listed.details.quantization_level) == ("22.71M", "F32")


def test_openai_s_route_gives_the_same_vectors(both: Server, minilm: str) -> None:
    (unit,) = both.ask("/api/embed", {"model": minilm, "input": "hello world"})["embeddings"]
    with openai.OpenAI(base_url=f"{both.url}/v1", api_key="none") as client:
        made = client.embeddings.create(model=minilm, input=["hello world", "other"])
        encoded = client.embeddings.create(model=minilm, input="hello world", encoding_format="base64")
    assert [item.index for item in made.data] == [0, 1]
    assert made.data[0].embedding == pytest.approx(unit, abs=1e-5)
    assert made.usage.prompt_tokens == 4 + 3
    packed: object = encoded.data[0].embedding
    assert isinstance(packed, str)
    assert struct.unpack(f"<{WIDTH}f", base64.b64decode(packed)) == pytest.approx(unit, abs=1e-5)
