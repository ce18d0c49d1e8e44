"""Models are inspected without another process that imports vLLM.

Before vLLM loads a model, it asks the model's class what it can do. On the first load of an architecture it does this
in a process that it starts for this (`_run_in_subprocess` of `vllm/model_executor/models/registry.py`), so that
importing the class cannot initialise CUDA in the API server. That process imports all of vLLM once more, which takes
10 to 28 s. On a CPU there is nothing to initialise, and elsewhere a forked process has the imports already.

Written against vLLM 0.32 (`tests/worker/test_model_inspection.py` names it); only this file uses these internals. Other
versions are left as they are.
"""

from __future__ import annotations

import logging
import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

log = logging.getLogger(__name__)


def inspect_without_imports() -> None:
    """Have vLLM inspect the classes of models in this process, or in one that is forked from it."""
    from vllm.platforms import current_platform

    try:
        from vllm.model_executor.models import registry
    except ImportError:
        registry = None
    if getattr(registry, "_run_in_subprocess", None) is None:
        log.info("this vLLM inspects models in its own way")
    elif current_platform.is_cpu():
        registry._run_in_subprocess = _here  # noqa: SLF001
    elif not _is_cuda_initialised():
        registry._run_in_subprocess = in_forked_process  # noqa: SLF001


def _is_cuda_initialised() -> bool:
    import torch

    return bool(torch.cuda.is_initialized())


def _here(inspect: Callable[[], Any]) -> Any:
    return inspect()


def in_forked_process(inspect: Callable[[], Any]) -> Any:
    """Return what `inspect` returns in a process that is forked for it.

    Raises RuntimeError with the traceback where it fails there, as vLLM does.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_result, args=(inspect, sender), daemon=True)
    process.start()
    sender.close()
    try:
        result, error = receiver.recv()
    except EOFError:
        process.join()
        result, error = None, f"it ended with status {process.exitcode}"
    process.join()
    if error:
        raise RuntimeError(f"Error raised in the process that inspects a model:\n{error}")
    return result


def _send_result(inspect: Callable[[], Any], sender: Connection) -> None:
    try:
        sender.send((inspect(), None))
    except BaseException:  # noqa: BLE001 - the other process raises it
        sender.send((None, traceback.format_exc()))
