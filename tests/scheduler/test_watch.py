"""Workers that answer, and workers that do not, on real sockets."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest

from vllama.protocol.frames import FrameReader, Kind, frame
from vllama.scheduler.group import Computing, living_members
from vllama.scheduler.watch import until_silent

pytestmark = pytest.mark.anyio

T = TypeVar("T")
PATIENCE = 60.0
LIMIT = 0.3


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": True}


@pytest.fixture
def sockets() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="vllama-") as directory:
        yield Path(directory)


async def within(awaitable: Awaitable[T]) -> T:
    return await asyncio.wait_for(awaitable, PATIENCE)


def never() -> bool:
    return False


class Process:
    """One API server process: answers while it `answers`, and counts what it was asked."""

    def __init__(self) -> None:
        self.answers = self.hears = True
        self.closes = False
        self.asked = asyncio.Semaphore(0)
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):  # the watch may leave before it has read all
            await self._answer(reader, writer)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        frames = FrameReader()
        while not self.closes and (data := await reader.read(1024)):
            for kind, stream, _ in frames.feed(data):
                if kind == Kind.HEARD:
                    if self.hears:
                        writer.write(frame(Kind.HEARD, stream))
                    continue
                assert kind == Kind.PULSE
                self.asked.release()
                if self.answers:
                    writer.write(frame(Kind.PULSE, stream))
        self.connections -= 1
        writer.close()

    async def was_asked(self, times: int) -> None:
        for _ in range(times):
            await within(self.asked.acquire())


@asynccontextmanager
async def listening(socket: Path, process: Process) -> AsyncIterator[None]:
    server = await asyncio.start_unix_server(process.serve, str(socket))
    try:
        yield
    finally:
        server.close()


@asynccontextmanager
async def watched(*sockets: Path, computes: Callable[[], bool] = never) -> AsyncIterator[asyncio.Task[None]]:
    watch = asyncio.create_task(until_silent(sockets, LIMIT, computes))
    try:
        yield watch
    finally:
        watch.cancel()
        await asyncio.wait({watch})


async def test_a_process_that_answers_is_asked_again_and_again(sockets: Path) -> None:
    process = Process()
    async with listening(sockets / "a", process), watched(sockets / "a") as watch:
        await process.was_asked(15)
        assert not watch.done()


async def test_each_connection_is_closed_before_the_next_look(sockets: Path) -> None:
    process = Process()
    async with listening(sockets / "a", process), watched(sockets / "a"):
        await process.was_asked(15)
        assert process.connections <= 2  # the end of the last one may still be under way


async def test_one_that_stops_answering_is_silent_after_the_limit(sockets: Path) -> None:
    process = Process()
    async with listening(sockets / "a", process), watched(sockets / "a") as watch:
        await process.was_asked(2)
        process.answers = False
        await process.was_asked(1)
        since = asyncio.get_running_loop().time()
        await within(watch)
        assert asyncio.get_running_loop().time() - since >= LIMIT * 0.8


async def test_it_is_not_asked_again_before_it_has_answered(sockets: Path) -> None:
    process = Process()
    process.answers = False
    async with listening(sockets / "a", process), watched(sockets / "a") as watch:
        await within(watch)
    await process.was_asked(1)
    assert process.asked.locked()


async def test_one_of_several_is_enough(sockets: Path) -> None:
    good, bad = Process(), Process()
    bad.answers = False
    async with (
        listening(sockets / "a", good),
        listening(sockets / "b", bad),
        watched(sockets / "a", sockets / "b") as watch,
    ):
        await within(watch)


@pytest.mark.parametrize("listens", [False, True], ids=["nothing listens", "the channel is closed"])
async def test_a_channel_that_cannot_be_asked_is_silent_too(sockets: Path, *, listens: bool) -> None:
    process = Process()
    process.closes = True
    if not listens:
        async with watched(sockets / "a") as watch:
            await within(watch)
    else:
        async with listening(sockets / "a", process), watched(sockets / "a") as watch:
            await within(watch)


async def test_silence_does_not_count_while_the_worker_computes(sockets: Path) -> None:
    process = Process()
    process.answers = False
    looks = 0

    def computes() -> bool:
        nonlocal looks
        looks += 1
        return looks < 30

    async with listening(sockets / "a", process), watched(sockets / "a", computes=computes) as watch:
        await within(watch)
    assert looks == 39


@pytest.fixture
def group() -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Start a shell that leads a group of its own, with a child that runs a program; both end with the test."""
    started: list[subprocess.Popen[str]] = []

    def start(program: str) -> subprocess.Popen[str]:
        parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {program!r}])"
        leader = subprocess.Popen(
            [sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        started.append(leader)
        assert leader.stdout is not None
        leader.stdout.readline()  # the child runs
        return leader

    yield start
    for leader in started:
        os.killpg(leader.pid, signal.SIGKILL)
        leader.wait()
        assert leader.stdout is not None
        leader.stdout.close()


Group = Callable[[str], "subprocess.Popen[str]"]
BUSY = "print(flush=True)\nwhile True: pass"


async def until_computing(computing: Computing) -> None:
    computing()
    while not computing():
        await asyncio.sleep(0.05)


async def until_stopped(group: int) -> None:
    while {_state(pid) for pid in living_members(group)} != {"T"}:
        await asyncio.sleep(0.001)


async def test_a_group_whose_child_computes_is_computing(group: Group) -> None:
    await within(until_computing(Computing(group(BUSY).pid)))


async def test_a_group_that_waits_does_not_compute(group: Group) -> None:
    computing = Computing(group("import signal; print(flush=True); signal.pause()").pid)
    computing()
    await within(until_computing(Computing(group(BUSY).pid)))  # by when this one had the time to
    assert not computing()


async def test_a_group_that_is_stopped_does_not_compute(group: Group) -> None:
    leader = group(BUSY)
    os.killpg(leader.pid, signal.SIGSTOP)
    await within(until_stopped(leader.pid))
    computing = Computing(leader.pid)
    computing()
    await within(until_computing(Computing(group(BUSY).pid)))  # by when this one had the time to
    assert not computing()


async def test_the_members_of_a_group_are_its_leader_and_its_child(group: Group) -> None:
    leader = group("import signal; print(flush=True); signal.pause()")
    assert len(living_members(leader.pid)) == 2
    assert leader.pid in living_members(leader.pid)


async def test_a_process_whose_main_thread_has_ended_still_counts_while_others_run(group: Group) -> None:
    """The kernel calls it a zombie by then, but it holds its memory and its sockets."""
    program = (
        "import ctypes, platform, threading, time\n"
        "threading.Thread(target=time.sleep, args=[60], daemon=True).start()\n"
        "print(flush=True)\n"
        "ctypes.CDLL(None).syscall({'x86_64': 60, 'aarch64': 93}[platform.machine()], 0)\n"  # exit this thread alone
    )
    leader = group(program)

    async def look() -> None:
        while not any(_state(pid) == "Z" for pid in living_members(leader.pid)):
            await asyncio.sleep(0.01)

    await within(look())
    assert len(living_members(leader.pid)) == 2


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


async def test_an_api_server_that_hangs_is_silent_although_its_engine_computes(sockets: Path) -> None:
    process = Process()
    process.answers = process.hears = False
    async with listening(sockets / "a", process), watched(sockets / "a", computes=lambda: True) as watch:
        await within(watch)


async def test_an_api_server_that_hears_may_wait_for_an_engine_that_computes(sockets: Path) -> None:
    process = Process()
    process.answers = False
    async with listening(sockets / "a", process), watched(sockets / "a", computes=lambda: True) as watch:
        await process.was_asked(1)
        done, _ = await asyncio.wait({watch}, timeout=4 * LIMIT)
        assert not done
        process.hears = False
        await within(watch)
