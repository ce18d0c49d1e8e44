"""Shared memory of a worker's processes is removed however they end.

multiprocessing keeps a process that does so once all others of a tree are gone. It is a member of their process group,
though, so whoever kills that group kills it as well; and where processes are forked, each starts one of its own. So the
main process starts one for all, which leaves the group.
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
