"""The engine's processes are forked from the API server, which has imported all that they need.

vLLM forks unless told to spawn (`vllm.utils.system_utils.get_mp_context`), and always spawns if CUDA was
initialised before. Its platform for CPUs insists on spawning, because a spawned process reads the binding of its
threads from the environment when it starts; `_bind_threads` does that for a forked one.
"""

from __future__ import annotations

import os
import re
import signal
from argparse import Namespace
from contextlib import suppress
from typing import Any

from vllama.worker.thread_binding import bind_threads

METHOD = "VLLM_WORKER_MULTIPROC_METHOD"

_BINDINGS = ("GOMP_CPU_AFFINITY", "OMP_PLACES", "KMP_AFFINITY")
"""Where `vllm.utils.ompmultiprocessing` writes the cores of a process that it is about to start."""


def prefer_fork(parsed: Namespace) -> None:
    """Have vLLM fork, unless the user or the flags want it otherwise."""
    if METHOD in os.environ or getattr(parsed, "mm_tensor_ipc", None) == "torch_shm":
        os.environ.setdefault(METHOD, "spawn")  # torch_shm is known to fail in forked processes
        return
    os.environ[METHOD] = "fork"
    os.register_at_fork(after_in_child=_forget_the_loop)
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        _fork_on_cpus(type(current_platform))
        ours = _binding()
        os.register_at_fork(after_in_child=lambda: _bind_threads(unless=ours))


def _fork_on_cpus(platform: Any) -> None:
    """Undo the one line of `vllm.platforms.cpu` that sets the method, at each of its calls."""
    update = platform.check_and_update_config

    def check_and_update_config(vllm_config: Any) -> None:
        update(vllm_config)
        os.environ[METHOD] = "fork"

    platform.check_and_update_config = staticmethod(check_and_update_config)


def _forget_the_loop() -> None:
    """Reset signals in the child: they must not wake the parent's event loop, whose pipe it inherited."""
    with suppress(ValueError):
        signal.set_wakeup_fd(-1)


def _binding() -> str:
    return next((os.environ[name] for name in _BINDINGS if name in os.environ), "")


def _bind_threads(unless: str) -> None:
    """Give each OpenMP thread a core of those that the environment names by now, as a spawned process would."""
    stated = _binding()
    if stated == unless:
        return
    places = re.search(r"proclist=\[(.*?)\]", stated)
    bind_threads({int(number) for number in re.findall(r"\d+", places.group(1) if places else stated)})
