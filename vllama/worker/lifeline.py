"""No process of a worker outlives its parent, however the parent dies.

`kill -9` of a vLLM API server leaves its EngineCore to init, with all its memory. So every process of the
tree asks the kernel to be killed with its parent (PR_SET_PDEATHSIG). The engine's processes are started by
multiprocessing's `spawn`, which imports the main module of the parent again before anything else: the main
module `vllama.worker.launch` ties each of them there, before the seconds of importing torch.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from vllama.machine.tied import ask_to_be_killed_with_parent
from vllama.protocol.environment import PARENT_PROCESS


def tie() -> None:
    """Tie this process to its parent; exit if the parent is already dead. Does nothing on other systems than Linux."""
    if not sys.platform.startswith("linux"):
        return
    ask_to_be_killed_with_parent()
    if _is_gone(os.environ.get(PARENT_PROCESS, "")):
        os.kill(os.getpid(), signal.SIGKILL)
    os.environ[PARENT_PROCESS] = str(os.getpid())


def _is_gone(parent: str) -> bool:
    """Return whether the expected parent died before the kernel was asked to signal us."""
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
    """Return whether the process is dead but not yet reaped by its parent."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] in {"Z", "X"}
