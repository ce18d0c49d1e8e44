"""Where an engine on CPUs computes: in its own process, unless the user or several ranks want it otherwise.

vLLM 0.32 is installed here. 0.26 to 0.33 decide in `CpuPlatform.check_and_update_config`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vllama.worker.one_process import EXECUTOR
from vllama.worker.thread_binding import stated_cores

pytestmark = pytest.mark.timeout(300)

DECIDES = """
import json, os, sys
from types import SimpleNamespace
from vllm.platforms import current_platform
from vllama.worker.one_process import prefer_one_process

def forced(config):
    if config.parallel_config.distributed_executor_backend == "uni":
        config.parallel_config.distributed_executor_backend = "mp"  # as vllm.platforms.cpu does

decided = {}
for cores in CORES:
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = cores
    type(current_platform).check_and_update_config = staticmethod(forced)
    prefer_one_process()
    decided[cores] = []
    for backend in ("uni", "mp", "ray"):
        config = SimpleNamespace(parallel_config=SimpleNamespace(distributed_executor_backend=backend))
        current_platform.check_and_update_config(config)
        decided[cores].append(config.parallel_config.distributed_executor_backend)
print(json.dumps(decided))
"""
BINDS = """
import json, os, sys
from vllm.v1.executor.uniproc_executor import UniProcExecutor
UniProcExecutor._init_executor = lambda self: None
from vllama.worker.bound_executor import BoundExecutor
import torch
BoundExecutor.__new__(BoundExecutor)._init_executor()
listed = [sorted(os.sched_getaffinity(int(task))) for task in os.listdir("/proc/self/task")]
print(json.dumps([listed, torch.get_num_threads()]))
"""


def printed(program: str, **environment: str) -> Any:
    """What a program prints as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, **environment},
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.vllm
def test_an_engine_of_one_rank_computes_in_its_own_process_unless_it_is_to_be_otherwise() -> None:
    one, several = ["0", "0-1", "nobind"], ["0|1", "auto", ""]
    decided = printed(DECIDES.replace("CORES", repr([*one, *several])))
    assert decided == {
        **{cores: [EXECUTOR, "mp", "ray"] for cores in one},
        **{cores: ["mp", "mp", "ray"] for cores in several},
    }


@pytest.mark.vllm
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one core")
def test_each_thread_of_the_engine_has_one_of_the_stated_cores() -> None:
    cores = sorted(os.sched_getaffinity(0))[:2]
    listed, threads = printed(BINDS, VLLM_CPU_OMP_THREADS_BIND=",".join(map(str, cores)))
    assert threads == 2
    assert [core for core in cores if [core] in listed] == cores


@pytest.mark.parametrize(
    ("text", "cores"),
    [("5,2-4", {2, 3, 4, 5}), ("0", {0}), ("nobind", set()), ("0|1", None), ("auto", None), ("", None), ("0,x", None)],
)
def test_the_stated_cores_are_read_as_linux_lists_them(text: str, cores: set[int] | None) -> None:
    assert stated_cores(text) == cores
