"""Whether a worker on this machine's CPU multiplies packed weights, known without importing what it needs for that.

The worker's own decision is in vllama.worker.cpu_products; `tests/worker/test_cpu_products.py` compares both.
"""

from __future__ import annotations

from functools import cache
from importlib import metadata

from vllama.machine.host import has_float_vectors

_LEAST_LLVMLITE = (0, 45)
"""The first version of llvmlite with LLVM 20. vLLM 0.32 and 0.33 require numba 0.65, which requires llvmlite 0.47."""


@cache
def multiplies_packed_weights() -> bool:
    """Return whether weights of GGUF files stay packed in the memory of a CPU that computes in 32 bits."""
    try:
        version = metadata.version("llvmlite")
    except metadata.PackageNotFoundError:
        return False
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    return numbers >= _LEAST_LLVMLITE and has_float_vectors()
