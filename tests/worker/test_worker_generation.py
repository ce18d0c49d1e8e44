"""One request through the route, with an engine that a test stops: what was begun in the engine is ended there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from vllama.errors import VllamaError
from vllama.protocol.profile import Profile
from vllama.protocol.token_counts import TokenCounts

if TYPE_CHECKING:
    from vllama.worker.generation import GenerationRoute

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.anyio,
    pytest.mark.filterwarnings("ignore"),
]

PROFILE = Profile("m", ("completion",))
BODY = b'{"model":"m","prompt":"hi","raw":true}'


class Engine:
    """Generates text for ever; `running` counts the requests whose output was not closed."""

    context_length = 4096
    longest_token = 100
    has_chat_template = False
    parsing = SimpleNamespace(thinks=False)

    def __init__(self) -> None:
        self.vision = self
        self.running = 0
        self.begun: list[AsyncGenerator[Any, None]] = []
        """Keeps the output of each request, as an engine may, so that nothing but a close ends it."""

    def generation_defaults(self) -> dict[str, Any]:
        return {}

    async def decode(self, images: Any) -> tuple[()]:
        return ()

    async def render_text(self, text: str, images: Any = ()) -> dict[str, Any]:
        return {"prompt_token_ids": [1, 2]}

    async def prepare(self, constraint: Any) -> None:
        """Do nothing: no grammar is made here."""

    def sampling_params(self, sampling: Any, **values: Any) -> SimpleNamespace:
        return SimpleNamespace()

    def generate(self, *arguments: Any, **more: Any) -> AsyncGenerator[Any, None]:
        self.begun.append(self._outputs())
        return self.begun[-1]

    async def _outputs(self) -> AsyncGenerator[Any, None]:
        self.running += 1
        try:
            while True:
                completion = SimpleNamespace(text="a", token_ids=[3], finish_reason=None, stop_reason=None)
                yield SimpleNamespace(outputs=[completion], finished=False, metrics=None, num_cached_tokens=1)
        finally:
            self.running -= 1


class SlowSink:
    """A client that takes no more than the start of a reply."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.is_full = asyncio.Event()
        self.failure = failure
        self.error: VllamaError | None = None
        self.counts: list[TokenCounts] = []

    def add_headers(self, headers: tuple[tuple[bytes, bytes], ...]) -> None:
        """Take the headers."""

    def count(self, counts: TokenCounts) -> None:
        self.counts.append(counts)

    async def start(self, content_type: str) -> None:
        """Take the start."""

    async def reply(self, status: int, content_type: str, body: bytes) -> None:
        raise AssertionError("the reply is a stream")

    async def write(self, body: bytes, *, last: bool) -> None:
        self.is_full.set()
        if self.failure:
            raise self.failure
        await asyncio.Event().wait()

    async def fail(self, error: VllamaError) -> None:
        self.error = error


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def route(engine: Any) -> GenerationRoute:
    from vllama.worker.adapters import Adapters
    from vllama.worker.dialects import Generate
    from vllama.worker.generation import GenerationRoute

    route = GenerationRoute(Generate(), Adapters())
    route.serve(engine, PROFILE)
    return route


async def test_a_body_over_http_beyond_the_maximum_is_refused_with_its_status() -> None:
    from vllama.worker.adapters import Adapters
    from vllama.worker.dialects import Generate
    from vllama.worker.generation import GenerationRoute

    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": BODY}

    async def send(message: Any) -> None:
        sent.append(message)

    await GenerationRoute(Generate(), Adapters(), len(BODY) - 1)({}, receive, send)
    assert sent[0]["status"] == 413
    assert b"request body too large" in sent[1]["body"]


async def test_a_request_cancelled_while_its_client_is_slow_is_ended_in_the_engine(
    route: GenerationRoute, engine: Engine
) -> None:
    sink = SlowSink()
    answer = asyncio.create_task(route.answer(BODY, 0, sink, PROFILE))
    await sink.is_full.wait()
    assert engine.running == 1
    answer.cancel()
    await asyncio.wait({answer})
    assert answer.cancelled()
    assert engine.running == 0
    assert sink.counts == [TokenCounts(2, 1, 1)]  # what it has cost


async def test_a_request_whose_reply_cannot_be_written_is_ended_in_the_engine(
    route: GenerationRoute, engine: Engine
) -> None:
    sink = SlowSink(OSError("the connection is lost"))
    await route.answer(BODY, 0, sink, PROFILE)
    assert sink.error is not None
    assert engine.running == 0
