"""Processes of a process group from /proc, that is, of a worker's tree even after reparenting."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from vllama.machine.proc import Stat, stats

_SHARED = "/dev/shm/"  # noqa: S108
_COMPUTING = 0.1
"""Share of a core above which a process counts as computing; a waiting one takes much less."""


def living_members(group: int) -> list[int]:
    """Return the processes of a group that still hold resources; a zombie does while it has threads."""
    return [pid for pid, _ in _members(group)]


def shared_memory(group: int) -> set[Path]:
    """Return the shared memory files that processes of a group have mapped, which outlive killed processes."""
    found: set[Path] = set()
    for pid, _ in _members(group):
        with contextlib.suppress(OSError), Path(f"/proc/{pid}/maps").open(errors="replace") as maps:
            found.update(Path(line[line.index(_SHARED) :].rstrip("\n")) for line in maps if _SHARED in line)
    return {path for path in found if not path.name.endswith(" (deleted)")}


class Computing:
    """Check whether a group, without its leader, has computed since the last check."""

    def __init__(self, group: int) -> None:
        self._group = group
        self._seconds = 0.0
        self._at = 0.0

    def __call__(self) -> bool:
        """Check now and compare with the last check."""
        now = asyncio.get_running_loop().time()
        seconds = sum(stat.cpu for pid, stat in _members(self._group) if pid != self._group)
        computed, passed = seconds - self._seconds, now - self._at
        self._seconds, self._at = seconds, now
        return computed > _COMPUTING * passed


def _members(group: int) -> Iterator[tuple[int, Stat]]:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return  # the usual case, much cheaper than reading all processes
    for pid, stat in stats():
        if stat.group == group:
            yield pid, stat
