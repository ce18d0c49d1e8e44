# ruff: noqa: N802 - the names are those of NVML
"""NVML as the recorder needs it, with GPUs whose state is a function of time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace


class NVMLError(Exception):
    """As pynvml's."""


@dataclass
class FakeGpu:
    """A GPU's answers; None is an answer that NVML refuses."""

    power_mw: int | None = 300_000
    energy_mj: int | None = None
    utilization: int | None = 90
    throttle: int = 0
    pids: Sequence[int] = ()
    name: str | bytes = "NVIDIA H100"


@dataclass
class FakeNvml:
    """Stands for the module pynvml."""

    gpus: list[FakeGpu] = field(default_factory=list)
    broken: str = ""
    closed: bool = False
    NVMLError = NVMLError
    NVML_CLOCK_SM = 1
    NVML_CLOCK_MEM = 2
    NVML_TEMPERATURE_GPU = 0

    def nvmlInit(self) -> None:
        if self.broken:
            raise NVMLError(self.broken)

    def nvmlShutdown(self) -> None:
        self.closed = True

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
        return SimpleNamespace(total=80 << 30, used=20 << 30)

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
        return [SimpleNamespace(pid=pid) for pid in gpu.pids]


def _known(value: int | None) -> int:
    if value is None:
        raise NVMLError("Not Supported")
    return value
