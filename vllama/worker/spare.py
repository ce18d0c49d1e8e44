"""A spare: a worker process that has imported everything and waits for the command line that makes it a worker.

The gateway starts it (vllama.scheduler.spares) and writes its order, one line of JSON, to its standard input.
"""

from __future__ import annotations

import gc
import importlib
import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from vllama.protocol.spare_order import SpareOrder

_MODULES = (
    "vllm.entrypoints.cli.serve",
    "vllm.v1.engine.async_llm",
    "vllm.v1.engine.core",
    "vllm.v1.executor.multiproc_executor",
    "vllama.worker.plugin",
)
"""Modules that the API server and its engine import."""

_WORKERS = {"cpu": "vllm.v1.worker.cpu_worker", "cuda": "vllm.v1.worker.gpu_worker"}
"""The module that the engine's worker imports in addition, by device type."""

_CUDA_DEVICE = "/dev/nvidia-uvm"
"""The device file that a process opens when it initialises CUDA, and that NVML leaves closed."""


def import_everything() -> None:
    """Import all that a worker needs, without touching a GPU: which of them it may see is in its order."""
    for name in _MODULES:
        importlib.import_module(name)
    from vllm.platforms import current_platform

    worker = _WORKERS.get(current_platform.device_type)
    if worker and not opens_gpu(worker):
        importlib.import_module(worker)
    gc.collect()
    gc.freeze()  # what is imported stays: no collection has to look at it, and forked processes share it


def opens_gpu(module: str, device: str = _CUDA_DEVICE) -> bool:
    """Return whether the import of a module initialises CUDA, tested in a child process."""
    if not Path(device).exists():
        return False
    child = os.fork()
    if child == 0:
        status = 1
        with suppress(BaseException):
            importlib.import_module(module)
            opened = (entry.readlink() for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink())
            status = int(Path(device) in opened)
        os._exit(status)
    return os.waitpid(child, 0)[1] != 0


def wait_for_order() -> Sequence[str] | None:
    """Wait for the order and return the worker's arguments; None if the input ends without an order."""
    print(f"spare {os.getpid()} waits", flush=True)
    line = sys.stdin.buffer.readline()
    if not line.endswith(b"\n"):
        return None
    order = SpareOrder.decode(line)
    _become(order)
    return order.arguments


def _become(order: SpareOrder) -> None:
    """Set the output, the environment and the command line of a worker.

    The rest of the environment is what it was started with, and what vLLM added to it while it was imported.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    with Path(order.log).open("ab") as log, Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.environ.update(order.environment)
    sys.argv[1:] = order.arguments
    with suppress(ImportError):  # vLLM brings it, but can do without
        from setproctitle import setproctitle

        setproctitle(shlex.join([sys.executable, "-m", "vllama.worker.launch", *order.arguments]))
