"""What a forked process of the engine must do for itself; real forks, in a program of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PATIENCE = 180.0

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing is forked here")

STAND_INS = """
import sys
from argparse import Namespace
from types import ModuleType

class Platform:
    @classmethod
    def check_and_update_config(cls, config):
        import os
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"  # as vllm.platforms.cpu does
        config.append(cls.__name__)

    def is_cpu(self):
        return ON_CPU

vllm, platforms, torch = ModuleType("vllm"), ModuleType("vllm.platforms"), ModuleType("torch")
platforms.current_platform = Platform()
torch.threads = []
torch.set_num_threads = torch.threads.append

class Numbers:
    def add_(self, number):
        from threading import Event, Thread

        for _ in range(torch.threads[-1] - 1):  # OpenMP's team comes into being with the first parallel work
            Thread(target=Event().wait, daemon=True).start()

torch.ones = lambda count: Numbers()
sys.modules.update({"vllm": vllm, "vllm.platforms": platforms, "torch": torch})
"""

UPDATES_A_CONFIG = """
import json, os
from vllama.worker.forking import prefer_fork
prefer_fork(Namespace(**FLAGS))
config = []
platforms.current_platform.check_and_update_config(config)
Platform.check_and_update_config(config)
print(json.dumps([config, os.environ["VLLM_WORKER_MULTIPROC_METHOD"]]))
"""

FORKS_BOUND = """
import json, os
from vllama.worker.forking import prefer_fork
prefer_fork(Namespace())
os.environ.update(BINDING)
if os.fork() == 0:
    print(json.dumps([sorted(os.sched_getaffinity(0)), torch.threads]), flush=True)
    os._exit(0)
os.wait()
"""

LISTS_THREADS = """
import json, os
from argparse import Namespace
from vllama.worker.forking import prefer_fork
prefer_fork(Namespace())
os.environ.update(BINDING)
if os.fork() == 0:
    import torch
    print(json.dumps([sorted(os.sched_getaffinity(int(task))) for task in os.listdir("/proc/self/task")]), flush=True)
    os._exit(0)
os.wait()
"""

SIGNALS_A_CHILD = """
import asyncio, os, signal
from vllama.worker.forking import prefer_fork
prefer_fork(Namespace())

async def main():
    handled = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: print("parent", flush=True) or handled.set())
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(os.write(1, b"child\\n") * 0))
        os.write(write, b"1")
        while True:
            signal.pause()
    os.read(read, 1)
    os.kill(child, signal.SIGTERM)
    os.waitpid(child, 0)
    os.kill(os.getpid(), signal.SIGTERM)  # its own signal comes after whatever the child's may have sent
    await handled.wait()

asyncio.run(main())
"""


def run(
    program: str,
    *,
    on_cpu: bool = True,
    environment: dict[str, str] | None = None,
    stand_ins: str = STAND_INS,
    **constants: object,
) -> str:
    preamble = "".join(f"{name} = {value!r}\n" for name, value in {"ON_CPU": on_cpu, **constants}.items())
    inherited = {name: value for name, value in os.environ.items() if name != "VLLM_WORKER_MULTIPROC_METHOD"}
    return subprocess.run(
        [sys.executable, "-c", preamble + stand_ins + program],
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
        cwd=Path(__file__).parents[2],
        env={**inherited, **(environment or {})},
    ).stdout


def test_the_platform_for_cpus_keeps_what_it_decides_except_for_the_method() -> None:
    assert json.loads(run(UPDATES_A_CONFIG, FLAGS={})) == [["Platform", "Platform"], "fork"]


def test_other_platforms_are_left_alone() -> None:
    assert json.loads(run(UPDATES_A_CONFIG, on_cpu=False, FLAGS={})) == [["Platform", "Platform"], "spawn"]


@pytest.mark.parametrize(
    ("environment", "flags"),
    [({"VLLM_WORKER_MULTIPROC_METHOD": "spawn"}, {}), ({}, {"mm_tensor_ipc": "torch_shm"})],
    ids=["the user's variable", "a flag that needs it"],
)
def test_spawning_stays_where_it_is_asked_for(environment: dict[str, str], flags: dict[str, str]) -> None:
    assert json.loads(run(UPDATES_A_CONFIG, environment=environment, FLAGS=flags))[1] == "spawn"


@pytest.mark.parametrize(
    "binding",
    [
        {"GOMP_CPU_AFFINITY": "{}"},
        {"OMP_PLACES": "{{{}}}"},
        {"KMP_AFFINITY": "granularity=fine,explicit,proclist=[{}]"},
    ],
    ids=lambda binding: next(iter(binding)),
)
def test_a_forked_process_runs_on_the_cores_that_vllm_has_written_down_for_it(binding: dict[str, str]) -> None:
    core = max(os.sched_getaffinity(0))
    stated = {name: value.format(core) for name, value in binding.items()}
    assert json.loads(run(FORKS_BOUND, BINDING=stated)) == [[core], [1]]


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one core")
@pytest.mark.parametrize("torch", ["a stand-in", pytest.param("the real one", marks=pytest.mark.vllm)])
def test_each_thread_of_a_forked_process_has_a_core_of_its_own(torch: str) -> None:
    cores = sorted(os.sched_getaffinity(0))[:2]
    binding = {"GOMP_CPU_AFFINITY": " ".join(map(str, cores))}
    stand_ins = STAND_INS if torch == "a stand-in" else STAND_INS.replace(', "torch": torch', "")
    listed = json.loads(run(LISTS_THREADS, stand_ins=stand_ins, BINDING=binding))
    assert [core for core in cores if [core] in listed] == cores


def test_a_binding_of_the_users_own_is_not_read_again() -> None:
    stated = {"GOMP_CPU_AFFINITY": "0-7:2"}
    result = json.loads(run(FORKS_BOUND, environment=stated, BINDING=stated))
    assert result == [sorted(os.sched_getaffinity(0)), []]


def test_a_signal_for_a_forked_process_does_not_reach_its_parents_event_loop() -> None:
    assert run(SIGNALS_A_CHILD) == "child\nparent\n"
