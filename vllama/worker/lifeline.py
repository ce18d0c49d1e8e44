"""No process of a worker outlives its parent, however the parent dies.

`kill -9` of a vLLM API server leaves its EngineCore to init, with all its memory. So every process of the
tree asks the kernel to be killed with its parent (PR_SET_PDEATHSIG). The engine's processes are started by
multiprocessing's `spawn`, which imports the main module of the parent again before anything else: the main
module `vllama.worker.launch` ties each of them there, before the seconds of importing torch.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1

PARENT_VARIABLE = "VLLAMA_PARENT_PID"
"""The process that a child expects as its parent; a child that finds another one came too late."""


def tie() -> None:
    """Die with the parent from now on; die now if it is gone already. Does nothing where Linux is not."""
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if _is_gone(os.environ.get(PARENT_VARIABLE, "")):
        os.kill(os.getpid(), signal.SIGKILL)
    os.environ[PARENT_VARIABLE] = str(os.getpid())


def _is_gone(parent: str) -> bool:
    """Whether the expected parent died before the kernel was asked to tell us."""
    if not parent.isdigit() or os.getppid() == int(parent):
        return False
    try:
        os.kill(int(parent), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return _is_zombie(parent)  # if not: something is between us and it, as multiprocessing's fork server is


def _is_zombie(process: str) -> bool:
    """Whether it is dead, and only its own parent has not asked for its exit status yet."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] in {"Z", "X"}
