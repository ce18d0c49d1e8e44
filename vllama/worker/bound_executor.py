"""vLLM's executor in the engine's process, for CPUs (vllama.worker.one_process)."""

from __future__ import annotations

import os

from vllm.v1.executor.uniproc_executor import UniProcExecutor

from vllama.protocol.environment import CORES
from vllama.worker.thread_binding import bind_threads, stated_cores


class BoundExecutor(UniProcExecutor):  # type: ignore[misc]
    """Computes in the engine's process, with a core for each OpenMP thread."""

    def _init_executor(self) -> None:
        if cores := stated_cores(os.environ[CORES]):
            bind_threads(cores)
            # Otherwise vLLM reduces torch's threads to one before it serves (`set_torch_threads_for_runtime`).
            os.environ["OMP_NUM_THREADS"] = str(len(cores))
        super()._init_executor()
