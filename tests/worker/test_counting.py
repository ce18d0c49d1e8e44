"""Token counts of vLLM's own routes: at `EngineClient.generate` of vLLM 0.26 to 0.33, in the vLLM that is installed."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import AsyncGenerator, Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.anyio,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore"),  # what vLLM's imports warn of is not ours
]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def counting() -> Any:
    return importlib.import_module("vllama.worker.counting")


def kind(name: str) -> Any:
    return getattr(importlib.import_module("vllm.sampling_params").RequestOutputKind, name)


def output(*choices: Sequence[int], finished: bool = False) -> Any:
    outputs = [SimpleNamespace(index=index, token_ids=ids) for index, ids in enumerate(choices)]
    return SimpleNamespace(prompt_token_ids=[1] * 30, num_cached_tokens=20, outputs=outputs, finished=finished)


class Client:
    """An engine's client with a script."""

    def __init__(self, *outputs: Any) -> None:
        self.outputs = outputs
        self.is_closed = False

    async def generate(self, prompt: str, sampling_params: Any, request_id: str) -> AsyncGenerator[Any, None]:
        try:
            for item in self.outputs:
                yield item
        finally:
            self.is_closed = True


def asked(client: Client, output_kind: str) -> AsyncGenerator[Any, None]:
    return client.generate("hi", SimpleNamespace(output_kind=kind(output_kind)), "1")


@pytest.mark.parametrize(
    ("output_kind", "outputs", "expected"),
    [
        ("DELTA", [output([1]), output([2, 3]), output([], finished=True)], 3),
        ("DELTA", [output([1], [1, 2]), output([2], [3], finished=True)], 5),
        ("CUMULATIVE", [output([1]), output([1, 2]), output([1, 2, 3], finished=True)], 3),
        ("FINAL_ONLY", [output([1, 2, 3], [4], finished=True)], 4),
    ],
)
async def test_each_kind_of_output_is_counted_once(output_kind: str, outputs: list[Any], expected: int) -> None:
    client, counter = Client(*outputs), counting().Counter()
    counting().count_requests(client)
    counter.start()
    assert [item async for item in asked(client, output_kind)] == outputs
    assert counter.counts == (30, 20, expected)


async def test_a_request_that_is_not_counted_gets_the_generator_of_vllm_itself() -> None:
    client = Client(output([1], finished=True))
    counting()._counter.set(None)
    counting().count_requests(client)
    outputs: Any = asked(client, "DELTA")
    assert outputs.__name__ == "generate"


async def test_closing_a_counted_request_closes_it_in_the_engine_and_keeps_what_was_counted() -> None:
    client, counter = Client(output([1]), output([2])), counting().Counter()
    counting().count_requests(client)
    counter.start()
    outputs = asked(client, "DELTA")
    await anext(outputs)
    await outputs.aclose()
    assert client.is_closed
    assert counter.counts == (30, 20, 1)


Sent = list[dict[str, Any]]


@pytest.fixture
def sent() -> Sent:
    return []


@pytest.fixture
def send(sent: Sent) -> Callable[[Any], Any]:
    counter = counting().Counter()
    counter.add(importlib.import_module("vllama.protocol.token_counts").TokenCounts(30, 20, 7))

    async def keep(message: Any) -> None:
        sent.append(message)

    result: Callable[[Any], Any] = counter.sending(keep)
    return result


def start(content_type: bytes) -> dict[str, Any]:
    return {"type": "http.response.start", "status": 200, "headers": [(b"content-type", content_type)]}


def body(data: bytes, *, more: bool) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


async def test_a_complete_reply_has_its_counts_in_a_header(send: Any, sent: Sent) -> None:
    await send(start(b"application/json"))
    await send(body(b"{}", more=False))
    assert sent[0]["headers"][1] == (b"x-vllama-tokens", b"30 20 7")
    assert sent[1:] == [body(b"{}", more=False)]


@pytest.mark.parametrize("last", [b"", b"data: [DONE]\n\n"])
async def test_a_stream_has_its_counts_in_a_last_chunk_of_their_own(send: Any, sent: Sent, last: bytes) -> None:
    await send(start(b"text/event-stream; charset=utf-8"))
    await send(body(b"data: {}\n\n", more=True))
    await send(body(last, more=False))
    assert sent[0]["headers"] == [(b"content-type", b"text/event-stream; charset=utf-8")]
    expected = [body(b"data: {}\n\n", more=True), *([body(last, more=True)] if last else [])]
    assert sent[1:] == [*expected, body(b": vllama-tokens 30 20 7\n\n", more=False)]


def test_vllms_client_takes_the_sampling_parameters_second() -> None:
    client = importlib.import_module("vllm.engine.protocol").EngineClient
    assert list(inspect.signature(client.generate).parameters)[1:4] == ["prompt", "sampling_params", "request_id"]
    outputs = importlib.import_module("vllm.outputs")
    assert {"prompt_token_ids", "num_cached_tokens", "outputs", "finished"} <= set(
        inspect.signature(outputs.RequestOutput).parameters
    )
