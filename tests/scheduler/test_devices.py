"""The machine's GPUs by NVML (a stand-in for its Python module), and a machine without."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vllama.scheduler import devices
from vllama.scheduler.devices import held_by, process_tree, ram_of, read_machine

GIB = 1024**3


class NVMLError(Exception):
    pass


class Card:
    """A GPU, or with `parts` one that is divided."""

    def __init__(
        self, number: int, *, parts: int = 0, running: dict[int, int] | None = None, prefix: str = "GPU"
    ) -> None:
        self.uuid = f"{prefix}-{number:08x}-aaaa"
        self.parts = [Card(10 * number + part, prefix="MIG") for part in range(parts)]
        self.running = running or {}
        self.free = (40 + number) * GIB


class FakeNvml:
    """What of the module `pynvml` is used; every handle is a Card."""

    NVMLError = NVMLError
    NVML_DEVICE_MIG_ENABLE = 1

    def __init__(self, *cards: Card, failure: str = "") -> None:
        self.cards, self.failure, self.opened = cards, failure, 0

    def nvmlInit(self) -> None:  # noqa: N802
        if self.failure:
            raise NVMLError(self.failure)
        self.opened += 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, number: int) -> Card:  # noqa: N802
        return self.cards[number]

    def nvmlDeviceGetUUID(self, card: Card) -> str:  # noqa: N802
        return card.uuid

    def nvmlDeviceGetName(self, card: Card) -> bytes:  # noqa: N802
        return b"NVIDIA H200"

    def nvmlDeviceGetMemoryInfo(self, card: Card) -> Any:  # noqa: N802
        return SimpleNamespace(total=141 * GIB, free=card.free)

    def nvmlDeviceGetMigMode(self, card: Card) -> tuple[int, int]:  # noqa: N802
        if not card.parts:
            raise NVMLError("Not Supported")
        return 1, 1

    def nvmlDeviceGetMaxMigDeviceCount(self, card: Card) -> int:  # noqa: N802
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, card: Card, number: int) -> Card:  # noqa: N802
        if number >= len(card.parts):
            raise NVMLError("Not Found")
        return card.parts[number]

    def nvmlDeviceGetComputeRunningProcesses(self, card: Card) -> list[Any]:  # noqa: N802
        return [SimpleNamespace(pid=pid, usedGpuMemory=held) for pid, held in card.running.items()]


UseNvml = Callable[..., FakeNvml]


@pytest.fixture
def use_nvml(monkeypatch: pytest.MonkeyPatch) -> UseNvml:
    def use(*cards: Card, failure: str = "") -> FakeNvml:
        fake = FakeNvml(*cards, failure=failure)
        monkeypatch.setitem(sys.modules, "pynvml", fake)
        return fake

    return use


def test_all_gpus_are_seen_unless_the_variable_says_otherwise(use_nvml: UseNvml) -> None:
    fake = use_nvml(Card(0), Card(1))
    found = read_machine({})
    assert found.has_gpu
    assert [(gpu.index, gpu.id, gpu.name, gpu.free) for gpu in found.devices] == [
        (0, "0", "NVIDIA H200", 40 * GIB),
        (1, "1", "NVIDIA H200", 41 * GIB),
    ]
    assert read_machine({}) == found
    assert fake.opened == 1


@pytest.mark.parametrize(
    ("stated", "ids"),
    [
        ("1", ["1"]),
        ("2, 0", ["2", "0"]),
        ("GPU-00000002-aaaa,1", ["2", "1"]),
        ("GPU-00000001", ["1"]),
        ("0,7,1", ["0"]),
        ("0,-1,1", ["0"]),
    ],
)
def test_the_variable_chooses_gpus_as_it_does_for_cuda(use_nvml: UseNvml, stated: str, ids: list[str]) -> None:
    use_nvml(Card(0), Card(1), Card(2))
    found = read_machine({"CUDA_VISIBLE_DEVICES": stated})
    assert [gpu.id for gpu in found.devices] == ids
    assert [gpu.index for gpu in found.devices] == list(range(len(ids)))


def test_of_a_divided_gpu_each_part_is_a_device(use_nvml: UseNvml) -> None:
    use_nvml(Card(0, parts=2), Card(1))
    assert [gpu.id for gpu in read_machine({}).devices] == ["MIG-00000000-aaaa", "MIG-00000001-aaaa", "1"]
    chosen = read_machine({"CUDA_VISIBLE_DEVICES": "MIG-00000001-aaaa"})
    assert [gpu.id for gpu in chosen.devices] == ["MIG-00000001-aaaa"]


@pytest.mark.parametrize(
    ("environ", "failure", "reason"),
    [
        ({"CUDA_VISIBLE_DEVICES": ""}, "", "CUDA_VISIBLE_DEVICES is empty"),
        ({"CUDA_VISIBLE_DEVICES": "9"}, "", "CUDA_VISIBLE_DEVICES names no GPU of this machine"),
        ({}, "Driver Not Loaded", "NVML: Driver Not Loaded"),
    ],
)
def test_without_a_gpu_the_machine_is_the_device_and_the_reason_is_said(
    use_nvml: UseNvml, environ: dict[str, str], failure: str, reason: str
) -> None:
    use_nvml(Card(0), failure=failure)
    found = read_machine(environ)
    assert not found.has_gpu
    assert found.reason == reason


def test_without_nvml_s_module_the_reason_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert read_machine({}).reason == "nvidia-ml-py is not installed"


def test_a_machine_without_a_gpu_has_its_ram_and_cores(use_nvml: UseNvml) -> None:
    use_nvml(failure="no driver")
    (device,) = read_machine({}).devices
    assert device.kind == "cpu"
    assert 0 < device.free <= device.total
    assert device.cores == len(os.sched_getaffinity(0))
    assert device.name


def test_a_control_group_s_limit_is_the_machine_s(
    use_nvml: UseNvml, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_nvml(failure="no driver")
    monkeypatch.setattr(devices, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(devices, "_CGROUPS", tmp_path / "cgroup")
    group = tmp_path / "cgroup" / "box" / "job"
    (tmp_path / "proc" / "self").mkdir(parents=True)
    group.mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text("MemTotal:  64000000 kB\nMemAvailable:  60000000 kB\n")
    (tmp_path / "proc" / "self" / "cgroup").write_text("0::/box/job\n")
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("5\n")
    (group.parent / "memory.max").write_text(f"{8 * GIB}\n")
    (group.parent / "memory.current").write_text(f"{5 * GIB}\n")
    (group.parent / "memory.stat").write_text(f"anon 1\ninactive_file {GIB}\n")
    (device,) = read_machine({}).devices
    assert (device.total, device.free) == (8 * GIB, 4 * GIB)


def test_what_processes_hold_is_summed_on_each_gpu(use_nvml: UseNvml) -> None:
    use_nvml(Card(0, running={10: GIB, 11: 2 * GIB, 99: 5 * GIB}), Card(1, running={11: GIB}))
    assert held_by({10, 11}, {}) == {0: 3 * GIB, 1: GIB}


def test_where_nvml_sees_none_of_the_processes_nothing_is_known(use_nvml: UseNvml) -> None:
    use_nvml(Card(0, running={4_000_000: GIB}))
    assert held_by({10}, {}) is None


def test_without_nvml_nothing_is_known_of_gpus(use_nvml: UseNvml) -> None:
    use_nvml(failure="no driver")
    assert held_by({os.getpid()}, {}) is None


def test_the_ram_of_processes_is_the_sum_of_their_parts() -> None:
    assert ram_of({os.getpid()}) > 1_000_000
    assert ram_of({os.getpid(), 4_000_000}) == pytest.approx(ram_of({os.getpid()}), rel=0.1)


def test_the_tree_of_a_process_has_its_children() -> None:
    assert os.getpid() in process_tree(os.getppid())
    assert process_tree(os.getpid()) >= {os.getpid()}
