"""Each OpenMP thread of a running process gets a core of its own.

OpenMP's runtime reads its binding from the environment when it is loaded; a process that has been forked since, or
that learns its cores later, has to bind its threads itself. Threads that may move meet on one core, and all wait for
both: a token took up to 1.5 times as long.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from pathlib import Path

_ELEMENTS_FOR_A_THREAD = 1 << 16
"""torch shares work out in pieces of 32,768 elements (`at::internal::GRAIN_SIZE`)."""

_UNBOUND = "nobind"
_ONE_LIST = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")


def bind_threads(cores: Collection[int]) -> None:
    """Have torch compute with one thread on each of these cores, this process's main thread on the first.

    The first parallel work starts OpenMP's team, which stays for good: torch always asks for all of it.
    """
    import torch

    os.sched_setaffinity(0, cores)
    torch.set_num_threads(len(cores))
    others = _threads()
    torch.ones(len(cores) * _ELEMENTS_FOR_A_THREAD).add_(1)
    team = [os.getpid(), *sorted(_threads() - others)]
    for thread, core in zip(team, sorted(cores), strict=False):
        os.sched_setaffinity(thread, {core})


def stated_cores(text: str) -> set[int] | None:
    """Return the cores of the only rank, none if it is not to be bound; None for several ranks or vLLM's choice."""
    if text == _UNBOUND:
        return set()
    if not _ONE_LIST.fullmatch(text):
        return None
    cores: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        cores.update(range(int(first), int(last or first) + 1))
    return cores


def _threads() -> set[int]:
    return {int(entry.name) for entry in Path("/proc/self/task").iterdir()}
