# ruff: noqa: N802 - the names are those of NVML
"""What of the module `pynvml` is used, over GPUs that do not exist."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace


class NVMLError(Exception):
    """As pynvml's."""


@dataclass
class FakeGpu:
    """A GPU's answers, or those of a part of one; None is an answer that NVML refuses.

    `parts` are those of a GPU that is divided (MIG). `running` has the bytes that each process holds.
    """

    power_mw: int | None = 300_000
    energy_mj: int | None = None
    utilization: int | None = 90
    throttle: int = 0
    running: dict[int, int] = field(default_factory=dict)
    name: str | bytes = "NVIDIA H100"
    uuid: str | bytes = "GPU-00000000-aaaa"
    parts: list[FakeGpu] = field(default_factory=list)
    used: int = 20 << 30


@dataclass
class FakeNvml:
    """Stands for the module pynvml."""

    gpus: list[FakeGpu] = field(default_factory=list)
    broken: str = ""
    opened: int = 0
    NVMLError = NVMLError
    NVML_DEVICE_MIG_ENABLE = 1
    NVML_CLOCK_SM = 1
    NVML_CLOCK_MEM = 2
    NVML_TEMPERATURE_GPU = 0

    def nvmlInit(self) -> None:
        if self.broken:
            raise NVMLError(self.broken)
        self.opened += 1

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> FakeGpu:
        return self.gpus[index]

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580.1"

    def nvmlSystemGetCudaDriverVersion(self) -> int:
        return 13010

    def nvmlDeviceGetName(self, gpu: FakeGpu) -> str | bytes:
        return gpu.name

    def nvmlDeviceGetMemoryInfo(self, gpu: FakeGpu) -> SimpleNamespace:
        return SimpleNamespace(total=80 << 30, used=gpu.used, free=(80 << 30) - gpu.used)

    def nvmlDeviceGetUUID(self, gpu: FakeGpu) -> str | bytes:
        return gpu.uuid

    def nvmlDeviceGetMigMode(self, gpu: FakeGpu) -> tuple[int, int]:
        if not gpu.parts:
            raise NVMLError("Not Supported")
        return 1, 1

    def nvmlDeviceGetMaxMigDeviceCount(self, gpu: FakeGpu) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, gpu: FakeGpu, index: int) -> FakeGpu:
        if index >= len(gpu.parts):
            raise NVMLError("Not Found")
        return gpu.parts[index]

    def nvmlDeviceGetEnforcedPowerLimit(self, gpu: FakeGpu) -> int:
        return 700_000

    def nvmlDeviceGetUtilizationRates(self, gpu: FakeGpu) -> SimpleNamespace:
        return SimpleNamespace(gpu=_known(gpu.utilization), memory=1)

    def nvmlDeviceGetPowerUsage(self, gpu: FakeGpu) -> int:
        return _known(gpu.power_mw)

    def nvmlDeviceGetTotalEnergyConsumption(self, gpu: FakeGpu) -> int:
        return _known(gpu.energy_mj)

    def nvmlDeviceGetClockInfo(self, gpu: FakeGpu, which: int) -> int:
        return 1980 if which == self.NVML_CLOCK_SM else 2619

    def nvmlDeviceGetTemperature(self, gpu: FakeGpu, sensor: int) -> int:
        return 41

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, gpu: FakeGpu) -> int:
        return gpu.throttle

    def nvmlDeviceGetComputeRunningProcesses(self, gpu: FakeGpu) -> list[SimpleNamespace]:
        return [SimpleNamespace(pid=pid, usedGpuMemory=held) for pid, held in gpu.running.items()]


def _known(value: int | None) -> int:
    if value is None:
        raise NVMLError("Not Supported")
    return value
