"""The devices of a machine with GPUs (a stand-in for NVML's Python module), and of one without."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import pytest
from scripted_nvml import FakeGpu, FakeNvml

from vllama.scheduler.devices import held_by, read_machine

GIB = 1024**3

UseNvml = Callable[[FakeNvml], None]


@pytest.fixture
def use_nvml(monkeypatch: pytest.MonkeyPatch) -> UseNvml:
    return lambda fake: monkeypatch.setitem(sys.modules, "pynvml", fake)


def test_gpus_are_devices_in_the_order_of_the_variable_and_the_library_stays_open(use_nvml: UseNvml) -> None:
    fake = FakeNvml([FakeGpu(name=b"NVIDIA H200", used=10 * GIB), FakeGpu()])
    use_nvml(fake)
    found = read_machine({"CUDA_VISIBLE_DEVICES": "1,0"})
    assert found.has_gpu
    assert [(gpu.index, gpu.id, gpu.name, gpu.total, gpu.free) for gpu in found.devices] == [
        (0, "1", "NVIDIA H100", 80 * GIB, 60 * GIB),
        (1, "0", "NVIDIA H200", 80 * GIB, 70 * GIB),
    ]
    assert len(read_machine({}).devices) == 2
    assert fake.opened == 1


@pytest.mark.parametrize(
    ("environ", "broken", "reason"),
    [
        ({"CUDA_VISIBLE_DEVICES": ""}, "", "CUDA_VISIBLE_DEVICES is empty"),
        ({"CUDA_VISIBLE_DEVICES": "9"}, "", "CUDA_VISIBLE_DEVICES names no GPU of this machine"),
        ({}, "Driver Not Loaded", "NVML: Driver Not Loaded"),
    ],
)
def test_without_a_gpu_the_machine_is_the_device_and_the_reason_is_said(
    use_nvml: UseNvml, environ: dict[str, str], broken: str, reason: str
) -> None:
    use_nvml(FakeNvml([FakeGpu()], broken))
    found = read_machine(environ)
    assert not found.has_gpu
    assert found.reason == reason


def test_a_machine_without_a_gpu_has_its_ram_and_cores(use_nvml: UseNvml) -> None:
    use_nvml(FakeNvml(broken="no driver"))
    (device,) = read_machine({}).devices
    assert device.kind == "cpu"
    assert 0 < device.free <= device.total
    assert device.cores == len(os.sched_getaffinity(0))
    assert device.name


def test_what_processes_hold_is_summed_on_each_gpu(use_nvml: UseNvml) -> None:
    first = FakeGpu(running={10: GIB, 11: 2 * GIB, 99: 5 * GIB})
    use_nvml(FakeNvml([first, FakeGpu(running={11: GIB})]))
    assert held_by({10, 11}, {}) == {0: 3 * GIB, 1: GIB}


def test_where_nvml_sees_none_of_the_processes_nothing_is_known(use_nvml: UseNvml) -> None:
    use_nvml(FakeNvml([FakeGpu(running={4_000_000: GIB})]))
    assert held_by({10}, {}) is None


def test_without_nvml_nothing_is_known_of_gpus(use_nvml: UseNvml) -> None:
    use_nvml(FakeNvml(broken="no driver"))
    assert held_by({os.getpid()}, {}) is None
