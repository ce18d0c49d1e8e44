"""One identity for each item of a streamed response.

vLLM parses a streamed reply a second time for its last event, `response.completed`, whose items then have other ids
than those that were streamed. Clients pair a call with its result by `call_id`: one that reads both sees two calls.
Written against vLLM 0.26, 0.32 and 0.33, whose `OpenAIServingResponses.responses_stream_generator` yields the events;
`tests/worker/test_streamed_items.py` says what of it is used.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import Any

_IDS = ("id", "call_id")


def keep_ids(responses: Any) -> None:
    """Let the last event of a stream have the items' ids of the events before it."""
    of_vllm = responses.responses_stream_generator

    async def with_one_identity(*arguments: Any, **named: Any) -> AsyncGenerator[Any, None]:
        streamed: list[Any] = []
        async with aclosing(of_vllm(*arguments, **named)) as events:
            async for event in events:
                if event.type == "response.output_item.done":
                    streamed.append(event.item)
                elif event.type == "response.completed":
                    _give_ids(streamed, event.response.output)
                yield event

    responses.responses_stream_generator = with_one_identity


def _give_ids(streamed: Iterable[Any], complete: Iterable[Any]) -> None:
    """Give each complete item the ids of the streamed item of its type and place among these."""
    waiting: defaultdict[str, deque[Any]] = defaultdict(deque)
    for item in streamed:
        waiting[item.type].append(item)
    for item in complete:
        if waiting[item.type]:
            known = waiting[item.type].popleft()
            for name in _IDS:
                if getattr(known, name, None) and hasattr(item, name):
                    setattr(item, name, getattr(known, name))
