"""From a manifest to a starting worker: flags, environment, socket, log."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from vllama.errors import LoadFailed, VllamaError
from vllama.scheduler import engine_flags
from vllama.scheduler.adapters import room_given
from vllama.scheduler.memory import Placement, Unfit, flags
from vllama.scheduler.memory import environment as memory_environment
from vllama.scheduler.planner import Look, Planner
from vllama.scheduler.policy import Room, anywhere
from vllama.scheduler.probe import produce_one_class, produce_one_embedding, produce_one_token
from vllama.scheduler.process import COMMAND, Memory, WorkerProcess, WorkerSpec, check_flags
from vllama.scheduler.room import Occupant, PlannedRoom
from vllama.scheduler.serving import Serving
from vllama.scheduler.spares import Spares
from vllama.settings import Settings
from vllama.store import caches, remote_code
from vllama.store.description import ModelDescription, describe
from vllama.store.manifest import Manifest
from vllama.store.model_store import ModelStore
from vllama.worker.profile import SUPERVISED

log = logging.getLogger(__name__)

_TRIALS = {"embedding": produce_one_embedding, "rerank": produce_one_class, "classify": produce_one_class}
"""What a model has to do before it counts as loaded; whatever is not in here writes text."""


class Launcher:
    """Starts workers for one gateway; owns the directory of their sockets."""

    def __init__(
        self,
        settings: Settings,
        *,
        user_flags: Sequence[str] = (),
        compiled: bool = False,
        command: Sequence[str] = COMMAND,
        look: Look | None = None,
    ) -> None:
        self._settings = settings
        self._command = tuple(command)
        self._user_flags = tuple(user_flags)
        self.serving = Serving(user_flags)
        self.planner = Planner(settings, self.serving, look=look)
        self._compiled = compiled
        self._on_cpu = not engine_flags.has_gpu()
        self._numbers = itertools.count(1)
        self._logs = settings.models / "logs"
        self.runtime = _new_runtime_directory()
        self._spares = Spares(settings.spare_workers, self._command, self._usual_environment, self._logs / "spare.log")
        for name in engine_flags.REMOVED_VARIABLES:
            if os.environ.get(name):
                log.warning("%s is not passed to the models' workers: vllama could not talk to them", name)

    async def check_flags(self) -> None:
        """Ask vLLM about the user's flags, if there are any. Raises BadEngineFlags."""
        if self._user_flags:
            await check_flags(self._user_flags, self._environment(), self._command)

    def keep_spares(self, is_quiet: Callable[[], bool]) -> None:
        """Prepare spare workers from now on, as many as the settings say, when it is quiet."""
        self._spares.open(is_quiet)

    async def drop_spares(self) -> None:
        """End the spare workers, and prepare no more."""
        await self._spares.close()

    def engine_of(self, manifest: Manifest) -> str:
        """The identity of the engine that serves the model: models with the same can share a worker."""
        return self.serving.engine_of(manifest)

    async def room(
        self, manifest: Manifest, occupants: Sequence[Occupant | None], asleep: Placement | None = None
    ) -> Room:
        """The room for this model on the machine as it is now; `asleep` is its placement where its worker sleeps.

        An occupant that was not planned is None: what it holds is not known, and then there is room anywhere.
        """
        machine = await self.planner.machine()
        planned = [occupant for occupant in occupants if occupant is not None]
        if machine is None or len(planned) < len(occupants):
            return anywhere
        return PlannedRoom(machine, planned, asleep or self.planner.need(manifest, machine))

    async def start(self, manifest: Manifest, placement: Placement | None = None) -> WorkerProcess:
        """Start a worker for this model, and for those that have an adapter on it; it is not ready yet.

        Without a placement it takes one as if no other worker were there. Raises LoadFailed where there is none.
        """
        placement = placement or await self._place_alone(manifest)
        description = describe(manifest)
        self.serving.check_adapter(manifest)
        rank = self.serving.adapter_rank(manifest, ModelStore(self._settings.models).list())
        served = self.serving.plan(manifest)
        trial = next((trial for what, trial in _TRIALS.items() if what in served.capabilities), produce_one_token)
        name = manifest.name
        socket = self.runtime / f"{next(self._numbers)}.sock"
        arguments = engine_flags.command_line(
            manifest.snapshot,
            list(dict.fromkeys([name.display, name.display.removesuffix(":latest"), name.full])),
            socket,
            self._settings,
            user_flags=self.serving.flags(manifest, rank),
            on_cpu=self._on_cpu,
            compiled=self._compiled,
            pools=trial is not produce_one_token,
            dtype=engine_flags.computing_type(description, on_cpu=self._on_cpu),
            planned=flags(placement) if placement else self._unplanned(description),
        )
        environment = {**self._worker_environment(arguments), **(memory_environment(placement) if placement else {})}
        cache = caches.use(self._settings.models, manifest.weights_digest)
        if cache is not None:
            environment |= caches.variables(self._settings.models, manifest.weights_digest, environment)
        spec = WorkerSpec(
            arguments=arguments,
            environment=environment,
            socket=socket,
            memory=self._memory(manifest, placement),
            log=self._logs / f"{re.sub('[^A-Za-z0-9._-]', '_', name.display)}.log",
            command=self._command,
            trial=trial,
            hang_timeout=self._settings.hang_timeout,
            adapter_rank=room_given([*manifest.engine_flags, *self._user_flags], rank),
            without_code=remote_code.advice(manifest),
        )
        with ExitStack() as held:
            if cache is not None:
                held.callback(cache.close)
            worker = await self._spares.start(spec)
            holding = held.pop_all()
        worker.exited.add_done_callback(lambda _: holding.close())
        return worker

    async def bring_up(
        self, worker: WorkerProcess, manifest: Manifest, placement: Placement | None, stall_timeout: float | None
    ) -> Placement | None:
        """Wait until a worker can serve, and measure what it took; returns the placement with that.

        Raises LoadFailed as `become_ready` does.
        """
        await worker.become_ready(stall_timeout)
        return await self.planner.learn_load(manifest, placement, worker.pid) if placement else None

    async def put_to_sleep(
        self, worker: WorkerProcess, manifest: Manifest, placement: Placement | None
    ) -> tuple[float, Placement | None]:
        """Send a worker to sleep, and measure what it keeps where that is not known; returns the seconds, too.

        Raises SleepFailed.
        """
        if placement is None or self.planner.knows_sleep(manifest, placement):
            return await worker.sleep(), placement
        before = await self.planner.before_sleep(worker.pid)
        seconds = await worker.sleep()
        if before is None:
            return seconds, placement
        return seconds, await self.planner.learn_sleep(manifest, placement, worker.pid, before)

    async def _place_alone(self, manifest: Manifest) -> Placement | None:
        """The placement on the machine as it is; None where only vLLM can see what there is."""
        machine = await self.planner.machine()
        if machine is None:
            return None
        found = self.planner.place(manifest, machine)
        if isinstance(found, Unfit):
            raise LoadFailed(found.message)
        return found

    def _unplanned(self, description: ModelDescription) -> list[str]:
        """What is said of memory where only vLLM can see it: the context, or that vLLM finds the largest that fits."""
        wanted = self._settings.context_length
        return ["--max-model-len", str(min(wanted, description.context_length or wanted) or -1)]

    def _memory(self, manifest: Manifest, placement: Placement | None) -> Memory:
        """What it was promised, or the weights where nothing was planned."""
        total = placement.claim * len(placement.devices) if placement else manifest.size
        return Memory(total, 0 if self._on_cpu else total)

    def adopt(self, settings: Settings) -> None:
        """Start workers by these settings from now on."""
        self._settings = settings
        self.planner.adopt(settings)

    def close(self) -> None:
        """Remove the directory of the sockets."""
        shutil.rmtree(self.runtime, ignore_errors=True)

    def _usual_environment(self) -> dict[str, str]:
        """That of a worker whose model brings no flags."""
        return self._worker_environment(
            engine_flags.command_line(
                Path("model"),
                [],
                Path("socket"),
                self._settings,
                user_flags=self._user_flags,
                on_cpu=self._on_cpu,
                compiled=self._compiled,
            )
        )

    def _worker_environment(self, arguments: Sequence[str]) -> dict[str, str]:
        return {
            **engine_flags.eager_environment(arguments, on_cpu=self._on_cpu),
            **caches.shared_variables(self._settings.models, os.environ),
            **self._environment(),
            SUPERVISED: "1",
        }

    def _environment(self) -> dict[str, str]:
        return engine_flags.environment(os.environ, self.runtime, on_cpu=self._on_cpu, user_flags=self._user_flags)


def _new_runtime_directory() -> Path:
    """A private directory for sockets; those that killed gateways left behind are removed.

    It is where the system wants it, or, where that cannot be, in the directory for temporary files. Raises
    RuntimeDirectoryError where no place will do.
    """
    refusals = []
    for base in dict.fromkeys(filter(None, [os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp"])):  # noqa: S108
        _clear(Path(base))
        try:
            directory = Path(tempfile.mkdtemp(prefix=f"vllama-{os.getpid()}-", dir=base))
        except OSError as error:
            refusals.append(f"{base}: {error.strerror}")
            continue
        if len(os.fsencode(directory)) + _LONGEST_NAME <= _LONGEST_SOCKET_PATH:
            for refusal in refusals:
                log.warning("no sockets in %s; they are in %s", refusal, directory)
            return directory
        directory.rmdir()
        refusals.append(f"{base}: the path of a socket in it would be longer than the kernel allows")
    reasons = "; ".join(refusals)
    raise VllamaError(
        f"no directory for the workers' sockets ({reasons}); set XDG_RUNTIME_DIR to a short one that can be written to"
    )


def _clear(base: Path) -> None:
    """Remove the directories of gateways that are gone."""
    for stale in base.glob("vllama-*-*"):
        pid = stale.name.split("-")[1]
        with contextlib.suppress(FileNotFoundError):  # another gateway that starts now may be quicker
            if pid.isdigit() and stale.lstat().st_uid == os.getuid() and not _is_alive(int(pid)):
                shutil.rmtree(stale, ignore_errors=True)


_LONGEST_SOCKET_PATH = 107
_LONGEST_NAME = len("/") + 36
"""vLLM names its own sockets by UUIDs; those of channels are shorter."""


def _is_alive(pid: int) -> bool:
    with contextlib.suppress(PermissionError):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
    return True
