"""`vllama serve` that starts its workers in the spares that it was forked with, as long as there are some."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Mapping
from functools import partial
from typing import Any, cast
from unittest.mock import patch

from engine.prepared.request import HOST_ENVIRONMENT_VARIABLE, SPARES_VARIABLE
from vllama.cli import main as cli
from vllama.gateway import server
from vllama.protocol.spare_order import SpareOrder
from vllama.scheduler import placing
from vllama.scheduler.launcher import Launcher
from vllama.scheduler.process import WorkerProcess, WorkerSpec
from vllama.scheduler.spares import LATE_VARIABLES, Spares
from vllama.scheduler.worker_log import open_log

_UNREAD_PREFIXES = ("OLLAMA_", "VLLAMA_", "PIP_", "PYTEST_", "FLASHINFER_", "VLLM_RPC_BASE_PATH", "HTTPS_PROXY")
"""Variables that nothing reads while vLLM is imported on a CPU."""

_MOST_KV_CACHE = 800_000_000
"""Bytes; room for 17,000 tokens of SmolLM2 in float32."""

log = logging.getLogger("vllama.scheduler.spares")


class PreparedSpares(Spares):
    """Hands out the spares that came with the process, then starts workers as the product does."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._prepared: list[tuple[int, int]] = json.loads(os.environ[SPARES_VARIABLE])
        self._imported_in: dict[str, str] = json.loads(os.environ[HOST_ENVIRONMENT_VARIABLE])

    async def start(self, spec: WorkerSpec) -> WorkerProcess:
        """Start a worker in a prepared spare, where the spare was imported in a fitting environment."""
        if not self._prepared or not imported_alike(self._imported_in, spec.environment):
            return await super().start(spec)
        pid, descriptor = self._prepared.pop(0)
        open_log(spec.log).close()
        with os.fdopen(descriptor, "wb") as orders:
            orders.write(SpareOrder(spec.arguments, spec.environment, str(spec.log)).encode())
        log.info("starting worker %d from a spare: %s", pid, " ".join(spec.arguments))
        return WorkerProcess(spec, cast("asyncio.subprocess.Process", InheritedChild(pid)))


def imported_alike(imported_in: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """Tell whether vLLM's import reads the same from both environments."""
    differing = {name for name in imported_in.keys() | wanted.keys() if imported_in.get(name) != wanted.get(name)}
    return all(name in LATE_VARIABLES or name.startswith(_UNREAD_PREFIXES) for name in differing)


class InheritedChild:
    """A child that this process had before it executed its program; asyncio knows only those that it started."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    async def wait(self) -> int:
        """Wait for its end and return its exit status."""
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        descriptor = os.pidfd_open(self.pid)
        try:
            loop.add_reader(descriptor, ended.set)
            await ended.wait()
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])  # noqa: ASYNC222 - it has ended


class PreparedLauncher(Launcher):
    """Starts workers in prepared spares, and leaves it to them to refuse flags: a check imports vLLM once more."""

    async def check_flags(self) -> None:
        """Check nothing."""


def main() -> None:
    """Run the command line with these spares, and small KV caches: a large one takes seconds to fill with zeros."""
    with (
        patch.object(server, "Launcher", partial(PreparedLauncher, make_spares=PreparedSpares)),
        patch.object(placing, "_CPU_KV_MOST", _MOST_KV_CACHE),
    ):
        cli.main()
