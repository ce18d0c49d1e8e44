"""The files under /proc, read; one that has gone says nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")
TICK = os.sysconf("SC_CLK_TCK")
"""Clock ticks in a second."""

_PAGE = os.sysconf("SC_PAGE_SIZE")


class Stat(NamedTuple):
    """Of one process: CPU time in s, when it began in clock ticks since the machine did, resident memory in bytes."""

    parent: int
    group: int
    cpu: float
    began: int
    rss: int


def stat_of(pid: int, proc: Path = PROC) -> Stat | None:
    """Return what the kernel counts of a process; None once it holds nothing. A zombie does while it has threads."""
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
    """Go through all processes by their numbers; takes some ms."""
    for pid in process_ids(proc):
        if stat := stat_of(pid, proc):
            yield pid, stat


def process_ids(proc: Path = PROC) -> Iterator[int]:
    """Go through the numbers of all processes."""
    return (int(entry) for entry in os.listdir(proc) if entry.isdigit())  # noqa: PTH208 - ten times a second


def read_numbers(path: Path) -> dict[str, int]:
    """Return the first number of each line by the line's first word, without its colon."""
    pairs = (line.replace(":", " ").split() for line in read_lines(path))
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) > 1 and pair[1].isdecimal()}


def read_lines(path: Path) -> list[str]:
    """Return the lines of a file; none where it cannot be read."""
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []
