"""What a stream's client gets: each record by itself, however much one step of the engine brought."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from vllama.ollama.replies import ChatReplies, Clock, MadeCall
from vllama.protocol.token_counts import TokenCounts

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

REQUEST = SimpleNamespace(logprobs=False, top_logprobs=0, model="m")


class Writes:
    """Keeps what is written to a client."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.ends: list[bool] = []

    def add_headers(self, headers: tuple[tuple[bytes, bytes], ...]) -> None:
        """Take headers."""

    def count(self, counts: TokenCounts) -> None:
        assert not any(self.ends)  # before the end

    async def reply(self, status: int, content_type: str, body: bytes) -> None:
        raise AssertionError("the reply is a stream")

    async def start(self, content_type: str) -> None:
        """Take the start."""

    async def write(self, body: bytes, *, last: bool) -> None:
        self.written.append(body)
        self.ends.append(last)

    async def fail(self, error: Exception) -> None:
        raise error


class Parser:
    """Says all at once what it was told to."""

    def __init__(self, piece: Any) -> None:
        self._piece = piece

    def delta(self, text: str, ids: Any, *, finished: bool) -> Any:
        return self._piece


def streamed(piece: Any) -> Writes:
    """Stream one output that ends the reply and is parsed into this piece."""
    from vllama.worker.timing import Stopwatch
    from vllama.worker.transcript import Transcript

    completion = SimpleNamespace(text="x", token_ids=[1], finish_reason="stop", stop_reason=None)

    async def outputs() -> AsyncGenerator[Any, None]:
        yield SimpleNamespace(outputs=[completion], finished=True, metrics=None, num_cached_tokens=None)

    writes = Writes()
    rendered: Any = SimpleNamespace(parsed=piece and SimpleNamespace(output=Parser(piece)), token_ids=[1], text_ids=[1])
    request: Any = REQUEST
    transcript = Transcript(
        request=request,
        replies=ChatReplies("m", Clock()),
        rendered=rendered,
        engine=Any,  # type: ignore[arg-type]  # nothing is tokenized
        stopwatch=Stopwatch(0),
        returns_context=False,
    )
    transcript.stopwatch.submit()
    asyncio.run(transcript.stream(outputs(), writes))
    return writes


def test_thinking_text_calls_and_the_end_of_one_step_are_written_one_by_one() -> None:
    from vllama.worker.closed_calls import Piece

    calls = (MadeCall("call_a", 0, "f", {}), MadeCall("call_b", 1, "g", {}))
    writes = streamed(Piece("text", "thinking", calls))

    records = [orjson.loads(line) for line in writes.written]
    assert all(line.endswith(b"\n") for line in writes.written)
    assert [list(record["message"]) for record in records] == [
        ["role", "content", "thinking"],
        ["role", "content"],
        ["role", "content", "tool_calls"],
        ["role", "content", "tool_calls"],
        ["role", "content"],
    ]
    made = [call for record in records for call in record["message"].get("tool_calls", ())]
    assert [(call["id"], call["function"]["index"]) for call in made] == [("call_a", 0), ("call_b", 1)]
    assert [record["done"] for record in records] == writes.ends == [False] * 4 + [True]


def test_the_last_text_and_the_end_are_written_one_by_one() -> None:
    records = [orjson.loads(line) for line in streamed(None).written]
    assert [(record["message"]["content"], record["done"]) for record in records] == [("x", False), ("", True)]
