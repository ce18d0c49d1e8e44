"""Token counts of vLLM's own routes, whatever their replies say about usage.

They are counted where all routes meet, at `EngineClient.generate`, which is public and alike in vLLM 0.26 to 0.33, so
a stream is counted even if its client does not ask for usage. A request that is not counted runs vLLM's code unchanged.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from contextvars import ContextVar
from typing import Any

from vllm.sampling_params import RequestOutputKind

from vllama.asgi import Send
from vllama.protocol.token_counts import HEADER, MARK, TokenCounts

_counter: ContextVar[Counter | None] = ContextVar("counter", default=None)


class Counter:
    """The counts of one HTTP request, which may start several in the engine."""

    def __init__(self) -> None:
        self.counts = TokenCounts()

    def start(self) -> None:
        """Count what the current task, and those that it starts, ask of the engine."""
        _counter.set(self)

    def add(self, counts: TokenCounts) -> None:
        """Add the counts of one request to the engine."""
        self.counts = TokenCounts(*map(sum, zip(self.counts, counts, strict=True)))

    def sending(self, send: Send) -> Send:
        """Return a `send` that adds the counts to the reply: a header, or the last chunk of an event stream."""
        is_stream = False

        async def counted_send(message: Any) -> None:
            nonlocal is_stream
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", ()))
                is_stream = any(
                    name.lower() == b"content-type" and value.startswith(b"text/event-stream")
                    for name, value in headers
                )
                if not is_stream:
                    message = {**message, "headers": [*headers, (HEADER, self.counts.to_bytes())]}
            elif is_stream and not message.get("more_body"):
                if message.get("body"):
                    await send({**message, "more_body": True})
                message = {**message, "body": MARK + self.counts.to_bytes() + b"\n\n"}
            await send(message)

        return counted_send


def count_requests(client: Any) -> None:
    """Let the engine's client count the requests for which a Counter was started."""
    generate = client.generate

    def counting(*arguments: Any, **named: Any) -> Any:
        outputs = generate(*arguments, **named)
        counter = _counter.get()
        if counter is None:
            return outputs
        params = named.get("sampling_params") or arguments[1]
        return _counted(outputs, counter, is_delta=params.output_kind == RequestOutputKind.DELTA)

    client.generate = counting


async def _counted(
    outputs: AsyncGenerator[Any, None], counter: Counter, *, is_delta: bool
) -> AsyncGenerator[Any, None]:
    prompt = cached = 0
    written: dict[int, int] = {}
    try:
        async with aclosing(outputs):
            async for output in outputs:
                if not prompt:
                    prompt = len(output.prompt_token_ids or ())
                    cached = max(output.num_cached_tokens or 0, 0)
                for choice in output.outputs:
                    before = written.get(choice.index, 0) if is_delta else 0
                    written[choice.index] = before + len(choice.token_ids)
                if output.finished:
                    counter.add(TokenCounts(prompt, cached, sum(written.values())))
                    prompt, cached, written = 0, 0, {}
                yield output
    finally:
        counter.add(TokenCounts(prompt, cached, sum(written.values())))
