"""Process tree of a worker: start, readiness, sleep, stop and death."""

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
from typing import BinaryIO

from vllama.errors import BadEngineFlags, LoadFailed, OutOfMemory, VllamaError
from vllama.protocol.environment import PARENT_PROCESS
from vllama.protocol.paths import FORGET_COPY, PREPARE_SLEEP, SLEEP, WAKE
from vllama.protocol.sockets import find_channel_sockets
from vllama.scheduler.causes import Diagnosis
from vllama.scheduler.control import tell
from vllama.scheduler.engine_flags import sleeps
from vllama.scheduler.group import Computing, living_members, shared_memory
from vllama.scheduler.load_phases import LoadProgress
from vllama.scheduler.probe import Trial, engine_slots, produce_one_token, served_context
from vllama.scheduler.sockets import remove_dead_sockets
from vllama.scheduler.watch import until_silent
from vllama.scheduler.worker_log import OUT_OF_MEMORY, WorkerLog, open_log, refused_flags

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.05
_MOST_POLL_SECONDS = 1.0
_LOOK_SECONDS = 1.0
_TRIAL_SECONDS = 60.0
"""Seconds after which a worker that listens but fails its trial is stopped, because its log grows with each failure."""
_USAGE_EXIT = 2
_SLEEP_SECONDS, _WAKE_SECONDS = 180.0, 60.0
"""Time limits in seconds: hundreds of GiB may be copied, the first time into memory that must be pinned."""

_LOG_SECONDS = 5.0
"""Seconds between looks at the size of the log."""

_KILL_SECONDS = 10.0
"""Seconds to wait for killed processes with much memory; only a stuck driver takes longer."""

COMMAND = (sys.executable, "-m", "vllama.worker.launch")
"""Command that runs vLLM's API server with our plugin."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of a worker in bytes: total, and on GPUs."""

    total: int
    gpu: int


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """Parameters for the start of a worker.

    It listens on `socket`, writes its output to `log`, and is ready once it passes the `trial`. After that it is killed
    if it does not answer for `hang_timeout` seconds; None for never. It supports LoRA adapters up to `adapter_rank`,
    none if that is 0. `without_code` is the fix if it fails because the model's own code is missing. `kept_logs` is the
    number of earlier logs to keep, `max_log_size` the size in bytes after which the worker gets a new one; 0 for never.
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
    kept_logs: int = 0
    max_log_size: int = 0


class WorkerProcess:
    """A process tree in a session of its own; it dies with the gateway (vllama.worker.lifeline).

    It is never restarted. `exited` resolves when the main process has exited for any reason;
    `settled` is set when its load has succeeded or failed. `can_sleep`: it was started with support for sleep.
    """

    def __init__(self, spec: WorkerSpec, process: asyncio.subprocess.Process) -> None:
        self._spec = spec
        self._process = process
        self.can_sleep = sleeps(spec.arguments)  # asked at the end of requests
        self.context_length = 0
        self.slots = 0
        self.channels: tuple[Path, ...] = ()
        self.log = WorkerLog(spec.log, spec.without_code)
        self.settled = asyncio.Event()
        self._shared_memory: set[Path] = set()
        self._serves = False
        self._cause_of_death: Diagnosis | None = None
        self._watch: asyncio.Task[None] | None = None
        self.exited: asyncio.Task[int] = asyncio.create_task(self._reap())
        if spec.max_log_size:
            self._rotating = asyncio.create_task(self._rotate_log(spec.max_log_size, spec.kept_logs))

    @classmethod
    async def start(cls, spec: WorkerSpec) -> WorkerProcess:
        """Start the processes without waiting until they are ready."""
        with open_log(spec.log, spec.kept_logs) as output:
            process = await start_process([*spec.command, *spec.arguments], spec.environment, output)
        log.info("starting worker %d: %s", process.pid, " ".join(spec.arguments))
        return cls(spec, process)

    @property
    def pid(self) -> int:
        """The id of the main process, which leads the group."""
        return self._process.pid

    @property
    def socket(self) -> Path:
        """The path of its HTTP socket."""
        return self._spec.socket

    @property
    def memory(self) -> Memory:
        """The memory that it holds."""
        return self._spec.memory

    @property
    def adapter_rank(self) -> int:
        """The maximum rank of LoRA adapters that it supports; 0 for none."""
        return self._spec.adapter_rank

    async def become_ready(self, stall_timeout: float | None) -> None:
        """Wait until it has passed its trial, and set `context_length`, `slots` and `channels`.

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
            self.channels = find_channel_sockets(self._spec.socket)
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
                raise await self._given_up("the model was loaded, but its worker does not respond")
        self.context_length = await served_context(self._spec.socket, stall_timeout)
        self.slots = await engine_slots(self._spec.socket, stall_timeout)
        self._shared_memory |= shared_memory(self.pid)
        self._serves = True
        self._begin_watch()
        self.settled.set()

    async def sleep(self, timeout: float = _SLEEP_SECONDS) -> float:
        """Free its devices, keep its weights in host memory, and return the seconds taken.

        It must have no requests. Raises SleepFailed: it has to be stopped then. Without a copy of its weights in the
        host's memory it takes longer: that memory is pinned and filled.
        """
        self._end_watch()
        reply = await tell(self._spec.socket, SLEEP, {}, timeout)
        return float(reply["seconds"])

    async def wake(self, timeout: float = _WAKE_SECONDS, *, keeps_copy: bool) -> float:
        """Wake it up until it is ready, and return the seconds taken.

        With `keeps_copy` the copy of its weights stays in the host's memory for the next sleep. Raises SleepFailed if
        it does not wake or its weights changed; it must be stopped then.
        """
        reply = await tell(self._spec.socket, WAKE, {"keeps_copy": keeps_copy}, timeout)
        self._begin_watch()
        return float(reply["seconds"])

    async def prepare_sleep(self, timeout: float = _SLEEP_SECONDS) -> None:
        """Have it begin to copy its weights to the host's memory while it serves. Raises SleepFailed."""
        await tell(self._spec.socket, PREPARE_SLEEP, {}, timeout)

    async def forget_copy(self, timeout: float = _SLEEP_SECONDS) -> None:
        """Have it give up the host's copy of its weights. It must be awake. Raises SleepFailed."""
        await tell(self._spec.socket, FORGET_COPY, {}, timeout)

    async def give_up(self) -> None:
        """Kill the whole tree because it does not serve as it should; log the cause if it was ready. Idempotent.

        On return its memory is free, as after `stop`.
        """
        if self._serves:
            self._note_death("does not serve any more", self.log.diagnose())
        await self.stop(grace=0)

    async def stop(self, grace: float) -> None:
        """End the whole tree because it is not needed: politely for up to `grace` seconds, then with SIGKILL.

        Idempotent. On return its memory is free, and its sockets and its shared memory are removed.
        """
        self._serves = False
        if grace > 0 and not self.exited.done():
            self._signal(signal.SIGTERM)
            await asyncio.wait({self.exited}, timeout=grace)
        if not self.exited.done():  # afterwards the id may belong to another process
            self._shared_memory |= shared_memory(self.pid)
            self._signal(signal.SIGKILL)
        await asyncio.shield(self.exited)
        await self._group_has_gone()
        for path in (*self._spec.socket.parent.glob(f"{self._spec.socket.name}*"), *self._shared_memory):
            path.unlink(missing_ok=True)
        remove_dead_sockets(self._spec.socket.parent)  # only vLLM knows the names of its own sockets

    def load_progress(self) -> LoadProgress:
        """Return the progress of its load."""
        return self.log.load_progress()

    def why_it_died(self) -> str:
        """Return the cause and fix of the end of a ready worker, as far as known."""
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
        # Leftovers of the main process, such as EngineCore after a kill -9, are still in its group.
        self._shared_memory |= shared_memory(self.pid)
        self._signal(signal.SIGKILL)
        return status

    async def _rotate_log(self, most: int, kept: int) -> None:
        """Keep the log from growing without end, as long as the worker runs."""
        while not (await asyncio.wait({self.exited}, timeout=_LOG_SECONDS))[0]:
            await asyncio.to_thread(self.log.rotate, most, kept)

    def _begin_watch(self) -> None:
        if self._spec.hang_timeout is not None:
            self._watch = asyncio.create_task(self._kill_when_silent(self._spec.hang_timeout))

    def _end_watch(self) -> None:
        if self._watch is not None:
            self._watch.cancel()

    async def _kill_when_silent(self, limit: float) -> None:
        """Kill a worker that hangs: its requests fail, and the next request loads the model again."""
        computes = Computing(self.pid) if not self._spec.memory.gpu else lambda: False
        await until_silent(self.channels, limit, computes)
        self._note_death(f"has not answered for {limit:.0f} s and is killed", _HANGS)
        self._signal(signal.SIGKILL)

    async def _group_has_gone(self) -> None:
        """Wait for the rest of the tree, which init reaps: GPU memory is free only after that."""
        try:
            async with asyncio.timeout(_KILL_SECONDS):
                while living_members(self.pid):  # noqa: ASYNC110 - nothing tells when a stranger ends
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError:
            log.warning("processes of worker %d are still running: %s", self.pid, living_members(self.pid))

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    async def _given_up(self, what: str, otherwise: Diagnosis | None = None) -> LoadFailed:
        """Stop it and return the error with the cause from its log, or `otherwise` if the catalogue has none."""
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
        env={**environment, PARENT_PROCESS: str(os.getpid()), "PYTHONUNBUFFERED": "1"},
        start_new_session=True,  # Ctrl-C in the terminal is for the gateway alone
    )


_HANGS = Diagnosis(
    "hung", "one of its processes hangs or was paused", "if it is only slow, increase VLLAMA_HANG_TIMEOUT"
)
_STALLED = Diagnosis(
    "stalled", "its log has not grown since", "read the log; if it is only slow, increase OLLAMA_LOAD_TIMEOUT"
)


class _Refusals:
    """Failed trials of a listening worker: their duration, and the pause before the next one."""

    def __init__(self) -> None:
        self._since: float | None = None
        self.pause = _POLL_SECONDS

    def note(self) -> None:
        """Record a failed trial and double the pause."""
        if self._since is None:
            self._since = asyncio.get_running_loop().time()
        self.pause = min(2 * self.pause, _MOST_POLL_SECONDS)

    def seconds(self) -> float:
        """Return the seconds since the first failed trial."""
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
        env={**environment, PARENT_PROCESS: str(os.getpid())},
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
