"""Shared memory goes with the processes that made it, also where all of them are killed at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="shared memory has no place in the file system")

PATIENCE = 60

MAKES_SHARED_MEMORY = """
import os, signal
from multiprocessing.shared_memory import SharedMemory
from vllama.worker import lifeline, tracker

tracker.start()
os.register_at_fork(after_in_child=lifeline.tie)
mine = SharedMemory(create=True, size=8)
if os.fork() == 0:
    of_child = SharedMemory(create=True, size=8)
    print(mine.name, of_child.name, flush=True)
    signal.pause()
signal.pause()
"""


@pytest.mark.parametrize("whole_group", [False, True], ids=["the main process alone", "the whole group"])
def test_shared_memory_of_killed_processes_is_removed(*, whole_group: bool) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", MAKES_SHARED_MEMORY],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        names = process.stdout.readline().split()
        assert len(names) == 2
        assert all(Path("/dev/shm", name).exists() for name in names)
        (os.killpg if whole_group else os.kill)(process.pid, signal.SIGKILL)
        process.communicate(timeout=PATIENCE)  # until the tracker has ended, too: it holds the pipe of errors
        assert not any(Path("/dev/shm", name).exists() for name in names)
