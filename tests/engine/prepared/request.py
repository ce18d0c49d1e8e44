"""What the tests, the host and its servers tell each other."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

IDLE_TITLE = "idle test worker"
"""The title of a spare that waits for its order."""

SPARES_VARIABLE = "VLLAMA_TEST_SPARES"
"""In a gateway's environment: JSON pairs of a spare's process id and the descriptor that takes its order."""

HOST_ENVIRONMENT_VARIABLE = "VLLAMA_TEST_HOST_ENVIRONMENT"
"""In a gateway's environment: the environment in which the host imported vLLM, as JSON."""

NO_COMPILER = {"CXX": "/nowhere/c++"}
"""The environment of a server that must not need a C++ compiler, as only `--compile` may."""

ONE_THREAD = (
    {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"} if "PYTEST_XDIST_WORKER" in os.environ else {}
)
"""The environment of a server whose engine shares the cores with that of another test.

OpenMP's threads wait for each other at each operation: two engines that each use all cores take several times as long.
"""

_CONFIGURATION = ("OLLAMA_", "VLLM", "VLLAMA")
_OF_THE_MACHINE = "VLLM_USE_FLASHINFER_SAMPLER"
"""Says whether FlashInfer is installed rather than what is to be tested."""

MAXIMUM_MESSAGE_BYTES = 128 * 1024

_TESTS = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class ServerRequest:
    """What a server is started with, and how many spares it gets."""

    command: Sequence[str]
    environment: Mapping[str, str]
    spares: int

    def encode(self) -> bytes:
        """One message of JSON."""
        return json.dumps(asdict(self)).encode()


def unconfigured() -> dict[str, str]:
    """Return the environment of the tests without what configures vllama and vLLM, and without a compiler.

    Where several tests run at once, engines compute with one thread.
    """
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name == _OF_THE_MACHINE or not name.startswith(_CONFIGURATION)
    }
    return {**inherited, **NO_COMPILER, **ONE_THREAD}


def command_of(module: str, *arguments: str) -> list[str]:
    """Return the command line that calls `main()` of a module of the tests."""
    code = f"import sys; sys.path.append({str(_TESTS)!r}); from {module} import main; main()"
    return [sys.executable, "-c", code, *arguments]
