"""The machine without its GPUs: its processor, and its RAM or what its control group leaves of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vllama.machine.proc import PROC, read_lines, read_numbers

_CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class HostMemory:
    """RAM in bytes: in all, and what is available now."""

    total: int
    free: int


def host_memory(proc: Path = PROC, cgroups: Path = _CGROUPS) -> HostMemory:
    """Return the machine's RAM, or what its control group leaves of it."""
    facts = read_numbers(proc / "meminfo")
    total, free = facts.get("MemTotal", 0) * 1024, facts.get("MemAvailable", 0) * 1024
    for limit, used, reclaimable in _limits(proc, cgroups):
        total, free = min(total, limit), min(free, limit - used + reclaimable)
    return HostMemory(total, max(free, 0))


def _limits(proc: Path, cgroups: Path) -> Iterator[tuple[int, int, int]]:
    """(limit, in use, of that reclaimable) of this process's control group and those above it, where they have one."""
    own = next((line[3:] for line in read_lines(proc / "self" / "cgroup") if line.startswith("0::")), "/")
    for group in (Path(own), *Path(own).parents):
        folder = cgroups / str(group).lstrip("/")
        limit, used = ("".join(read_lines(folder / name)).strip() for name in ("memory.max", "memory.current"))
        if limit.isdecimal() and used.isdecimal():
            yield int(limit), int(used), read_numbers(folder / "memory.stat").get("inactive_file", 0)


def processor(proc: Path = PROC) -> str:
    """Return the model's name, or where the kernel does not tell it the architecture."""
    names = (line.partition(":")[2].strip() for line in read_lines(proc / "cpuinfo") if line.startswith("model name"))
    return next(names, os.uname().machine)


def cores() -> int:
    """Return how many this process may use."""
    return len(os.sched_getaffinity(0))
