"""From a manifest to a starting worker: flags, environment, socket, log."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vllama.scheduler import engine_flags
from vllama.scheduler.probe import produce_one_class, produce_one_embedding, produce_one_token
from vllama.scheduler.process import COMMAND, Memory, WorkerProcess, WorkerSpec, check_flags
from vllama.scheduler.serving import Serving
from vllama.settings import Settings
from vllama.store.description import ModelDescription, describe
from vllama.store.manifest import Manifest
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
    ) -> None:
        self._settings = settings
        self._command = tuple(command)
        self._user_flags = tuple(user_flags)
        self.serving = Serving(user_flags)
        self._compiled = compiled
        self._on_cpu = not engine_flags.has_gpu()
        self._numbers = itertools.count(1)
        self._logs = settings.models / "logs"
        self.runtime = _new_runtime_directory()
        for name in engine_flags.REMOVED_VARIABLES:
            if os.environ.get(name):
                log.warning("%s is not passed to the models' workers: vllama could not talk to them", name)

    async def check_flags(self) -> None:
        """Ask vLLM about the user's flags, if there are any. Raises BadEngineFlags."""
        if self._user_flags:
            await check_flags(self._user_flags, self._environment(), self._command)

    def engine_of(self, manifest: Manifest) -> str:
        """The identity of the engine that serves the model: models with the same can share a worker."""
        return self.serving.engine_of(manifest)

    async def start(self, manifest: Manifest) -> WorkerProcess:
        """Start a worker for this model; it is not ready yet."""
        description = describe(manifest)
        served = self.serving.plan(manifest)
        trial = next((trial for what, trial in _TRIALS.items() if what in served.capabilities), produce_one_token)
        pools = trial is not produce_one_token
        name = manifest.name
        socket = self.runtime / f"{next(self._numbers)}.sock"
        self._logs.mkdir(parents=True, exist_ok=True)
        arguments = engine_flags.command_line(
            manifest.snapshot,
            list(dict.fromkeys([name.display, name.display.removesuffix(":latest"), name.full])),
            socket,
            self._settings_for(description) if pools else self._settings,
            user_flags=[*served.flags, *manifest.engine_flags, *self._user_flags],
            on_cpu=self._on_cpu,
            compiled=self._compiled,
            pools=pools,
            dtype=self._dtype(description) if pools else "",
        )
        return await WorkerProcess.start(
            WorkerSpec(
                arguments=arguments,
                environment={
                    **engine_flags.eager_environment(arguments, on_cpu=self._on_cpu),
                    **self._environment(),
                    SUPERVISED: "1",
                },
                socket=socket,
                memory=self._memory(manifest),
                log=self._logs / f"{re.sub('[^A-Za-z0-9._-]', '_', name.display)}.log",
                command=self._command,
                trial=trial,
            )
        )

    def _settings_for(self, pooler: ModelDescription) -> Settings:
        """The settings, with a context that the model can have: vLLM refuses more, and what suits chats is more."""
        possible = pooler.context_length or self._settings.context_length
        return replace(self._settings, context_length=min(self._settings.context_length, possible))

    def _dtype(self, pooler: ModelDescription) -> str:
        """Weights in float32 stay so on a CPU: vLLM's choice, float16, took three times as long, and is less exact."""
        return "float32" if self._on_cpu and pooler.quantization_level == "F32" else ""

    def _memory(self, manifest: Manifest) -> Memory:
        """The weights, and on a CPU the KV cache that `engine_flags` reserves."""
        if self._on_cpu:
            return Memory(manifest.size + engine_flags.cpu_kv_cache_bytes(), 0)
        return Memory(manifest.size, manifest.size)

    def close(self) -> None:
        """Remove the directory of the sockets."""
        shutil.rmtree(self.runtime, ignore_errors=True)

    def _environment(self) -> dict[str, str]:
        return engine_flags.environment(os.environ, self.runtime, on_cpu=self._on_cpu)


def _new_runtime_directory() -> Path:
    """A private directory for sockets, short because a socket's path may have 107 bytes at the most.

    Those that killed gateways left behind are removed.
    """
    base = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
    for stale in base.glob("vllama-*-*"):
        pid = stale.name.split("-")[1]
        with contextlib.suppress(FileNotFoundError):  # another gateway that starts now may be quicker
            if pid.isdigit() and stale.lstat().st_uid == os.getuid() and not _is_alive(int(pid)):
                shutil.rmtree(stale, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"vllama-{os.getpid()}-", dir=base))


def _is_alive(pid: int) -> bool:
    with contextlib.suppress(PermissionError):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
    return True
