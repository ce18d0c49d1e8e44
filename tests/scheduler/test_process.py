"""A worker's processes, with real processes in vLLM's place."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from vllama.errors import BadEngineFlags, LoadFailed, SleepFailed
from vllama.scheduler.process import Memory, WorkerProcess, WorkerSpec, check_flags

from . import stand_in_worker

pytestmark = pytest.mark.anyio

T = TypeVar("T")
PATIENCE = 30.0


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": True}  # processes take real time


@pytest.fixture
def runtime() -> Iterator[Path]:
    """A directory for sockets: their paths have to be short."""
    with tempfile.TemporaryDirectory(prefix="vllama-") as directory:
        yield Path(directory)


def command(behaviour: str) -> tuple[str, ...]:
    return sys.executable, stand_in_worker.__file__, behaviour


Start = Callable[[str], Awaitable[WorkerProcess]]


@pytest.fixture
async def start(runtime: Path) -> AsyncIterator[Start]:
    """Return a function that starts a worker with a behaviour of stand_in_worker.py."""
    workers: list[WorkerProcess] = []

    async def start(behaviour: str) -> WorkerProcess:
        spec = WorkerSpec(
            arguments=["/model", "--uds", str(runtime / "1.sock")],
            environment=os.environ,
            socket=runtime / "1.sock",
            log=runtime / "worker.log",
            memory=Memory(3, 2),
            command=command(behaviour),
        )
        workers.append(await within(WorkerProcess.start(spec)))
        return workers[-1]

    yield start
    for worker in workers:
        await within(worker.stop(grace=0))


async def within(awaitable: Awaitable[T]) -> T:
    return await asyncio.wait_for(awaitable, PATIENCE)


async def ended(pid: int) -> None:
    """Return when a process has ended, whoever its parent is."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop, event = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(descriptor, event.set)
    try:
        await within(event.wait())
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


async def line_of_log(worker: WorkerProcess, beginning: str) -> str:
    """Return the rest of the first line of its log that begins so, as soon as it is there."""

    async def look() -> str:
        while True:
            for line in worker.log_tail().splitlines():
                if line.startswith(beginning):
                    return line.removeprefix(beginning)
            await asyncio.sleep(0)

    return await within(look())


async def test_a_worker_is_ready_when_it_has_really_produced_a_token(start: Start) -> None:
    worker = await start("ready")
    await within(worker.become_ready(PATIENCE))
    tries = [line for line in worker.log_tail().splitlines() if line.startswith("asked")]
    assert len(tries) == stand_in_worker.TOKENS_REFUSED + 1


async def test_a_ready_worker_knows_its_context_its_channel_and_its_memory(start: Start, runtime: Path) -> None:
    worker = await start("ready")
    await within(worker.become_ready(PATIENCE))
    assert worker.context_length == 2048
    assert worker.channels == (runtime / "1.sock.0of1",)
    assert worker.socket == runtime / "1.sock"
    assert worker.memory == Memory(3, 2)


async def test_every_api_server_process_has_its_channel(start: Start, runtime: Path) -> None:
    worker = await start("two_processes")
    await within(worker.become_ready(PATIENCE))
    assert worker.channels == (runtime / "1.sock.0of2", runtime / "1.sock.1of2")


async def test_a_worker_is_not_ready_while_a_channel_is_missing(start: Start) -> None:
    worker = await start("one_channel_of_two")
    with pytest.raises(LoadFailed, match="no progress"):
        await within(worker.become_ready(0.3))


async def test_a_worker_is_told_its_arguments_and_who_its_parent_is(start: Start, runtime: Path) -> None:
    worker = await start("ready")
    await within(worker.become_ready(PATIENCE))
    told = json.loads((runtime / "1.sock.told").read_text())
    assert told["arguments"] == ["/model", "--uds", str(runtime / "1.sock")]
    assert told["environment"]["PYTHONUNBUFFERED"] == "1"


async def test_the_canary_of_the_first_sleep_is_told_at_each_wake_and_at_later_sleeps(start: Start) -> None:
    worker = await start("ready")
    await within(worker.become_ready(PATIENCE))
    assert await within(worker.sleep()) == 0.25
    await within(worker.wake())
    await within(worker.sleep())
    canary = "{'canary': {'steps': [[5, [[5, -0.5]]]], 'vector': []}}"
    assert [line for line in worker.log_tail().splitlines() if " with " in line] == [
        "sleep with {}",
        f"wake with {canary}",
        f"sleep with {canary}",
    ]


@pytest.mark.parametrize(("obstacle", "words"), [("broken", "not itself after its sleep"), ("mute", "within 0 s")])
async def test_a_worker_that_does_not_wake_as_it_was_says_so(
    start: Start, runtime: Path, obstacle: str, words: str
) -> None:
    worker = await start("ready")
    await within(worker.become_ready(PATIENCE))
    await within(worker.sleep())
    (runtime / f"1.sock.{obstacle}").touch()
    with pytest.raises(SleepFailed, match=words):
        await within(worker.wake(timeout=0.3))


async def test_a_worker_that_died_in_its_sleep_cannot_be_woken(start: Start) -> None:
    worker = await start("ready")
    await within(worker.become_ready(PATIENCE))
    os.killpg(worker.pid, signal.SIGKILL)
    await within(asyncio.shield(worker.exited))
    with pytest.raises(SleepFailed, match="cannot be reached"):
        await within(worker.wake())


@pytest.mark.parametrize(
    ("arguments", "can_sleep"),
    [
        ([], False),
        (["--enable-sleep-mode"], True),
        (["--enable-sleep-mode", "--no-enable-sleep-mode"], False),
        (["--enable_sleep_mode"], True),
    ],
)
async def test_whether_a_worker_can_sleep_was_decided_when_it_was_started(
    start: Start, runtime: Path, arguments: list[str], *, can_sleep: bool
) -> None:
    spec = WorkerSpec(
        arguments=arguments,
        environment=os.environ,
        socket=runtime / "2.sock",
        log=runtime / "2.log",
        memory=Memory(0, 0),
        command=(sys.executable, "-c", ""),
    )
    worker = await within(WorkerProcess.start(spec))
    assert worker.can_sleep == can_sleep
    await within(worker.stop(grace=0))


async def test_flags_that_vllm_refuses_are_reported_in_vllm_s_own_words(start: Start) -> None:
    worker = await start("usage")
    with pytest.raises(BadEngineFlags) as caught:
        await within(worker.become_ready(PATIENCE))
    assert str(caught.value) == "unrecognized arguments: --foo\nHint: no --foo"


async def test_a_worker_that_ends_while_loading_brings_the_end_of_its_log(start: Start, runtime: Path) -> None:
    worker = await start("crash")
    with pytest.raises(LoadFailed) as caught:
        await within(worker.become_ready(PATIENCE))
    head, *lines = str(caught.value).splitlines()
    log = runtime / "worker.log"
    assert head == f"the model's worker ended while loading (exit status 1); its log {log} ends with:"
    assert lines[0] == "(EngineCore pid=1) line 27"
    assert lines[-2:] == ["Loading: 100%", "RuntimeError: no memory"]
    assert len(lines) == 15


async def test_a_worker_that_is_killed_while_loading_names_the_signal(start: Start) -> None:
    worker = await start("silent")
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(LoadFailed, match=r"ended while loading \(signal 9\)"):
        await within(worker.become_ready(PATIENCE))


async def test_a_load_without_progress_is_given_up(start: Start) -> None:
    worker = await start("silent")
    with pytest.raises(LoadFailed, match=r"^the model made no progress in loading for 0 s"):
        await within(worker.become_ready(0.2))
    assert worker.exited.done()


async def test_a_worker_that_goes_politely_is_not_killed(start: Start) -> None:
    worker = await start("ready")
    await within(worker.become_ready(PATIENCE))
    await within(worker.stop(grace=PATIENCE))
    assert worker.exited.result() == 0


async def test_a_worker_that_ignores_sigterm_is_killed_after_the_grace(start: Start) -> None:
    worker = await start("stubborn")
    await line_of_log(worker, "ready to ignore")
    await within(worker.stop(grace=0.1))
    assert worker.exited.result() == -signal.SIGKILL


async def test_stop_ends_a_child_that_ignores_sigterm_too(start: Start) -> None:
    worker = await start("parent")
    child = int(await line_of_log(worker, "child "))
    await within(worker.stop(grace=PATIENCE))
    assert is_gone(child)


async def test_kill_9_of_the_main_process_ends_its_children(start: Start) -> None:
    worker = await start("parent")
    child = int(await line_of_log(worker, "child "))
    os.kill(worker.pid, signal.SIGKILL)
    assert await within(asyncio.shield(worker.exited)) == -signal.SIGKILL
    await ended(child)


async def test_a_worker_leads_a_group_of_its_own(start: Start) -> None:
    worker = await start("silent")
    assert os.getpgid(worker.pid) == worker.pid != os.getpgid(0)


@pytest.mark.parametrize("kill", [False, True])
async def test_its_sockets_and_channels_are_removed_with_it(start: Start, runtime: Path, *, kill: bool) -> None:
    worker = await start("two_processes")
    await within(worker.become_ready(PATIENCE))
    (runtime / "11.sock").touch()  # another worker's
    if kill:
        os.kill(worker.pid, signal.SIGKILL)
    await within(worker.stop(grace=PATIENCE))
    assert names_in(runtime) == ["11.sock", "worker.log"]


async def test_stop_may_be_called_again(start: Start) -> None:
    worker = await start("ready")
    await asyncio.gather(*(within(worker.stop(grace=PATIENCE)) for _ in range(3)))
    await within(worker.stop(grace=PATIENCE))


async def test_a_second_stop_does_not_kill_whoever_has_the_number_by_then(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = await start("ready")
    await within(worker.stop(grace=0))
    signals: list[int] = []
    monkeypatch.setattr(os, "killpg", lambda group, number: signals.append(number))
    monkeypatch.setattr("vllama.scheduler.process._living_members", lambda group: [])
    await within(worker.stop(grace=0))
    assert signals == []


async def test_flags_are_checked_without_a_load() -> None:
    await within(check_flags(["--max-num-seqs", "4"], os.environ, command("flags_are_fine")))


async def test_a_refused_flag_is_found_without_a_load() -> None:
    with pytest.raises(BadEngineFlags) as caught:
        await within(check_flags(["--foo"], os.environ, command("usage")))
    assert str(caught.value) == "unrecognized arguments: --foo\n\nHint: no --foo"


async def test_a_flag_check_that_fails_otherwise_says_the_last_line() -> None:
    with pytest.raises(BadEngineFlags, match="RuntimeError: no memory"):
        await within(check_flags(["--foo"], os.environ, command("crash")))


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def is_gone(pid: int) -> bool:
    """Whether a process has ended; it may be a zombie, if nobody reaps it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in {"Z", "X"}
    except FileNotFoundError:
        return True
