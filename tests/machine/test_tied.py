"""A process that is tied to its parent ends with it, however the parent ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vllama.machine.tied import tied

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has the means")

PATIENCE = 60
CHILD = "import os, signal; print(os.getpid(), flush=True); signal.pause()"
PARENT = f"""
import subprocess, sys, signal
from vllama.machine.tied import tied
child = subprocess.Popen(tied(sys.executable, "-c", {CHILD!r}))
print(child.pid, flush=True)
signal.pause()
"""
ROOT = Path(__file__).parents[2]


def test_a_tied_process_ends_when_its_parent_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        assert parent.stdout is not None
        printed = {parent.stdout.readline(), parent.stdout.readline()}
        assert len(printed) == 1, "the command has the process id of what was started"
        parent.kill()
        parent.communicate(timeout=PATIENCE)  # until nobody holds the pipe any more


def test_a_tied_process_does_not_begin_where_its_parent_is_gone() -> None:
    parent = subprocess.run(
        [sys.executable, "-c", PARENT_THAT_ENDS], capture_output=True, text=True, cwd=ROOT, check=True
    )
    command = parent.stdout.split("\0")
    child = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (child.returncode, child.stdout) == (1, "")
    assert "has ended already" in child.stderr


PARENT_THAT_ENDS = """
import sys
from vllama.machine.tied import tied
print(*tied(sys.executable, "-c", "print('begun')"), sep="\\0", end="")
"""


def test_a_tied_command_keeps_its_exit_status() -> None:
    assert subprocess.run(tied(sys.executable, "-c", "import sys; sys.exit(7)"), cwd=ROOT, check=False).returncode == 7
