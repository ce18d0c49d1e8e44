"""Libraries that a worker on a CPU is started with.

vLLM preloads them into the processes that it spawns (`check_and_update_config` of `vllm/platforms/cpu.py`). The
engine's are forked here (vllama.worker.forking), and have what the first of them has. With a second OpenMP runtime
beside torch's own, threads of both share the cores; and vLLM's allocator keeps memory that the C library's would give
back after each step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

VARIABLE = "LD_PRELOAD"

_OPENMP = ("libgomp", "libomp", "libiomp")
_ALLOCATOR = "libtcmalloc"


def preload(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variable for a worker's environment, its present value kept; {} if there is nothing to add."""
    stated = environ.get(VARIABLE, "")
    added = list(_missing(stated))
    return {VARIABLE: ":".join([*added, stated] if stated else added)} if added else {}


def _missing(stated: str) -> Iterator[str]:
    if _ALLOCATOR not in stated:
        yield from _first("vllm", ["libs"], [f"{_ALLOCATOR}_minimal*.so*", f"{_ALLOCATOR}.so*"])
    if not any(runtime in stated for runtime in _OPENMP):
        yield from _first("torch", ["../torch.libs", "lib"], ["libgomp*.so*"])


def _first(package: str, folders: list[str], patterns: list[str]) -> Iterator[str]:
    """Yield the first library of an installed package that matches, without importing the package."""
    spec = find_spec(package)
    roots = [Path(root) for root in (spec and spec.submodule_search_locations) or ()]
    found = (
        str(path.resolve())
        for root in roots
        for folder in folders
        for pattern in patterns
        for path in sorted((root / folder).glob(pattern))
    )
    if library := next(found, ""):
        yield library
