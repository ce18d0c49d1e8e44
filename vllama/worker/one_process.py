"""On CPUs an engine of one rank computes in its own process.

vLLM's platform for CPUs gives even a single rank a process of its own, because OpenMP reads the cores of its threads
when a process starts (`vllm.platforms.cpu`, `check_and_update_config`). Orders and results of each step then pass
through shared memory, for which both processes poll on the cores that compute. Threads of a running process can be
bound (`vllama.worker.thread_binding`), so a single rank needs no second process.
"""

from __future__ import annotations

import os
from typing import Any

from vllama.protocol.environment import CORES
from vllama.worker.thread_binding import stated_cores

EXECUTOR = "vllama.worker.bound_executor.BoundExecutor"
"""The name by which the engine's process imports its executor."""


def prefer_one_process() -> None:
    """Have vLLM run a single rank on CPUs in the engine's process, where the cores of one rank are stated.

    A user's own `--distributed-executor-backend`, several ranks and vLLM's own choice of cores stay as they are.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu() or stated_cores(os.environ.get(CORES, "")) is None:
        return
    platform: Any = type(current_platform)
    update = platform.check_and_update_config

    def check_and_update_config(vllm_config: Any) -> None:
        parallel = vllm_config.parallel_config
        decided = parallel.distributed_executor_backend
        update(vllm_config)
        if decided == "uni" and parallel.distributed_executor_backend == "mp":
            parallel.distributed_executor_backend = EXECUTOR

    platform.check_and_update_config = staticmethod(check_and_update_config)
