"""The worker's end of the channel, over a real Unix socket, with an endpoint that does what the test says."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from vllama.ollama.status import JSON, NDJSON
from vllama.protocol.frames import Form, FrameReader, Kind, frame, open_frame, parse_reply
from vllama.protocol.profile import Profile
from vllama.worker.channel_server import ChannelConnection, Endpoint, Pulse, listen
from vllama.worker.sink import Sink

pytestmark = pytest.mark.anyio

PATIENCE = 10
"""Seconds to wait for what has to come."""

Frame = tuple[int, int, bytes]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Gateway:
    """The other end: writes frames, reads frames."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._frames = FrameReader()
        self._received: list[Frame] = []

    def introduce(self, number: int, profile: Profile) -> None:
        self._writer.write(frame(Kind.PROFILE, number, profile.to_json()))

    def open(self, stream: int, body: bytes, *, path: str = "/api/chat", received: int = 0, profile: int = 0) -> None:
        self._writer.write(open_frame(stream, path, received, profile, body, form=Form.CHECKED))

    def tell(self, kind: Kind, stream: int) -> None:
        self._writer.write(frame(kind, stream))

    async def next(self) -> Frame:
        async with asyncio.timeout(PATIENCE):
            while not self._received:
                data = await self._reader.read(65536)
                assert data, "the worker closed the channel"
                self._received.extend(self._frames.feed(data))
        return self._received.pop(0)

    async def close(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()


class Script:
    """An endpoint whose streams say what the test feeds them: `say[body]`, where None ends the stream."""

    def __init__(self) -> None:
        self.say: dict[bytes, asyncio.Queue[bytes | None]] = {}
        self.received: dict[bytes, int] = {}
        self.cancelled: dict[bytes, asyncio.Event] = {}

    def stream(self, body: bytes) -> asyncio.Queue[bytes | None]:
        self.cancelled[body] = asyncio.Event()
        return self.say.setdefault(body, asyncio.Queue())

    async def __call__(self, body: bytes, received: int, sink: Sink, profile: Profile, form: Form) -> None:
        self.received[body] = received
        try:
            await sink.start(NDJSON)
            while (piece := await self.say[body].get()) is not None:
                await sink.write(piece, last=False)
            await sink.write(b"", last=True)
        except asyncio.CancelledError:
            self.cancelled[body].set()
            raise


async def serve_whole(body: bytes, received: int, sink: Sink, profile: Profile, form: Form) -> None:
    await sink.reply(200, JSON, body[::-1])


async def serve_failing(body: bytes, received: int, sink: Sink, profile: Profile, form: Form) -> None:
    raise LookupError("a secret of the inside")


async def serve_failing_late(body: bytes, received: int, sink: Sink, profile: Profile, form: Form) -> None:
    await sink.start(NDJSON)
    await sink.write(b"begun\n", last=False)
    raise LookupError("a secret of the inside")


async def answer_at_once() -> bool:
    return False


@asynccontextmanager
async def worker(path: Path, pulse: Pulse = answer_at_once, **endpoints: Endpoint) -> AsyncIterator[Callable[[], Any]]:
    """A listening worker; gives a function that connects a gateway to it."""
    gateways: list[Gateway] = []

    async def connect() -> Gateway:
        gateways.append(Gateway(*await asyncio.open_unix_connection(str(path))))
        gateways[-1].introduce(0, Profile("m", ("completion",)))
        return gateways[-1]

    server = await listen(path, {f"/api/{name}": endpoint for name, endpoint in endpoints.items()}, pulse)
    try:
        yield connect
    finally:
        server.close()
        for gateway in gateways:
            await gateway.close()


async def started(gateway: Gateway, *streams: int) -> None:
    """Read the START frames of these streams."""
    for stream in streams:
        kind, number, payload = await gateway.next()
        assert (kind, number, parse_reply(payload)) == (Kind.START, stream, (200, NDJSON.encode(), b""))


async def test_a_whole_reply_is_one_frame(tmp_path: Path) -> None:
    async with worker(tmp_path / "s", chat=serve_whole) as connect:
        gateway = await connect()
        gateway.open(7, b"abc")
        kind, stream, payload = await gateway.next()
        assert (kind, stream) == (Kind.REPLY, 7)
        assert parse_reply(payload) == (200, JSON.encode(), b"cba")


async def test_an_endpoint_is_chosen_by_its_path_and_learns_when_the_request_came(tmp_path: Path) -> None:
    script = Script()
    script.stream(b"x").put_nowait(None)
    async with worker(tmp_path / "s", chat=serve_whole, generate=script) as connect:
        gateway = await connect()
        gateway.open(1, b"x", path="/api/generate", received=2**63 + 5)
        await started(gateway, 1)
        assert await gateway.next() == (Kind.LAST, 1, b"")
    assert script.received == {b"x": 2**63 + 5}


async def test_many_streams_share_one_connection(tmp_path: Path) -> None:
    script, numbers = Script(), range(1, 101)
    for number in numbers:
        says = script.stream(b"%d" % number)
        for piece in (b"%d a" % number, b"%d b" % number, None):
            says.put_nowait(piece)
    async with worker(tmp_path / "s", chat=script) as connect:
        gateway = await connect()
        for number in numbers:
            gateway.open(number, b"%d" % number)
        frames = [await gateway.next() for _ in range(4 * len(numbers))]
    for number in numbers:
        mine = [(kind, payload) for kind, stream, payload in frames if stream == number]
        assert [kind for kind, _ in mine] == [Kind.START, Kind.DATA, Kind.DATA, Kind.LAST]
        assert b"".join(payload for _, payload in mine[1:]) == b"%d a%d b" % (number, number)


async def test_streams_run_side_by_side_not_one_after_the_other(tmp_path: Path) -> None:
    script = Script()
    first, second = script.stream(b"first"), script.stream(b"second")
    async with worker(tmp_path / "s", chat=script) as connect:
        gateway = await connect()
        gateway.open(1, b"first")
        gateway.open(2, b"second")
        await started(gateway, 1, 2)
        for says, stream in ((second, 2), (first, 1), (second, 2), (first, 1)):
            says.put_nowait(b"piece")
            assert await gateway.next() == (Kind.DATA, stream, b"piece")


class CountingTransport(asyncio.BaseTransport):
    """A real transport that counts its writes."""

    def __init__(self, transport: Any, writes: list[bytes]) -> None:
        super().__init__()
        self._transport, self._writes = transport, writes

    def write(self, data: bytes) -> None:
        self._writes.append(data)
        self._transport.write(data)

    def is_closing(self) -> bool:
        return bool(self._transport.is_closing())


async def test_frames_of_one_turn_of_the_loop_leave_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[bytes] = []
    begin = ChannelConnection.connection_made
    monkeypatch.setattr(
        ChannelConnection, "connection_made", lambda self, transport: begin(self, CountingTransport(transport, writes))
    )
    script, numbers = Script(), range(1, 33)
    says = [script.stream(b"%d" % number) for number in numbers]
    async with worker(tmp_path / "s", chat=script) as connect:
        gateway = await connect()
        for number in numbers:
            gateway.open(number, b"%d" % number)
        await started(gateway, *numbers)
        writes.clear()
        for queue in says:  # a step of the engine: one token for every stream
            queue.put_nowait(b"token")
        assert [await gateway.next() for _ in numbers] == [(Kind.DATA, number, b"token") for number in numbers]
    assert len(writes) == 1
    assert Counter(kind for kind, _, _ in FrameReader().feed(writes[0])) == {Kind.DATA: 32}


async def test_a_cancelled_stream_is_cancelled_and_the_others_go_on(tmp_path: Path) -> None:
    script = Script()
    unwanted, wanted = script.stream(b"unwanted"), script.stream(b"wanted")
    async with worker(tmp_path / "s", chat=script) as connect:
        gateway = await connect()
        gateway.open(1, b"unwanted")
        gateway.open(2, b"wanted")
        await started(gateway, 1, 2)
        gateway.tell(Kind.CANCEL, 1)
        async with asyncio.timeout(PATIENCE):
            await script.cancelled[b"unwanted"].wait()
        assert await gateway.next() == (Kind.TOKENS, 1, b"0 0 0")
        unwanted.put_nowait(b"too late")
        wanted.put_nowait(b"piece")
        wanted.put_nowait(None)
        assert await gateway.next() == (Kind.DATA, 2, b"piece")
        assert await gateway.next() == (Kind.LAST, 2, b"")
    assert not script.cancelled[b"wanted"].is_set()


@pytest.mark.parametrize("kind", [Kind.CANCEL, Kind.PAUSE, Kind.RESUME])
async def test_word_of_a_stream_that_has_ended_is_ignored(tmp_path: Path, kind: Kind) -> None:
    async with worker(tmp_path / "s", chat=serve_whole) as connect:
        gateway = await connect()
        gateway.open(1, b"a")
        await gateway.next()
        gateway.tell(kind, 1)
        gateway.tell(kind, 99)
        gateway.open(2, b"b")
        assert (await gateway.next())[:2] == (Kind.REPLY, 2)


async def test_a_paused_stream_waits_and_others_do_not(tmp_path: Path) -> None:
    script = Script()
    slow, quick = script.stream(b"slow"), script.stream(b"quick")
    async with worker(tmp_path / "s", chat=script) as connect:
        gateway = await connect()
        gateway.open(1, b"slow")
        gateway.open(2, b"quick")
        gateway.tell(Kind.PAUSE, 1)
        gateway.tell(Kind.PAUSE, 2)
        gateway.tell(Kind.RESUME, 2)
        await started(gateway, 1, 2)
        for piece in (b"a", b"b"):
            slow.put_nowait(piece)  # first in turn, so it would come first
            quick.put_nowait(piece)
            assert await gateway.next() == (Kind.DATA, 2, piece)
        gateway.tell(Kind.RESUME, 1)
        assert [await gateway.next() for _ in "ab"] == [(Kind.DATA, 1, b"a"), (Kind.DATA, 1, b"b")]


async def test_a_paused_stream_can_be_cancelled(tmp_path: Path) -> None:
    script = Script()
    script.stream(b"x").put_nowait(b"held")
    async with worker(tmp_path / "s", chat=script) as connect:
        gateway = await connect()
        gateway.open(1, b"x")
        gateway.tell(Kind.PAUSE, 1)
        await started(gateway, 1)
        gateway.tell(Kind.CANCEL, 1)
        async with asyncio.timeout(PATIENCE):
            await script.cancelled[b"x"].wait()


async def test_a_gateway_that_does_not_read_makes_the_streams_wait(tmp_path: Path) -> None:
    flood = bytes(32 * 1024 * 1024)  # more than any socket buffer holds
    progress: asyncio.Queue[str] = asyncio.Queue()

    async def serve_much(body: bytes, received: int, sink: Sink, profile: Profile, form: Form) -> None:
        await sink.write(flood, last=False)
        await asyncio.sleep(0)  # the frame goes to the socket, which is full now
        progress.put_nowait("flooded")
        await sink.write(b"behind it", last=True)
        progress.put_nowait("done")

    async with worker(tmp_path / "s", chat=serve_much) as connect:
        gateway = await connect()
        gateway.open(1, b"")
        async with asyncio.timeout(PATIENCE):
            assert await progress.get() == "flooded"
        await asyncio.sleep(0)
        assert progress.empty()
        assert await gateway.next() == (Kind.DATA, 1, flood)
        assert await gateway.next() == (Kind.LAST, 1, b"behind it")
        assert await progress.get() == "done"


async def test_a_lost_connection_cancels_all_its_streams_and_no_others(tmp_path: Path) -> None:
    script = Script()
    names = [b"plain", b"paused"]
    for name in [*names, b"other"]:
        script.stream(name)
    async with worker(tmp_path / "s", chat=script) as connect:
        leaving, staying = await connect(), await connect()
        for number, name in enumerate(names, 1):
            leaving.open(number, name)
        leaving.tell(Kind.PAUSE, 2)
        staying.open(1, b"other")
        await started(leaving, 1, 2)
        await started(staying, 1)
        script.say[b"paused"].put_nowait(b"held")
        await leaving.close()
        async with asyncio.timeout(PATIENCE):
            for name in names:
                await script.cancelled[name].wait()
        script.say[b"other"].put_nowait(b"still here")
        assert await staying.next() == (Kind.DATA, 1, b"still here")
    assert not script.cancelled[b"other"].is_set()


async def test_an_endpoint_that_raises_gives_a_500_without_its_traceback(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with worker(tmp_path / "s", chat=serve_failing) as connect:
        gateway = await connect()
        with caplog.at_level(logging.ERROR):
            gateway.open(1, b"")
            kind, stream, payload = await gateway.next()
    status, content_type, body = parse_reply(payload)
    assert (kind, stream, status, content_type) == (Kind.REPLY, 1, 500, JSON.encode())
    assert list(json.loads(body)) == ["error"]
    assert b"secret" not in body
    assert b"Traceback" not in body
    assert "a secret of the inside" in caplog.text  # the log has it all


async def test_an_endpoint_that_raises_in_its_stream_ends_it_with_an_error_line(tmp_path: Path) -> None:
    async with worker(tmp_path / "s", chat=serve_failing_late) as connect:
        gateway = await connect()
        gateway.open(1, b"")
        await started(gateway, 1)
        assert await gateway.next() == (Kind.DATA, 1, b"begun\n")
        kind, stream, line = await gateway.next()
    assert (kind, stream, line[-1:]) == (Kind.LAST, 1, b"\n")
    assert list(json.loads(line)) == ["error"]
    assert b"secret" not in line


async def test_a_path_that_nobody_serves_is_an_error_of_that_stream_only(tmp_path: Path) -> None:
    async with worker(tmp_path / "s", chat=serve_whole) as connect:
        gateway = await connect()
        gateway.open(1, b"", path="/api/nothing")
        gateway.open(2, b"ab")
        replies = {stream: parse_reply(payload) for _, stream, payload in [await gateway.next(), await gateway.next()]}
        assert replies[1][0] == 500
        assert replies[2] == (200, JSON.encode(), b"ba")


async def test_a_socket_left_behind_by_an_earlier_worker_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes(b"")
    async with worker(tmp_path / "s", chat=serve_whole) as connect:
        gateway = await connect()
        gateway.open(1, b"a")
        assert (await gateway.next())[:2] == (Kind.REPLY, 1)


async def test_each_request_is_answered_for_the_model_whose_profile_it_names(tmp_path: Path) -> None:
    async def serve_the_name(body: bytes, received: int, sink: Sink, profile: Profile, form: Form) -> None:
        await sink.reply(200, JSON, profile.full_name.encode())

    async with worker(tmp_path / "s", chat=serve_the_name) as connect:
        gateway = await connect()
        gateway.introduce(7, Profile("mario", ("completion",), system="You are Mario."))
        gateway.open(1, b"{}", profile=7)
        gateway.open(2, b"{}", profile=0)

        assert parse_reply((await gateway.next())[2])[2] == b"mario"
        assert parse_reply((await gateway.next())[2])[2] == b"m"


async def test_a_pulse_is_answered_when_the_engine_has_answered_and_streams_go_on_meanwhile(tmp_path: Path) -> None:
    engine = asyncio.Event()
    async with worker(tmp_path / "s", engine.wait, chat=serve_whole) as connect:
        gateway = await connect()
        gateway.tell(Kind.PULSE, 7)
        gateway.open(1, b"{}")
        assert (await gateway.next())[:2] == (Kind.REPLY, 1)
        engine.set()
        assert await gateway.next() == (Kind.PULSE, 7, b"")


async def test_where_the_engine_is_dead_a_pulse_is_not_answered(tmp_path: Path) -> None:
    async def dead() -> None:
        raise RuntimeError

    async with worker(tmp_path / "s", dead, chat=serve_whole) as connect:
        gateway = await connect()
        gateway.tell(Kind.PULSE, 7)
        gateway.open(1, b"{}")
        assert (await gateway.next())[:2] == (Kind.REPLY, 1)


async def test_a_gateway_that_leaves_takes_its_pulses_with_it(tmp_path: Path) -> None:
    cancelled = asyncio.Event()

    async def wait_for_ever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with worker(tmp_path / "s", wait_for_ever, chat=serve_whole) as connect:
        gateway = await connect()
        gateway.tell(Kind.PULSE, 7)
        gateway.open(1, b"{}")
        await gateway.next()
        await gateway.close()
        async with asyncio.timeout(PATIENCE):
            await cancelled.wait()
