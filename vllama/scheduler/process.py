"""One worker's process tree: start, become ready, stop, and know when it died."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from vllama.errors import BadEngineFlags, LoadFailed, OutOfMemory, VllamaError
from vllama.scheduler.causes import Diagnosis
from vllama.scheduler.control import tell
from vllama.scheduler.engine_flags import sleeps
from vllama.scheduler.group import Computing, living_members, shared_memory
from vllama.scheduler.load_phases import LoadProgress
from vllama.scheduler.probe import Trial, produce_one_token, served_context
from vllama.scheduler.sockets import remove_dead_sockets
from vllama.scheduler.watch import until_silent
from vllama.scheduler.worker_log import OUT_OF_MEMORY, WorkerLog, open_log, refused_flags
from vllama.worker.controls import SLEEP, WAKE
from vllama.worker.lifeline import PARENT_VARIABLE

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.05
_MOST_POLL_SECONDS = 1.0
_LOOK_SECONDS = 1.0
_TRIAL_SECONDS = 60.0
"""A worker that listens and fails for so long will not do better: each failure would make its log grow for ever."""
_USAGE_EXIT = 2
_SLEEP_SECONDS, _WAKE_SECONDS = 180.0, 60.0
"""Hundreds of GiB are copied, and the first time into memory that has to be pinned; it is seconds in most cases."""

_KILL_SECONDS = 10.0
"""Killed processes that hold much memory take a while to be gone; longer than this takes only a stuck driver."""

COMMAND = (sys.executable, "-m", "vllama.worker.launch")
"""Runs vLLM's API server with our plugin."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What a worker holds, in bytes: in all, and on GPUs."""

    total: int
    gpu: int


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """All that a worker's start needs.

    `socket` is where it will listen, `log` gets its output, and it is ready once it passes the `trial`. Once it is,
    it is killed where it does not answer for `hang_timeout` seconds; None for never. LoRA
    adapters up to `adapter_rank` can be served by it, none where that is 0. `without_code` is the fix where it
    fails for want of the model's own code.
    """

    arguments: Sequence[str]
    environment: Mapping[str, str]
    socket: Path
    log: Path
    memory: Memory
    command: Sequence[str] = COMMAND
    trial: Trial = produce_one_token
    hang_timeout: float | None = None
    adapter_rank: int = 0
    without_code: str = ""


class WorkerProcess:
    """A process tree in a session of its own; it dies with the gateway (vllama.worker.lifeline).

    One-shot: once it has exited it is not started again. `exited` resolves when the main process has,
    for whatever reason; `settled` is set when its load has come to its end, good or bad.
    """

    def __init__(self, spec: WorkerSpec, process: asyncio.subprocess.Process) -> None:
        self._spec = spec
        self._process = process
        self.context_length = 0
        self.channels: tuple[Path, ...] = ()
        self.log = WorkerLog(spec.log, spec.without_code)
        self._canary: dict[str, Any] = {}
        self.settled = asyncio.Event()
        self._shared_memory: set[Path] = set()
        self._serves = False
        self._cause_of_death: Diagnosis | None = None
        self._watch: asyncio.Task[None] | None = None
        self.exited: asyncio.Task[int] = asyncio.create_task(self._reap())

    @classmethod
    async def start(cls, spec: WorkerSpec) -> WorkerProcess:
        """Start the processes; they are not ready yet."""
        with open_log(spec.log) as output:
            process = await start_process([*spec.command, *spec.arguments], spec.environment, output)
        log.info("worker %d starts: %s", process.pid, " ".join(spec.arguments))
        return cls(spec, process)

    @property
    def pid(self) -> int:
        """The main process, which leads the group."""
        return self._process.pid

    @property
    def socket(self) -> Path:
        """Where it listens once ready."""
        return self._spec.socket

    @property
    def memory(self) -> Memory:
        """What it holds."""
        return self._spec.memory

    @property
    def adapter_rank(self) -> int:
        """The highest rank of LoRA adapters that it has room for; 0 for none."""
        return self._spec.adapter_rank

    async def become_ready(self, stall_timeout: float | None) -> None:
        """Return when it has passed its trial; `context_length` and `channels` are known then.

        Raises LoadFailed with cause and fix where it exits, makes no progress (its log does not grow) for
        `stall_timeout` seconds, or only fails once it listens; BadEngineFlags where vLLM refused its flags.
        """
        refusals, looked_at = _Refusals(), -math.inf
        while True:
            await asyncio.wait({self.exited}, timeout=refusals.pause)
            if self.exited.done():
                raise self._failure(self.exited.result())
            if (now := asyncio.get_running_loop().time()) - looked_at > _LOOK_SECONDS:
                looked_at = now
                self._shared_memory |= shared_memory(self.pid)  # who is killed while loading leaves it, too
            self.channels = self._find_channels()
            if self.channels:
                if await self._spec.trial(self._spec.socket, stall_timeout):
                    break
                refusals.note()
            if stall_timeout is None:
                continue
            if self.log.seconds_still() > stall_timeout:
                what = f"the model made no progress in loading for {stall_timeout:.0f} s"
                raise await self._given_up(what, _STALLED)
            if refusals.seconds() > min(stall_timeout, _TRIAL_SECONDS):
                raise await self._given_up("the model was loaded but answers nothing")
        self.context_length = await served_context(self._spec.socket, stall_timeout)
        self._shared_memory |= shared_memory(self.pid)
        self._serves = True
        self._begin_watch()
        self.settled.set()

    @property
    def can_sleep(self) -> bool:
        """Whether it was started so that it can."""
        return sleeps(self._spec.arguments)

    async def sleep(self, timeout: float = _SLEEP_SECONDS) -> float:
        """Have it give up its devices and keep its weights in the host's memory; returns the seconds that it took.

        It must have no requests. Raises SleepFailed: it has to be stopped then. The first time takes longer: the
        canary is made, and the host's memory pinned.
        """
        self._end_watch()
        reply = await tell(self._spec.socket, SLEEP, self._canary, timeout)
        self._canary = {"canary": reply["canary"]}
        return float(reply["seconds"])

    async def wake(self, timeout: float = _WAKE_SECONDS) -> float:
        """Have it take its devices back; returns the seconds that it took, after which it is ready.

        Raises SleepFailed where it does not, or does not answer as it did before it slept: it has to be stopped then.
        """
        reply = await tell(self._spec.socket, WAKE, self._canary, timeout)
        self._begin_watch()
        return float(reply["seconds"])

    async def stop(self, grace: float) -> None:
        """End the whole tree: politely for up to `grace` seconds, then with SIGKILL. Idempotent.

        On return its memory is free, and its sockets and its shared memory are removed.
        """
        if self._serves and not grace:
            self._note_death("does not serve any more", self.log.diagnose())
        self._serves = False
        if grace > 0 and not self.exited.done():
            self._signal(signal.SIGTERM)
            await asyncio.wait({self.exited}, timeout=grace)
        if not self.exited.done():  # afterwards the number may be that of others
            self._shared_memory |= shared_memory(self.pid)
            self._signal(signal.SIGKILL)
        await asyncio.shield(self.exited)
        await self._group_has_gone()
        for path in (*self._spec.socket.parent.glob(f"{self._spec.socket.name}*"), *self._shared_memory):
            path.unlink(missing_ok=True)
        remove_dead_sockets(self._spec.socket.parent)  # vLLM's own have names that only it knows

    def _find_channels(self) -> tuple[Path, ...]:
        """The channel sockets (vllama.worker.channel.socket_path) once every API server process has its own."""
        found = sorted(self._spec.socket.parent.glob(f"{self._spec.socket.name}.*of*"))
        return tuple(found) if found and len(found) == int(found[0].name.rpartition("of")[2]) else ()

    def load_progress(self) -> LoadProgress:
        """How far its load is."""
        return self.log.load_progress()

    def why_it_died(self) -> str:
        """Cause and fix of the end of a worker that was ready, as far as they are known by now."""
        return f"its worker died: {self._cause_of_death or self.log.diagnose()}; the worker's log: {self._spec.log}"

    def _note_death(self, what: str, cause: Diagnosis) -> None:
        self._serves, self._cause_of_death = False, cause
        self.log.report(f"worker {self.pid} {what}", cause)

    async def _reap(self) -> int:
        status = await self._process.wait()
        self.settled.set()
        self._end_watch()
        if self._serves:
            self._note_death("ended by itself", self.log.diagnose(status))
        # What the main process left behind, as EngineCore after a kill -9, is still in its group.
        self._shared_memory |= shared_memory(self.pid)
        self._signal(signal.SIGKILL)
        return status

    def _begin_watch(self) -> None:
        if self._spec.hang_timeout is not None:
            self._watch = asyncio.create_task(self._kill_when_silent(self._spec.hang_timeout))

    def _end_watch(self) -> None:
        if self._watch is not None:
            self._watch.cancel()

    async def _kill_when_silent(self, limit: float) -> None:
        """End a worker that hangs: what waits for it learns that it died, and the next request loads it afresh."""
        computes = Computing(self.pid) if not self._spec.memory.gpu else lambda: False
        await until_silent(self.channels, limit, computes)
        self._note_death(f"has not answered for {limit:.0f} s and is killed", _HANGS)
        self._signal(signal.SIGKILL)

    async def _group_has_gone(self) -> None:
        """Wait for the rest of the tree, which init reaps and not we: a GPU's memory is free only then."""
        try:
            async with asyncio.timeout(_KILL_SECONDS):
                while living_members(self.pid):  # noqa: ASYNC110 - nothing tells when a stranger ends
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError:
            log.warning("processes of worker %d are still there: %s", self.pid, living_members(self.pid))

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    async def _given_up(self, what: str, otherwise: Diagnosis | None = None) -> LoadFailed:
        """Stop it, and say why: what its log tells, or `otherwise` where the catalogue does not have that."""
        await self.stop(grace=0)
        found = self.log.diagnose()
        return self._load_failed(what, found.known_or(otherwise) if otherwise else found)

    def _failure(self, status: int) -> VllamaError:
        if status == _USAGE_EXIT and (refusal := self.log.refused_flags()):
            return BadEngineFlags(refusal)
        return self._load_failed("the model could not be loaded", self.log.diagnose(status))

    def _load_failed(self, what: str, diagnosis: Diagnosis) -> LoadFailed:
        self.log.report(what, diagnosis)
        kind = OutOfMemory if diagnosis.key in OUT_OF_MEMORY else LoadFailed
        return kind(f"{what}: {diagnosis}; the worker's log: {self._spec.log}")


async def start_process(
    command: Sequence[str], environment: Mapping[str, str], output: BinaryIO, *, has_orders: bool = False
) -> asyncio.subprocess.Process:
    """Start a process that is tied to us and leads a group of its own; `has_orders` gives it a pipe as its input."""
    return await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE if has_orders else asyncio.subprocess.DEVNULL,
        stdout=output,
        stderr=asyncio.subprocess.STDOUT,
        env={**environment, PARENT_VARIABLE: str(os.getpid()), "PYTHONUNBUFFERED": "1"},
        start_new_session=True,  # Ctrl-C in the terminal is for the gateway alone
    )


_HANGS = Diagnosis(
    "hung", "one of its processes hangs or was stopped", "set VLLAMA_HANG_TIMEOUT to more if it is only slow"
)
_STALLED = Diagnosis(
    "stalled", "its log has not grown since", "set OLLAMA_LOAD_TIMEOUT to more if it is only slow, or read the log"
)


class _Refusals:
    """Trials that failed although the worker listens: for how long, and how long to wait before the next."""

    def __init__(self) -> None:
        self._since: float | None = None
        self.pause = _POLL_SECONDS

    def note(self) -> None:
        """Another one."""
        if self._since is None:
            self._since = asyncio.get_running_loop().time()
        self.pause = min(2 * self.pause, _MOST_POLL_SECONDS)

    def seconds(self) -> float:
        """Since the first."""
        return 0.0 if self._since is None else asyncio.get_running_loop().time() - self._since


async def check_flags(flags: Sequence[str], environment: Mapping[str, str], command: Sequence[str] = COMMAND) -> None:
    """Ask vLLM whether it knows these flags; takes as long as importing it. Raises BadEngineFlags."""
    process = await asyncio.create_subprocess_exec(
        *command,
        "--check-flags",
        *flags,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**environment, PARENT_VARIABLE: str(os.getpid())},
        start_new_session=True,
    )
    try:
        output, _ = await process.communicate()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        text = output.decode(errors="replace").strip()
        raise BadEngineFlags(refused_flags(text) or text.rsplit("\n", 1)[-1])
