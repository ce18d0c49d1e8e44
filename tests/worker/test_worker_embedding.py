"""The way from a body to a record, with a pooling engine whose vectors the test decides."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from vllama.errors import EngineError, VllamaError
from vllama.ollama.embedding import EmbeddingsRequest, EmbedRequest
from vllama.ollama.status import JSON, error_body, status_of
from vllama.protocol.frames import Form
from vllama.protocol.profile import Profile
from vllama.protocol.token_counts import TokenCounts
from vllama.worker.embedding import EmbeddingRoute

pytestmark = pytest.mark.anyio

SPECIAL_TOKENS = 2
CONTEXT = 8


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class LetterEngine:
    """One token for each letter between two special ones; a text's vector is `vectors[text]`, or its code points."""

    context_length = CONTEXT
    special_tokens = SPECIAL_TOKENS

    def __init__(self) -> None:
        self.vectors: dict[str, list[float]] = {}
        self.failing = ""
        self.at_work = 0
        self.most_at_work = 0
        self.aborted: list[str] = []

    async def tokenize(self, texts: Sequence[str], limit: int | None) -> list[dict[str, Any]]:
        kept = [text if limit is None else text[: limit - SPECIAL_TOKENS] for text in texts]
        return [{"text": text, "prompt_token_ids": [1, *map(ord, text), 2]} for text in kept]

    async def encode(self, prompt: dict[str, Any], request_id: str) -> Any:
        del request_id
        text = prompt["text"]
        self.at_work += 1
        self.most_at_work = max(self.most_at_work, self.at_work)
        try:
            if text and text == self.failing:
                raise EngineError("the engine is upset")
            for _ in range(10 * len(text)):  # longer texts take longer
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.aborted.append(text)
            raise
        finally:
            self.at_work -= 1
        return np.array(self.vectors.get(text, [*map(ord, text)]), np.float32)


class Kept:
    """A sink that keeps the one reply."""

    status = 0
    body: Any = None
    counts: TokenCounts | None = None

    def add_headers(self, headers: tuple[tuple[bytes, bytes], ...]) -> None:
        raise AssertionError

    def count(self, counts: TokenCounts) -> None:
        self.counts = counts

    async def reply(self, status: int, content_type: str, body: bytes) -> None:
        assert content_type == JSON
        self.status, self.body = status, json.loads(body)

    async def fail(self, error: VllamaError) -> None:
        await self.reply(status_of(error), JSON, error_body(str(error)))

    async def start(self, content_type: str) -> None:
        raise AssertionError(content_type)

    async def write(self, body: bytes, *, last: bool) -> None:
        raise AssertionError(body, last)


class Asker:
    """Posts to a route."""

    def __init__(self) -> None:
        self.engine = LetterEngine()
        self.parameters: dict[str, Any] = {}
        self.counts: TokenCounts | None = None

    async def ask(self, request: type[EmbedRequest] = EmbedRequest, **fields: Any) -> tuple[int, Any]:
        route = EmbeddingRoute(request)
        engine: Any = self.engine
        profile = Profile("m", ("embedding",), self.parameters)
        route.serve(engine, profile)
        sink = Kept()
        await route.answer(json.dumps({"model": "m", **fields}).encode(), 1, sink, profile)
        self.counts = sink.counts
        return sink.status, sink.body

    async def vectors(self, **fields: Any) -> list[list[float]]:
        status, body = await self.ask(**fields)
        assert status == 200, body
        vectors: list[list[float]] = body["embeddings"]
        return vectors

    async def refusal(self, **fields: Any) -> str:
        status, body = await self.ask(**fields)
        assert (status, list(body)) == (400, ["error"])
        return str(body["error"])


@pytest.fixture
def asker() -> Asker:
    return Asker()


async def test_every_vector_has_length_one(asker: Asker) -> None:
    asker.engine.vectors = {"a": [3, 4], "b": [0, -2]}
    assert await asker.vectors(input=["a", "b"]) == [[pytest.approx(0.6), pytest.approx(0.8)], [0, -1]]


async def test_inputs_are_embedded_all_at_once_and_come_back_in_order(asker: Asker) -> None:
    texts = ["eeee", "d", "ccc", "bb", "d"]
    asker.engine.vectors = {text: [1, len(text)] for text in texts}
    lengths = [round(y / x) for x, y in await asker.vectors(input=texts)]
    assert lengths == [4, 1, 3, 2, 1]
    assert asker.engine.most_at_work == len(texts)


async def test_fewer_dimensions_are_cut_and_normalised_again(asker: Asker) -> None:
    asker.engine.vectors = {"a": [3, 4, 12]}
    assert await asker.vectors(input="a", dimensions=2) == [[pytest.approx(0.6), pytest.approx(0.8)]]


@pytest.mark.parametrize("dimensions", [-1, 0, 3, 4, 1 << 40])
async def test_dimensions_that_cut_nothing_change_nothing(asker: Asker, dimensions: int) -> None:
    asker.engine.vectors = {"a": [3, 4, 12]}
    assert await asker.vectors(input="a", dimensions=dimensions) == await asker.vectors(input="a")


async def test_a_vector_of_zeros_stays_one(asker: Asker) -> None:
    asker.engine.vectors = {"a": [0, 0]}
    assert await asker.vectors(input="a") == [[0, 0]]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
async def test_a_vector_that_is_no_vector_is_refused(asker: Asker, bad: float) -> None:
    asker.engine.vectors = {"a": [1, bad]}
    assert await asker.refusal(input=["b", "a"]) == "embedding contains NaN or Inf values"


async def test_what_is_too_long_is_cut_at_the_model_s_context(asker: Asker) -> None:
    _, body = await asker.ask(input="abcdefghij")
    assert body["prompt_eval_count"] == CONTEXT
    assert body["embeddings"] == await asker.vectors(input="abcdef")


@pytest.mark.parametrize(("num_ctx", "tokens"), [(5, 5), (100, CONTEXT), (None, CONTEXT)])
async def test_num_ctx_makes_the_context_smaller_and_never_larger(
    asker: Asker, num_ctx: int | None, tokens: int
) -> None:
    _, body = await asker.ask(input="abcdefghij", options={"num_ctx": num_ctx})
    assert body["prompt_eval_count"] == tokens


@pytest.mark.parametrize("num_ctx", [0, -1])
@pytest.mark.parametrize(
    ("truncate", "error"),
    [
        (True, "input exceeds maximum context length and cannot be truncated further"),
        (False, "the input length exceeds the context length"),
    ],
)
async def test_a_num_ctx_of_zero_is_ollama_s_smallest_context_to_which_nothing_is_truncated(
    asker: Asker, num_ctx: int, error: str, *, truncate: bool
) -> None:
    fields: dict[str, Any] = {"options": {"num_ctx": num_ctx}, "truncate": truncate}
    _, body = await asker.ask(input="ab", **fields)
    assert body["prompt_eval_count"] == 4
    assert await asker.refusal(input="abc", **fields) == error


async def test_num_ctx_may_come_with_the_model(asker: Asker) -> None:
    asker.parameters = {"num_ctx": 5}
    _, body = await asker.ask(input="abcdefghij")
    assert body["prompt_eval_count"] == 5


async def test_a_context_that_holds_no_token_of_the_text_is_refused(asker: Asker) -> None:
    refusal = await asker.refusal(input="a", options={"num_ctx": SPECIAL_TOKENS})
    assert refusal == "input after truncation exceeds maximum context length"


async def test_without_truncation_what_is_too_long_is_refused(asker: Asker) -> None:
    refusal = await asker.refusal(input=["a", "abcdefg"], truncate=False)
    assert refusal == "the input length exceeds the context length"
    assert len(await asker.vectors(input="abcdef", truncate=False)) == 1


async def test_a_text_without_a_single_token_is_refused(asker: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(texts: Sequence[str], limit: int | None) -> list[dict[str, Any]]:
        return [{"text": text, "prompt_token_ids": []} for text in texts]

    monkeypatch.setattr(asker.engine, "tokenize", nothing)
    assert (await asker.refusal(input=[""])).startswith("no input provided")


async def test_the_count_is_that_of_all_inputs(asker: Asker) -> None:
    _, body = await asker.ask(input=["a", "bcd"])
    assert list(body) == ["model", "embeddings", "total_duration", "load_duration", "prompt_eval_count"]
    assert body["prompt_eval_count"] == 3 + 5
    assert asker.counts == TokenCounts(3 + 5)
    assert body["total_duration"] >= body["load_duration"] > 0


async def test_without_input_the_reply_is_empty(asker: Asker) -> None:
    assert await asker.ask(input=[]) == (200, {"model": "m", "embeddings": []})
    assert await asker.ask(EmbeddingsRequest) == (200, {"embedding": []})


async def test_the_old_route_gives_the_vector_as_it_is(asker: Asker) -> None:
    asker.engine.vectors = {"a": [3, 4]}
    assert await asker.ask(EmbeddingsRequest, prompt="a") == (200, {"embedding": [3, 4]})


async def test_one_failure_ends_the_request_and_aborts_the_other_inputs(asker: Asker) -> None:
    asker.engine.failing = "bb"
    assert await asker.ask(input=["aaaa", "bb", "ccc"]) == (500, {"error": "the engine is upset"})
    assert sorted(asker.engine.aborted) == ["aaaa", "ccc"]


async def test_a_client_that_leaves_aborts_all_inputs(asker: Asker) -> None:
    task = asyncio.create_task(asker.ask(input=["aaaa", "bbbb"]))
    while asker.engine.at_work < 2:
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})
    assert sorted(asker.engine.aborted) == ["aaaa", "bbbb"]


async def test_a_model_that_makes_no_embeddings_says_so_without_an_engine() -> None:
    route, sink = EmbeddingRoute(EmbedRequest), Kept()
    profile = Profile("m", ("completion",))
    route.serve(None, profile)
    await route.answer(b'{"model":"m","input":"a"}', 1, sink, profile)
    assert (sink.status, sink.body) == (400, {"error": '"m" does not support embeddings'})


async def test_what_the_gateway_has_checked_is_not_checked_again(asker: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    route, sink = EmbeddingRoute(EmbedRequest), Kept()
    profile = Profile("m", ("completion",))
    route.serve(None, profile)
    await route.answer(b'{"model":"m","input":"a"}', 1, sink, profile, Form.CHECKED)
    assert (sink.status, sink.body) == (500, {"error": "the engine is not ready; try again"})


async def test_a_bug_is_an_error_of_the_engine_and_tells_nothing(
    asker: Asker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(texts: Sequence[str], limit: int | None) -> list[dict[str, Any]]:
        raise KeyError("secret")

    monkeypatch.setattr(asker.engine, "tokenize", broken)
    status, body = await asker.ask(input="a")
    assert status == 500
    assert "secret" not in body["error"]
    assert "secret" in caplog.text


async def test_the_plugin_alone_knows_no_other_names_than_its_own() -> None:
    route = EmbeddingRoute(EmbedRequest)
    engine: Any = LetterEngine()
    profile = Profile("m", ("embedding",), served_names=frozenset({"mine"}))
    route.serve(engine, profile)
    for model, status in (("mine", 200), ("other", 404), ("", 404)):
        sink = Kept()
        await route.answer(json.dumps({"model": model, "input": "a"}).encode(), 1, sink, profile)
        assert sink.status == status
    assert sink.body == {"error": 'model "" not found, try pulling it first'}
