"""Readers for files under /proc; a file that no longer exists counts as empty."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")
TICK = os.sysconf("SC_CLK_TCK")
"""Clock ticks per second."""

_PAGE = os.sysconf("SC_PAGE_SIZE")


class Stat(NamedTuple):
    """Statistics of a process: CPU time in s, start in clock ticks after boot, resident memory in bytes."""

    parent: int
    group: int
    cpu: float
    began: int
    rss: int


def stat_of(pid: int, proc: Path = PROC) -> Stat | None:
    """Return the statistics of a process; None if it has ended. A zombie with live threads has not."""
    try:
        with open(f"{proc}/{pid}/stat", "rb") as file:  # noqa: PTH123 - ten times a second
            text = file.read()
    except OSError:
        return None
    # pid (name) state parent group … user and system time … threads … (proc(5)); a name may hold anything
    entry = text[text.rindex(b")") + 2 :].split()
    if entry[0] in {b"Z", b"X"} and int(entry[17]) <= 1:
        return None
    cpu = (int(entry[11]) + int(entry[12])) / TICK
    return Stat(int(entry[1]), int(entry[2]), cpu, int(entry[19]), int(entry[21]) * _PAGE)


def stats(proc: Path = PROC) -> Iterator[tuple[int, Stat]]:
    """Yield id and statistics of every process; takes a few ms."""
    for pid in process_ids(proc):
        if stat := stat_of(pid, proc):
            yield pid, stat


_EXITING = 0x4
"""PF_EXITING of Linux's include/linux/sched.h: the process will run none of its own code any more."""


def is_ending(pid: int, proc: Path = PROC) -> bool:
    """Return whether a process has ended, is ending, or was sent a SIGKILL that it has not obeyed yet.

    A process of several gigabytes takes a while to end, and during most of it its pipes still take what is written.
    """
    try:
        stat = (proc / str(pid) / "stat").read_text(errors="replace")
        status = read_lines(proc / str(pid) / "status")
    except OSError:
        return True
    state, *fields = stat[stat.rindex(")") + 2 :].split()
    pending = [int(line.split()[1], 16) for line in status if line.startswith(("SigPnd:", "ShdPnd:"))]
    killed = any(signals >> (signal.SIGKILL - 1) & 1 for signals in pending)
    return state in {"Z", "X"} or bool(int(fields[5]) & _EXITING) or killed


def process_ids(proc: Path = PROC) -> Iterator[int]:
    """Yield the ids of all processes."""
    return (int(entry) for entry in os.listdir(proc) if entry.isdigit())  # noqa: PTH208 - ten times a second


def read_numbers(path: Path) -> dict[str, int]:
    """Map the first word of each line, without its colon, to the first number of the line."""
    pairs = (line.replace(":", " ").split() for line in read_lines(path))
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) > 1 and pair[1].isdecimal()}


def read_lines(path: Path) -> list[str]:
    """Return the lines of a file, or none if it cannot be read."""
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []
