"""The processor and the RAM of this machine, within the limits of the control group."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from vllama.machine.proc import PROC, read_lines, read_numbers

_CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class HostMemory:
    """Total and available RAM in bytes."""

    total: int
    free: int


def host_memory(proc: Path = PROC, cgroups: Path = _CGROUPS) -> HostMemory:
    """Return the machine's RAM within the limits of the control group."""
    facts = read_numbers(proc / "meminfo")
    total, free = facts.get("MemTotal", 0) * 1024, facts.get("MemAvailable", 0) * 1024
    for limit, used, reclaimable in _limits(proc, cgroups):
        total, free = min(total, limit), min(free, limit - used + reclaimable)
    return HostMemory(total, max(free, 0))


def _limits(proc: Path, cgroups: Path) -> Iterator[tuple[int, int, int]]:
    """Yield (limit, used, reclaimable) bytes of this process's control group and its parents that have a limit."""
    own = next((line[3:] for line in read_lines(proc / "self" / "cgroup") if line.startswith("0::")), "/")
    for group in (Path(own), *Path(own).parents):
        folder = cgroups / str(group).lstrip("/")
        limit, used = ("".join(read_lines(folder / name)).strip() for name in ("memory.max", "memory.current"))
        if limit.isdecimal() and used.isdecimal():
            yield int(limit), int(used), read_numbers(folder / "memory.stat").get("inactive_file", 0)


def processor(proc: Path = PROC) -> str:
    """Return the processor's model name, or the architecture if the kernel does not report a name."""
    names = (line.partition(":")[2].strip() for line in read_lines(proc / "cpuinfo") if line.startswith("model name"))
    return next(names, os.uname().machine)


@cache
def computes_half_precision_fast(proc: Path = PROC) -> bool:
    """Return whether matrix products in bfloat16 and float16 are as fast as in float32 here.

    On an x86 processor with neither AVX-512 nor the conversions of AVX-NE-CONVERT, oneDNN emulates both types: on an
    AMD EPYC with AVX2 a product took 3 times (512 rows) to 5 times (one row) as long as in float32.
    """
    flags = _processor_flags(proc)
    return not flags or "avx512f" in flags or "avx_ne_convert" in flags


@cache
def has_float_vectors(proc: Path = PROC) -> bool:
    """Return whether this is an x86 processor with AVX2, fused multiplication and conversions of 16-bit floats."""
    return {"avx2", "fma", "f16c"} <= _processor_flags(proc)


def _processor_flags(proc: Path) -> set[str]:
    """Return the features of an x86 processor; none for others."""
    return set(next((line for line in read_lines(proc / "cpuinfo") if line.startswith("flags")), "").split())


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))
