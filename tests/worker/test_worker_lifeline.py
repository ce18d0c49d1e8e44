"""Processes that die with their parent: real ones, killed for real.

All processes of a test share one pipe as their standard output; it ends when the last of them is gone.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from vllama.protocol.environment import PARENT_PROCESS

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="PR_SET_PDEATHSIG is Linux's")

PATIENCE = 30
"""Seconds after which a process that should be gone counts as alive."""

TIED_CHILD = """
import os, signal
from vllama.worker import lifeline
lifeline.tie()
print(os.getpid(), flush=True)
signal.pause()
"""

PARENT = """
import os, signal, subprocess, sys
environment = {**os.environ, "VLLAMA_PARENT_PID": str(os.getpid())}
subprocess.Popen([sys.executable, "child.py"], env=environment)
signal.pause()
"""

MAIN_MODULE_THAT_SPAWNS = """
import multiprocessing, os, signal
from vllama.worker import lifeline

lifeline.tie()

def live():
    print(os.getpid(), flush=True)
    signal.pause()

if __name__ == "__main__":
    process = multiprocessing.get_context("spawn").Process(target=live)
    process.start()
    process.join()
"""

MAIN_MODULE_THAT_FORKS = """
import os, signal
from vllama.worker import lifeline

lifeline.tie()
os.register_at_fork(after_in_child=lifeline.tie)
if os.fork() == 0:
    print(os.getpid(), flush=True)
signal.pause()
"""

MAIN_MODULE_WITH_A_CHILD_THAT_TIES_TOO_LATE = """
import os, signal
from vllama.worker import lifeline

lifeline.tie()
main = os.getpid()
if os.fork() == 0:
    print(os.getpid(), flush=True)
    while os.getppid() == main:
        os.sched_yield()
    lifeline.tie()
signal.pause()
"""


class Family:
    """A program and what it started. `last_born` is the process id that the youngest printed."""

    def __init__(self, directory: Path, program: str, **environment: str) -> None:
        (directory / "child.py").write_text(TIED_CHILD)
        main = directory / "main_module.py"
        main.write_text(program)
        self.first = subprocess.Popen(
            [sys.executable, str(main)], cwd=directory, stdout=subprocess.PIPE, env={**os.environ, **environment}
        )
        assert self.first.stdout is not None
        printed = self.first.stdout.readline()
        self.last_born = int(printed) if printed else 0

    def all_gone(self) -> bool:
        """Wait for the end of the pipe that every member holds."""
        try:
            self.first.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            return False
        return True

    def clean_up(self) -> None:
        if self.first.returncode is not None:
            return  # seen to be gone, and its children with it
        self.first.kill()
        with suppress(subprocess.TimeoutExpired):
            self.first.communicate(timeout=PATIENCE)
            return
        os.kill(self.last_born, signal.SIGKILL)  # it holds the pipe, so it is ours and alive
        self.first.communicate()


MakeFamily = Callable[..., Family]


@pytest.fixture
def family(tmp_path: Path) -> Iterator[MakeFamily]:
    families: list[Family] = []

    def make(program: str, **environment: str) -> Family:
        families.append(Family(tmp_path, program, **environment))
        return families[-1]

    yield make
    for one in families:
        one.clean_up()


def test_a_tied_child_dies_when_its_parent_is_killed(family: MakeFamily) -> None:
    parent = family(PARENT)
    assert parent.last_born != parent.first.pid
    parent.first.kill()
    assert parent.all_gone()


def test_a_child_that_finds_its_parent_gone_already_dies_at_once(family: MakeFamily) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    child = family(TIED_CHILD, **{PARENT_PROCESS: str(gone.pid)})
    assert child.all_gone()
    assert child.last_born == 0  # it did not come to print anything
    assert child.first.returncode == -signal.SIGKILL


def test_a_child_that_ties_after_its_parents_death_dies_though_nobody_has_reaped_the_parent(family: MakeFamily) -> None:
    main = family(MAIN_MODULE_WITH_A_CHILD_THAT_TIES_TOO_LATE)
    assert main.last_born != main.first.pid
    main.first.kill()
    assert main.all_gone()  # which reaps the parent only when the child has gone


@pytest.mark.parametrize("expected", [str(os.getpid()), "", "no number"], ids=["the parent", "nothing", "nonsense"])
def test_a_child_whose_parent_lives_lives(family: MakeFamily, expected: str) -> None:
    child = family(TIED_CHILD, **{PARENT_PROCESS: expected})
    assert child.last_born == child.first.pid
    assert child.first.poll() is None


def test_a_parent_further_up_is_a_parent_too(family: MakeFamily) -> None:
    between = 'import subprocess, sys\nsys.exit(subprocess.call([sys.executable, "child.py"]))\n'
    parent = family(between, **{PARENT_PROCESS: str(os.getpid())})
    assert parent.last_born not in {0, parent.first.pid}
    os.kill(parent.last_born, signal.SIGTERM)
    assert parent.all_gone()
    assert parent.first.returncode == -signal.SIGTERM % 256  # it lived until it was asked to go


@pytest.mark.parametrize("program", [MAIN_MODULE_THAT_SPAWNS, MAIN_MODULE_THAT_FORKS], ids=["spawned", "forked"])
def test_what_a_tied_main_module_starts_dies_with_it(family: MakeFamily, program: str) -> None:
    main = family(program)
    assert main.last_born != main.first.pid
    main.first.kill()
    assert main.all_gone()


def test_a_whole_line_of_tied_processes_dies_with_the_first(family: MakeFamily, tmp_path: Path) -> None:
    (tmp_path / "spawner.py").write_text(MAIN_MODULE_THAT_SPAWNS)
    first = family(PARENT.replace("child.py", "spawner.py"))
    first.first.kill()
    assert first.all_gone()
