"""Process trees as the kernel sees them, and waiting with a limit."""

from __future__ import annotations

import os
import shlex
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from engine.prepared.request import IDLE_TITLE

T = TypeVar("T")

MARK = "VLLAMA_TEST_TREE"
"""In the environment of every process of a tree. Where a process overwrites that memory, its session tells."""

_POLL_SECONDS = 0.05


def wait_for(find: Callable[[], T], what: str, seconds: float = 60) -> T:
    """Return the first true value of `find`; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (found := find()):
        if time.monotonic() > deadline:
            message = f"waited {seconds:.0f} s in vain: {what}"
            raise AssertionError(message)
        time.sleep(_POLL_SECONDS)
    return found


@dataclass(frozen=True, slots=True)
class Process:
    """A living process. Its start time (clock ticks after boot) tells it from a later one of the same number."""

    pid: int
    started: int
    parent: int
    session: int

    @property
    def command(self) -> list[str]:
        """Its arguments, or the title that it gave itself."""
        with suppress(OSError, ValueError):  # a title may be cut in the middle of a quotation
            text = Path(f"/proc/{self.pid}/cmdline").read_bytes().decode(errors="replace").rstrip("\0")
            return text.split("\0") if "\0" in text else shlex.split(text)
        return []

    @property
    def title(self) -> str:
        """Its arguments in one string."""
        return " ".join(self.command)

    def kill(self) -> None:
        """Send SIGKILL."""
        os.kill(self.pid, signal.SIGKILL)

    @property
    def lives(self) -> bool:
        """Whether this very process still runs."""
        now = _look(self.pid)
        return now is not None and now.started == self.started


class ProcessTree:
    """All processes that descend from one that was started with MARK=`mark`, however they are related now."""

    def __init__(self, mark: str) -> None:
        self._mark = f"{MARK}={mark}".encode()
        self._known: set[tuple[int, int]] = set()
        self._sessions: set[int] = set()

    def living(self) -> list[Process]:
        """Return the members that run now, the oldest first; what was seen once is recognised for ever.

        Prepared workers that wait for their order are left out: the kernel ends them with their gateway.
        """
        everyone = sorted(_all(), key=lambda process: process.started)
        parents = {process.pid for process in everyone if (process.pid, process.started) in self._known}
        members = []
        for process in everyone:
            if process.title == IDLE_TITLE:
                continue
            if process.pid in parents or process.parent in parents or self._is_marked(process):
                members.append(process)
                parents.add(process.pid)
                self._known.add((process.pid, process.started))
                self._sessions.add(process.session)
        return members

    def _is_marked(self, process: Process) -> bool:
        if process.session in self._sessions:
            return True
        with suppress(OSError):
            return self._mark in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
        return False

    def wait_until_gone(self, seconds: float) -> None:
        """Fail where a member is left after `seconds`."""
        wait_for(lambda: not self.living(), "all processes of the tree end", seconds)

    def kill(self) -> None:
        """End what is left; for cleaning up after a test."""
        while members := self.living():
            for process in members:
                with suppress(ProcessLookupError):
                    process.kill()
            time.sleep(_POLL_SECONDS)


def _all() -> Iterator[Process]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (process := _look(int(entry.name))):
            yield process


def _look(pid: int) -> Process | None:
    """The process of this number; None where there is none, or only its exit status."""
    try:
        # The name, in parentheses, may hold anything; fields are counted after it (proc(5)).
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    if fields[0] in "ZX":
        return None
    return Process(pid=pid, started=int(fields[19]), parent=int(fields[1]), session=int(fields[3]))
