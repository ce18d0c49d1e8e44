"""Start of workers from manifests: flags, environment, socket and log."""

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

from vllama.durations import ZERO, to_seconds
from vllama.errors import LoadFailed, VllamaError
from vllama.protocol.environment import (
    CORES,
    GRAMMAR_TIMEOUT,
    MAX_SCHEMA_PROPERTIES,
    SUPERVISED,
    TEMPLATE_LENGTH,
    TEMPLATE_OUTPUT,
    TEMPLATE_TIMEOUT,
    UNTAGGED_CALLS,
)
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

log = logging.getLogger(__name__)

_TRIALS = {"embedding": produce_one_embedding, "rerank": produce_one_class, "classify": produce_one_class}
"""Trials that a model must pass to count as loaded; other models generate text."""


class Launcher:
    """Launcher of workers for one gateway; owns the directory of their sockets."""

    def __init__(
        self,
        settings: Settings,
        *,
        user_flags: Sequence[str] = (),
        compiled: bool = False,
        command: Sequence[str] = COMMAND,
        look: Look | None = None,
        make_spares: Callable[..., Spares] = Spares,
    ) -> None:
        self._settings = settings
        self._command = tuple(command)
        self._user_flags, token = engine_flags.without_token(user_flags)
        if token:
            os.environ["HF_TOKEN"] = token  # for pulls; a worker is offline
        self.serving = Serving(self._user_flags)
        self.planner = Planner(settings, self.serving, look=look)
        self._compiled = compiled
        self._on_cpu = not engine_flags.has_gpu()
        self._numbers = itertools.count(1)
        self._logs = settings.models / "logs"
        self.runtime = _new_runtime_directory()
        self._spares = make_spares(
            settings.spare_workers, self._command, self._usual_environment, self._logs / "spare.log"
        )
        for name in engine_flags.REMOVED_VARIABLES:
            if os.environ.get(name):
                log.warning("%s is not passed to workers, because vllama could not reach them with it", name)

    async def check_flags(self) -> None:
        """Check the user's flags with vLLM, if there are any. Raises BadEngineFlags."""
        if self._user_flags:
            await check_flags(self._user_flags, self._environment(), self._command)

    def keep_spares(self, is_quiet: Callable[[], bool]) -> None:
        """Keep as many spare workers as the settings say from now on, started while `is_quiet`."""
        self._spares.open(is_quiet)

    async def drop_spares(self) -> None:
        """Stop the spare workers and start no more."""
        await self._spares.close()

    def engine_of(self, manifest: Manifest) -> str:
        """Return the identity of the model's engine; models with the same engine can share a worker."""
        return self.serving.engine_of(manifest)

    async def room(
        self, manifest: Manifest, occupants: Sequence[Occupant | None], asleep: Placement | None = None
    ) -> Room:
        """Return the current room for this model; `asleep` is its placement if its worker sleeps.

        An unplanned occupant is None: its memory is unknown, and then there is room everywhere.
        """
        machine = await self.planner.machine()
        planned = [occupant for occupant in occupants if occupant is not None]
        if machine is None or len(planned) < len(occupants):
            return anywhere
        return PlannedRoom(machine, planned, asleep or self.planner.need(manifest, machine))

    async def start(self, manifest: Manifest, placement: Placement | None = None) -> WorkerProcess:
        """Start a worker for this model and its adapters, without waiting until it is ready.

        Without a placement, plans as if there were no other worker. Raises LoadFailed if it does not fit.
        """
        placement = placement or await self._place_alone(manifest)
        description = describe(manifest)  # also refuses files that were damaged since the request was checked
        self.serving.check_adapter(manifest)
        rank = self.serving.adapter_rank(manifest, ModelStore(self._settings.models).list())
        self._tell_of_cut(manifest)
        served = self.serving.served(manifest)
        trial = next((trial for what, trial in _TRIALS.items() if what in served.capabilities), produce_one_token)
        name = manifest.name
        log_name = re.sub("[^A-Za-z0-9._-]", "_", name.display) + (".embeddings" if manifest.embeds else "")
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
        ranks = len(placement.devices) if placement else 1
        if self._on_cpu and ranks > 1 and CORES not in os.environ:
            environment[CORES] = engine_flags.cores_of_ranks(ranks)
        code = caches.key_of(manifest)
        cache = caches.use(self._settings.models, code)
        if cache is not None:
            environment |= caches.variables(self._settings.models, code, environment)
        spec = WorkerSpec(
            arguments=arguments,
            environment=environment,
            socket=socket,
            memory=self._memory(manifest, placement),
            log=self._logs / f"{log_name}.log",
            command=self._command,
            trial=trial,
            hang_timeout=to_seconds(self._settings.hang_timeout),
            adapter_rank=room_given([*manifest.engine_flags, *self._user_flags], rank),
            without_code=remote_code.advice(manifest),
            kept_logs=self._settings.kept_logs,
            max_log_size=self._settings.max_log_size,
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
        """Wait until a worker can serve, measure its memory, and return the updated placement.

        Raises LoadFailed like `become_ready`.
        """
        await worker.become_ready(stall_timeout)
        return await self.planner.learn_load(manifest, placement, worker.pid) if placement else None

    async def put_to_sleep(
        self, worker: WorkerProcess, manifest: Manifest, placement: Placement | None
    ) -> tuple[float, Placement | None]:
        """Put a worker to sleep, measure its remaining memory if unknown, and return seconds and placement.

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
        """Return the placement on the current machine; None if only vLLM can read its memory."""
        machine = await self.planner.machine()
        if machine is None:
            return None
        found = self.planner.place(manifest, machine)
        if isinstance(found, Unfit):
            raise LoadFailed(found.message)
        return found

    def _tell_of_cut(self, manifest: Manifest) -> None:
        stated = self.serving.stated_context(self._settings)
        if cut := self.serving.cut_context(manifest, stated):
            log.warning(
                "%s has a context of %d tokens; the %d that are set for all models are cut to that",
                manifest.name.display,
                cut,
                stated,
            )

    def _unplanned(self, description: ModelDescription) -> list[str]:
        """Return memory flags if only vLLM can read the memory: the context, or that vLLM chooses it."""
        wanted = self._settings.context_length
        return ["--max-model-len", str(min(wanted, description.context_length or wanted) or -1)]

    def _memory(self, manifest: Manifest, placement: Placement | None) -> Memory:
        """Return its planned memory, or that of the weights if nothing was planned."""
        total = placement.claim * len(placement.devices) if placement else manifest.size
        return Memory(total, 0 if self._on_cpu else total)

    def adopt(self, settings: Settings) -> None:
        """Use these settings for workers from now on."""
        self._settings = settings
        self.planner.adopt(settings)

    def close(self) -> None:
        """Remove the directory of the sockets."""
        shutil.rmtree(self.runtime, ignore_errors=True)

    def _usual_environment(self) -> dict[str, str]:
        """Return the environment of a worker whose model has no flags."""
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
            UNTAGGED_CALLS: str(int(self._settings.untagged_calls)),
            TEMPLATE_TIMEOUT: f"{to_seconds(self._settings.template_timeout or ZERO):f}s",
            GRAMMAR_TIMEOUT: f"{to_seconds(self._settings.grammar_timeout or ZERO):f}s",
            MAX_SCHEMA_PROPERTIES: str(self._settings.max_schema_properties),
            TEMPLATE_OUTPUT: str(self._settings.template_output),
            TEMPLATE_LENGTH: str(self._settings.template_length),
        }

    def _environment(self) -> dict[str, str]:
        return engine_flags.environment(os.environ, self.runtime, on_cpu=self._on_cpu, user_flags=self._user_flags)


def _new_runtime_directory() -> Path:
    """Create a private directory for sockets, and remove those of killed gateways.

    It is where the system wants it, or, where that cannot be, in the directory for temporary files. Raises
    VllamaError where no place will do.
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
                log.warning("cannot create sockets in %s; using %s instead", refusal, directory)
            return directory
        directory.rmdir()
        refusals.append(f"{base}: the path of a socket in it would be longer than the kernel allows")
    reasons = "; ".join(refusals)
    raise VllamaError(
        f"no usable directory for the workers' sockets ({reasons}); set XDG_RUNTIME_DIR to a writable directory with a "
        "short path"
    )


def _clear(base: Path) -> None:
    """Remove the directories of gateways that have exited."""
    for stale in base.glob("vllama-*-*"):
        pid = stale.name.split("-")[1]
        with contextlib.suppress(FileNotFoundError):  # another starting gateway may be faster
            if pid.isdigit() and stale.lstat().st_uid == os.getuid() and not _is_alive(int(pid)):
                shutil.rmtree(stale, ignore_errors=True)


_LONGEST_SOCKET_PATH = 107
_LONGEST_NAME = len("/") + 36
"""Maximum length of a socket name: vLLM names its sockets by UUIDs; channel names are shorter."""


def _is_alive(pid: int) -> bool:
    with contextlib.suppress(PermissionError):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
    return True
