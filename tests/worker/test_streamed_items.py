"""Items of a streamed response have one identity; written against the events of vLLM 0.26, 0.32 and 0.33."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from vllama.worker.streamed_items import keep_ids

Item = SimpleNamespace


def call(identity: str, call_id: str) -> Item:
    return Item(type="function_call", id=identity, call_id=call_id)


def done(item: Item) -> Item:
    return Item(type="response.output_item.done", item=item)


async def last_items(*events: Item) -> list[Item]:
    """The items of the last event, as clients get it."""

    async def of_vllm(request: object) -> AsyncIterator[Item]:
        for event in events:
            yield event

    responses = SimpleNamespace(responses_stream_generator=of_vllm)
    keep_ids(responses)
    seen = [event async for event in responses.responses_stream_generator("a request")]
    assert seen == list(events)
    items: list[Item] = seen[-1].response.output
    return items


def completed(*items: Item) -> Item:
    return Item(type="response.completed", response=SimpleNamespace(output=list(items)))


@pytest.mark.anyio
async def test_the_last_event_has_the_ids_that_were_streamed() -> None:
    thinking, text = Item(type="reasoning", id="rs_1"), Item(type="message", id="msg_1")
    streamed = [thinking, text, call("fc_1", "call_1"), call("fc_2", "call_2")]
    parsed_again = [Item(type="reasoning", id="rs_9"), Item(type="message", id="msg_9"), call("a", "b"), call("c", "d")]
    assert await last_items(*map(done, streamed), completed(*parsed_again)) == streamed


@pytest.mark.anyio
async def test_items_that_were_not_streamed_keep_their_own_ids() -> None:
    text = Item(type="message", id="msg_9")
    assert await last_items(done(call("fc_1", "call_1")), completed(text, call("a", "b"), call("c", "d"))) == [
        text,
        call("fc_1", "call_1"),
        call("c", "d"),
    ]


@pytest.mark.anyio
async def test_vllm_s_stream_ends_when_its_reader_leaves() -> None:
    ended = []

    async def of_vllm() -> AsyncIterator[Item]:
        try:
            yield done(call("fc_1", "call_1"))
            yield completed()
        finally:
            ended.append(True)

    responses = SimpleNamespace(responses_stream_generator=of_vllm)
    keep_ids(responses)
    stream = responses.responses_stream_generator()
    await anext(stream)
    await stream.aclose()
    assert ended == [True]


@pytest.mark.vllm
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore")  # what vLLM's imports warn of is not ours
def test_vllm_has_what_the_adapter_changes() -> None:
    serving = importlib.import_module("vllm.entrypoints.openai.responses.serving")
    kind = serving.OpenAIServingResponses
    assert inspect.isasyncgenfunction(kind.responses_stream_generator)
    assert "self.responses_stream_generator(" in inspect.getsource(kind)
    protocol: Any = importlib.import_module("vllm.entrypoints.openai.responses.protocol")
    assert protocol.ResponseCompletedEvent.model_fields["type"].annotation.__args__ == ("response.completed",)
    assert "output" in protocol.ResponsesResponse.model_fields
