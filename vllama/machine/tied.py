"""Start processes that do not outlive this one, even if it is killed with SIGKILL.

`python -P -m vllama.machine.tied PARENT COMMAND…` ties itself to its parent and then executes the command in the same
process, so the process id does not change. Children that are Python programs of our own may call
`ask_to_be_killed_with_parent` themselves (vllama.worker.lifeline).
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1


def tied(*command: str) -> Sequence[str]:
    """Return the command that runs `command` so that the kernel kills it when this process ends.

    It has to be started by a thread that lives as long as this process: the kernel looks at the thread.
    """
    # -P: modules must not be imported from the working directory.
    return [sys.executable, "-P", "-m", "vllama.machine.tied", str(os.getpid()), *command]


def ask_to_be_killed_with_parent() -> None:
    """Ask the kernel for SIGKILL when the parent ends. Does nothing on other systems than Linux."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _main(parent: str, *command: str) -> None:
    ask_to_be_killed_with_parent()
    if os.getppid() != int(parent):
        sys.exit("the process that started this one has ended already")
    os.execvp(command[0], command)  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    _main(*sys.argv[1:])
