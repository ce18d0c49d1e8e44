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

from vllama.errors import BadEngineFlags, LoadFailed, OutOfMemory, SleepFailed
from vllama.scheduler import process
from vllama.scheduler.causes import catalogue, signals
from vllama.scheduler.group import shared_memory
from vllama.scheduler.process import Memory, WorkerProcess, WorkerSpec, check_flags
from vllama.scheduler.worker_log import OUT_OF_MEMORY

from . import stand_in_worker

pytestmark = pytest.mark.anyio

T = TypeVar("T")
PATIENCE = 60.0


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


Start = Callable[..., Awaitable[WorkerProcess]]


@pytest.fixture
async def start(runtime: Path) -> AsyncIterator[Start]:
    """Return a function that starts a worker with a behaviour of stand_in_worker.py."""
    workers: list[WorkerProcess] = []

    async def start(
        behaviour: str, hang_timeout: float | None = None, without_code: str = "", max_log_size: int = 0
    ) -> WorkerProcess:
        spec = WorkerSpec(
            arguments=["/model", "--uds", str(runtime / "1.sock")],
            environment=os.environ,
            socket=runtime / "1.sock",
            log=runtime / "worker.log",
            memory=Memory(3, 2),
            command=command(behaviour),
            hang_timeout=hang_timeout,
            without_code=without_code,
            max_log_size=max_log_size,
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


async def line_of_log(worker: WorkerProcess, beginning: str, number: int = 1) -> str:
    """Return the rest of the line of its log that is the first, second … to begin so, as soon as it is there."""

    async def look() -> str:
        while True:
            found = [line for line in worker.log.tail().splitlines() if line.startswith(beginning)]
            if len(found) >= number:
                return found[number - 1].removeprefix(beginning)
            await asyncio.sleep(0.001)

    return await within(look())


async def test_a_worker_is_ready_when_it_has_really_produced_a_token(start: Start) -> None:
    worker = await start("reluctant")
    await within(worker.become_ready(PATIENCE))
    tries = [line for line in worker.log.tail().splitlines() if line.startswith("asked")]
    assert len(tries) == stand_in_worker.TOKENS_REFUSED + 1


async def test_a_ready_worker_knows_its_context_its_channel_and_its_memory(start: Start, runtime: Path) -> None:
    worker = await start("ready")
    await within(worker.become_ready(PATIENCE))
    assert worker.context_length == 2048
    assert worker.channels == (runtime / "1.sock.0of1",)
    assert worker.socket == runtime / "1.sock"
    assert worker.memory == Memory(3, 2)


async def test_the_log_of_a_running_worker_has_a_maximum_size_and_ends_with_the_cause(
    start: Start, monkeypatch: pytest.MonkeyPatch, runtime: Path
) -> None:
    monkeypatch.setattr(process, "_LOG_SECONDS", 0.01)
    worker = await start("chatty", max_log_size=10_000)
    with pytest.raises(OutOfMemory):
        await within(worker.become_ready(PATIENCE))
    assert (runtime / "worker.1.log").stat().st_size > 10_000


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


async def test_a_worker_is_told_when_to_copy_its_weights_and_whether_the_copy_stays(start: Start) -> None:
    worker = await start("ready")
    await within(worker.become_ready(PATIENCE))
    await within(worker.prepare_sleep())
    assert await within(worker.sleep()) == 0.25
    assert await within(worker.wake(keeps_copy=True)) == 0.25
    await within(worker.forget_copy())
    assert [line for line in worker.log.tail().splitlines() if " with " in line] == [
        "prepare with {}",
        "sleep with {}",
        "wake with {'keeps_copy': True}",
        "forget with {}",
    ]


@pytest.mark.parametrize(
    ("obstacle", "timeout", "words"),
    [("broken", PATIENCE, "weights changed while the model slept"), ("mute", 0.1, "within 0 s")],
)
async def test_a_worker_that_does_not_wake_as_it_was_says_so(
    start: Start, runtime: Path, obstacle: str, timeout: float, words: str
) -> None:
    worker = await start("ready")
    await within(worker.become_ready(PATIENCE))
    await within(worker.sleep())
    (runtime / f"1.sock.{obstacle}").touch()
    with pytest.raises(SleepFailed, match=words):
        await within(worker.wake(timeout=timeout, keeps_copy=False))


async def test_a_worker_that_died_in_its_sleep_cannot_be_woken(start: Start) -> None:
    worker = await start("ready")
    await within(worker.become_ready(PATIENCE))
    os.killpg(worker.pid, signal.SIGKILL)
    await within(asyncio.shield(worker.exited))
    with pytest.raises(SleepFailed, match="cannot reach the model's worker"):
        await within(worker.wake(keeps_copy=False))


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


async def test_a_worker_that_ends_while_loading_brings_its_last_error_on_one_line(start: Start, runtime: Path) -> None:
    worker = await start("crash")
    with pytest.raises(LoadFailed) as caught:
        await within(worker.become_ready(PATIENCE))
    assert str(caught.value) == (
        "the model could not be loaded: RuntimeError: no memory; see the worker's log; "
        f"the worker's log: {runtime / 'worker.log'}"
    )


@pytest.mark.parametrize(
    ("without_code", "fix"), [("", "vllama pull --trust-remote-code NAME"), ("pull it", "pull it")]
)
async def test_a_worker_that_fails_for_want_of_the_model_s_own_code_says_what_to_do(
    start: Start, without_code: str, fix: str
) -> None:
    worker = await start("wants_code", without_code=without_code)
    with pytest.raises(
        LoadFailed, match=rf"needs its own Python code, which was not pulled; .*{fix}; the worker's log"
    ):
        await within(worker.become_ready(PATIENCE))


async def test_other_failures_say_nothing_of_code(start: Start) -> None:
    worker = await start("crash", without_code="pull it")
    with pytest.raises(LoadFailed, match=r"RuntimeError: no memory; see the worker's log"):
        await within(worker.become_ready(PATIENCE))


async def test_a_known_cause_brings_its_fix_and_the_server_s_log_has_both(
    start: Start, runtime: Path, caplog: pytest.LogCaptureFixture
) -> None:
    worker = await start("full_disk")
    with pytest.raises(LoadFailed) as caught:
        await within(worker.become_ready(PATIENCE))
    message = str(caught.value)
    assert message.startswith("the model could not be loaded: the disk is full /caches/graph; free disk space (")
    assert "\n" not in message
    logged = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert logged[:2] == ["the model could not be loaded", "  cause: the disk is full /caches/graph"]
    assert logged[2].startswith("  fix: free disk space (")
    assert logged[3] == f"  the worker's log: {runtime / 'worker.log'}"


async def test_a_worker_that_is_killed_while_loading_names_the_signal_and_what_it_means(start: Start) -> None:
    worker = await start("silent")
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(OutOfMemory, match=r"killed by SIGKILL, most likely by the kernel because memory ran out; free"):
        await within(worker.become_ready(PATIENCE))


async def test_a_load_for_which_the_gpu_had_too_little_memory_says_so_in_kind(start: Start) -> None:
    worker = await start("gpu_full")
    with pytest.raises(OutOfMemory, match=r"memory of GPU 0 ran out: 2.00 GiB more were needed"):
        await within(worker.become_ready(PATIENCE))


def test_the_causes_that_are_want_of_memory_are_in_the_catalogue() -> None:
    known = {cause.key for cause in (*catalogue(), *signals().values())}
    assert known >= OUT_OF_MEMORY


async def test_a_worker_that_could_not_write_its_log_tells_of_the_full_disk(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 0}))
    worker = await start("wordless")
    with pytest.raises(LoadFailed, match=r"the disk is full .*worker\.log; free disk space"):
        await within(worker.become_ready(PATIENCE))


async def test_a_log_that_cannot_be_written_is_an_error_with_its_cause(tmp_path: Path) -> None:
    (tmp_path / "logs").touch()
    spec = WorkerSpec([], {}, tmp_path / "1.sock", tmp_path / "logs" / "m.log", Memory(0, 0), command("silent"))
    with pytest.raises(LoadFailed, match=r"^cannot write the worker's log: .*File exists.*; check that the dir"):
        await WorkerProcess.start(spec)


async def test_the_cause_of_a_later_end_is_in_the_server_s_log(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    worker = await start("ready")
    await within(worker.become_ready(PATIENCE))
    os.kill(worker.pid, signal.SIGKILL)
    await within(asyncio.shield(worker.exited))
    assert f"worker {worker.pid} ended by itself" in caplog.text
    assert "cause: a process of the worker was killed by SIGKILL" in caplog.text


async def test_a_worker_that_has_died_says_why(start: Start, runtime: Path) -> None:
    worker = await start("ready")
    await within(worker.become_ready(PATIENCE))
    os.kill(worker.pid, signal.SIGSEGV)
    await within(asyncio.shield(worker.exited))
    await within(worker.stop(grace=0))
    assert worker.why_it_died() == (
        "its worker died: a process of the worker was killed by SIGSEGV: a crash in native code; check that the "
        "versions of vLLM, PyTorch and the driver are compatible; read the worker's log; the worker's log: "
        + str(runtime / "worker.log")
    )


async def test_a_worker_that_answers_is_left_alone_and_asked_again(start: Start) -> None:
    worker = await start("answering", hang_timeout=2.0)
    await within(worker.become_ready(PATIENCE))
    await line_of_log(worker, "answered", number=3)
    assert not worker.exited.done()


@pytest.mark.parametrize("behaviour", ["answering", "mute"])
async def test_a_worker_that_hangs_is_killed_and_the_server_s_log_says_so(
    start: Start, caplog: pytest.LogCaptureFixture, behaviour: str
) -> None:
    worker = await start(behaviour, hang_timeout=0.5)
    await within(worker.become_ready(PATIENCE))
    if behaviour == "answering":
        os.kill(worker.pid, signal.SIGSTOP)
    assert await within(asyncio.shield(worker.exited)) == -signal.SIGKILL
    assert f"worker {worker.pid} has not answered for 0 s and is killed" in caplog.text
    assert "cause: one of its processes hangs or was paused" in caplog.text
    assert "ended by itself" not in caplog.text
    assert worker.why_it_died().startswith("its worker died: one of its processes hangs or was paused; ")


async def test_without_a_limit_nobody_looks_whether_a_worker_hangs(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched: list[object] = []
    monkeypatch.setattr("vllama.scheduler.process.until_silent", lambda *arguments: watched.append(arguments))
    worker = await start("mute")
    await within(worker.become_ready(PATIENCE))
    await within(worker.sleep())  # the event loop has had time to begin what is due
    assert watched == []


async def test_a_worker_is_watched_only_while_it_is_awake(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    watches: list[str] = []

    async def watch(*arguments: object) -> None:
        watches.append("watched")
        try:
            await asyncio.Event().wait()
        finally:
            watches.append("left alone")

    monkeypatch.setattr("vllama.scheduler.process.until_silent", watch)
    worker = await start("ready", hang_timeout=PATIENCE)
    await within(worker.become_ready(PATIENCE))
    await within(worker.sleep())
    assert watches == ["watched", "left alone"]
    await within(worker.wake(keeps_copy=False))
    await within(worker.sleep())
    assert watches == ["watched", "left alone"] * 2


@pytest.mark.parametrize("grace", [PATIENCE, 0], ids=["politely", "at once"])
async def test_an_end_that_was_asked_for_has_no_cause(
    start: Start, caplog: pytest.LogCaptureFixture, grace: float
) -> None:
    worker = await start("ready")
    await within(worker.become_ready(PATIENCE))
    await within(worker.stop(grace=grace))
    assert "cause:" not in caplog.text


async def test_a_worker_that_is_given_up_while_it_serves_leaves_its_cause_in_the_server_s_log(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    worker = await start("ready")
    await within(worker.become_ready(PATIENCE))
    await within(worker.give_up())
    assert f"worker {worker.pid} does not serve any more" in caplog.text
    assert "cause: " in caplog.text


async def test_a_load_without_progress_is_given_up(start: Start) -> None:
    worker = await start("silent")
    with pytest.raises(LoadFailed, match=r"^the model made no progress in loading for 0 s"):
        await within(worker.become_ready(0.2))
    assert worker.exited.done()


async def test_a_worker_that_listens_but_answers_nothing_right_is_given_up_however_its_log_grows(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vllama.scheduler.process._TRIAL_SECONDS", 0.1)
    worker = await start("refusing")
    with pytest.raises(
        LoadFailed,
        match=r"^the model was loaded, but its worker does not respond: KeyError: 'lm_head'; see the worker's",
    ):
        await within(worker.become_ready(PATIENCE))
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


@pytest.mark.parametrize("how", ["killed", "killed while loading", "stopped"])
async def test_the_shared_memory_of_a_killed_worker_is_removed(
    start: Start, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = await start("sharing_while_loading" if how == "killed while loading" else "sharing")
    segment = Path("/dev/shm") / await line_of_log(worker, "segment ")
    if how != "killed while loading":
        await within(worker.become_ready(PATIENCE))
    assert segment.exists()
    if how == "killed while loading":
        kill_when_seen(worker, monkeypatch)
        with pytest.raises(LoadFailed, match="SIGKILL"):
            await within(worker.become_ready(PATIENCE))
    elif how == "killed":
        os.kill(worker.pid, signal.SIGKILL)
    await within(worker.stop(grace=0))
    assert not segment.exists()


def kill_when_seen(worker: WorkerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kill it as soon as somebody has seen its shared memory."""

    def look(group: int) -> set[Path]:
        if found := shared_memory(group):
            os.kill(worker.pid, signal.SIGKILL)
        return found

    monkeypatch.setattr("vllama.scheduler.process.shared_memory", look)


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
    monkeypatch.setattr("vllama.scheduler.process.living_members", lambda group: [])
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
