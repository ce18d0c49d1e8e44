"""The prompt of `/v1/completions`, which our own route in the worker makes."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from vllama.errors import RequestError, VllamaError
from vllama.protocol.frames import Form
from vllama.protocol.profile import Profile
from vllama.protocol.token_counts import TokenCounts
from vllama.worker.prompt import PromptRoute

pytestmark = pytest.mark.anyio

PROFILE = Profile("registry.ollama.ai/library/m:latest", ("completion",))


class Sink:
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[Any] = []

    def add_headers(self, headers: tuple[tuple[bytes, bytes], ...]) -> None:
        raise AssertionError

    def count(self, counts: TokenCounts) -> None:
        raise AssertionError

    async def reply(self, status: int, content_type: str, body: bytes) -> None:
        self.said.append((status, orjson.loads(body)))

    async def start(self, content_type: str) -> None:
        raise AssertionError

    async def write(self, body: bytes, *, last: bool) -> None:
        raise AssertionError

    async def fail(self, error: VllamaError) -> None:
        self.said.append(str(error))


class Generate:
    """A generation route that has this to say of every prompt."""

    def __init__(self, outcome: list[int] | Exception) -> None:
        self._outcome = outcome
        self.asked: list[Any] = []

    async def prompt_ids(self, body: bytes, profile: Profile) -> list[int]:
        self.asked.append((orjson.loads(body), profile))
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome


async def said(generate: Any) -> Any:
    sink = Sink()
    await PromptRoute(generate).answer(b'{"prompt":"hi"}', 0, sink, PROFILE, Form.UNCHECKED)
    (answer,) = sink.said
    return answer


async def test_it_is_a_list_of_token_ids() -> None:
    generate = Generate([1, 2])
    assert await said(generate) == (200, [1, 2])
    assert generate.asked == [({"prompt": "hi"}, PROFILE)]


async def test_why_there_is_none_is_told() -> None:
    assert await said(Generate(RequestError("no such role"))) == "no such role"


async def test_a_bug_is_told_without_its_traceback() -> None:
    assert await said(Generate(ZeroDivisionError("x"))) == (
        "an error was encountered while running the model: internal error"
    )
