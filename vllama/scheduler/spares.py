"""Spare workers: processes that have already imported vLLM, which is half of a cold start.

A spare is prepared while no load and no request is running: imports take a core for about 10 s, and on a small machine
replies would take twice as long meanwhile. A load uses it if it was started with the environment that the worker needs;
another is prepared when that load has ended. A spare that dies is replaced.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vllama.machine.host import host_memory
from vllama.machine.proc import is_ending
from vllama.protocol.spare_order import SpareOrder
from vllama.scheduler.memory import gib
from vllama.scheduler.process import WorkerProcess, WorkerSpec, start_process
from vllama.scheduler.worker_log import open_log

log = logging.getLogger(__name__)

LATE_VARIABLES = frozenset(
    {
        "CUDA_DEVICE_ORDER",
        "CUDA_VISIBLE_DEVICES",
        "TORCHINDUCTOR_CACHE_DIR",
        "TRITON_CACHE_DIR",
        "VLLM_CACHE_ROOT",
        "VLLM_CPU_OMP_THREADS_BIND",
    }
)
"""Variables that a spare can still change, because no import reads them; all others must match."""

_PAUSE_SECONDS = 5.0
"""Seconds between the end of a load and the next import, because the new model is about to be used."""

_MOST_PATIENCE_SECONDS = 60.0
"""Maximum seconds for which a spare is postponed while requests are served."""

_MOST_PAUSE_SECONDS = 300.0
"""Maximum seconds before a dead spare is replaced: the pause doubles with each death."""


_LOOK_AGAIN_SECONDS = 30.0
"""Seconds until the next check after a shortage of memory."""

LEAST_FREE_BYTES = 4 * 1024**3
"""Minimum free host memory in bytes to start a spare."""


class Spares:
    """Manager of up to `count` spares that starts workers from them.

    `environment` is that of a worker without special needs. Spares write to `output`.
    """

    def __init__(
        self, count: int, command: Sequence[str], environment: Callable[[], Mapping[str, str]], output: Path
    ) -> None:
        self._count = count
        self._command = tuple(command)
        self._environment = environment
        self._output = output
        self._spares: dict[_Spare, asyncio.Task[None]] = {}  # with those who wait for their end
        self._preparing = 0
        self._loads = 0
        self._is_open = False
        self._is_quiet: Callable[[], bool] = lambda: True
        self._busy_since: float | None = None
        self._pause = _PAUSE_SECONDS
        self._next: asyncio.TimerHandle | None = None
        self._keeping: set[asyncio.Task[None]] = set()
        self._loading: set[asyncio.Task[None]] = set()

    @property
    def available(self) -> int:
        """The number of spares that a load could take, or that import for one."""
        return len(self._spares)

    def open(self, is_quiet: Callable[[], bool] = lambda: True) -> None:
        """Start to keep spares, the first at once or as soon as `is_quiet`."""
        self._is_open = True
        self._is_quiet = is_quiet
        self._output.unlink(missing_ok=True)
        self._replenish()

    async def close(self) -> None:
        """Stop the spares and start no more."""
        self._is_open = False
        if self._next:
            self._next.cancel()
        for spare in self._spares:
            spare.kill()
        self._spares.clear()
        if self._keeping:
            await asyncio.wait(self._keeping)

    async def start(self, spec: WorkerSpec) -> WorkerProcess:
        """Start a worker, from a spare if one fits."""
        self._loads += 1
        try:
            worker = await self._from_spare(spec) or await WorkerProcess.start(spec)
        except BaseException:
            self._loads -= 1
            raise
        self._in_background(self._loading, self._after_load(worker))
        return worker

    async def _from_spare(self, spec: WorkerSpec) -> WorkerProcess | None:
        for spare in list(self._spares):
            changes = late_changes(spare.environment, spec.environment)
            if changes is None or spare not in self._spares:  # it may have died while another was tried
                continue
            open_log(spec.log, spec.kept_logs).close()
            self._spares.pop(spare).cancel()
            if await spare.obey(SpareOrder(spec.arguments, changes, str(spec.log))):
                self._pause = _PAUSE_SECONDS
                log.info("starting worker %d from a spare: %s", spare.process.pid, " ".join(spec.arguments))
                return WorkerProcess(spec, spare.process)
        return None

    async def _after_load(self, worker: WorkerProcess) -> None:
        await worker.settled.wait()
        self._loads -= 1
        self._replenish_later(self._pause)

    def _replenish_later(self, seconds: float) -> None:
        if self._next:
            self._next.cancel()
        self._next = asyncio.get_running_loop().call_later(seconds, self._replenish)

    def _replenish(self) -> None:
        if not self._is_open or self._loads or self._preparing + len(self._spares) >= self._count:
            return
        if host_memory().free < LEAST_FREE_BYTES:
            log.debug("not starting a spare worker: less than %s of memory is free", gib(LEAST_FREE_BYTES))
            self._replenish_later(_LOOK_AGAIN_SECONDS)
        elif self._would_disturb():
            self._replenish_later(_PAUSE_SECONDS)
        else:
            self._preparing += 1
            self._in_background(self._keeping, self._keep_one())

    def _would_disturb(self) -> bool:
        """Return whether requests are served and waiting for quiet is still worthwhile."""
        now = asyncio.get_running_loop().time()
        self._busy_since = None if self._is_quiet() else self._busy_since or now
        if self._busy_since is None or now - self._busy_since > _MOST_PATIENCE_SECONDS:
            self._busy_since = None
            return False
        return True

    async def _keep_one(self) -> None:
        try:
            spare = await self._start_spare()
        finally:
            self._preparing -= 1
        log.debug("spare worker %d is importing vLLM", spare.process.pid)
        if not self._is_open:
            spare.kill()
        elif task := asyncio.current_task():
            self._spares[spare] = task
            self._replenish()
        status = await spare.process.wait()
        if self._spares.pop(spare, None):
            log.warning(
                "a spare worker exited unexpectedly (exit status %d); see its output in %s", status, self._output
            )
            self._pause = min(2 * self._pause, _MOST_PAUSE_SECONDS)
            self._replenish_later(self._pause)

    async def _start_spare(self) -> _Spare:
        environment = dict(self._environment())
        self._output.parent.mkdir(parents=True, exist_ok=True)
        with self._output.open("ab") as output:
            process = await start_process([*self._command, "--spare"], environment, output, has_orders=True)
        return _Spare(process, environment)

    @staticmethod
    def _in_background(tasks: set[asyncio.Task[None]], work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)


@dataclass(frozen=True, slots=True, eq=False)
class _Spare:
    process: asyncio.subprocess.Process
    environment: Mapping[str, str]

    async def obey(self, order: SpareOrder) -> bool:
        """Send it an order; return False if it has died."""
        stdin = self.process.stdin
        if self.process.returncode is not None or stdin is None or is_ending(self.process.pid):
            return False
        try:
            stdin.write(order.encode())
            await stdin.drain()
        except (BrokenPipeError, ConnectionResetError):
            return False
        stdin.close()
        return self.process.returncode is None

    def kill(self) -> None:
        """Kill the spare now; the event loop reaps it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


def late_changes(spare: Mapping[str, str], wanted: Mapping[str, str]) -> dict[str, str] | None:
    """Return the environment changes for a spare; None if they are too late."""
    differing = {name for name in spare.keys() | wanted.keys() if spare.get(name) != wanted.get(name)}
    if not differing <= LATE_VARIABLES & wanted.keys():
        return None
    return {name: wanted[name] for name in differing}
