"""Remove the shared memory of a worker's processes, however they end.

multiprocessing has a resource tracker: a process that removes shared memory once all others of its tree have exited.
It belongs to their process group, though, so killing that group kills it as well; and each forked process starts one of
its own. So the main process starts one for all, and that one leaves the group.
"""

from __future__ import annotations

import os
from contextlib import suppress
from multiprocessing import resource_tracker
from typing import Any

_TITLE = "multiprocessing.resource_tracker"


def start() -> None:
    """Start it, before anything is forked that must die with its parent: this process ends when the last one has."""
    tracker: Any = resource_tracker._resource_tracker  # noqa: SLF001 - there is no other way to bring one along
    if not hasattr(os, "fork") or tracker._fd is not None:  # noqa: SLF001
        return
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(write)
            with suppress(ImportError):
                from setproctitle import setproctitle

                setproctitle(_TITLE)
            resource_tracker.main(read)
        finally:
            os._exit(0)
    os.setpgid(pid, pid)
    os.close(read)
    tracker._fd, tracker._pid = write, pid  # noqa: SLF001
