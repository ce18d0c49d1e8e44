"""Read the GPUs of this machine: their properties and their present use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vllama.machine.nvml import NvmlUnavailable, nvml, text

THROTTLE_REASONS = {
    0x2: "clocks set by an application",
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
    0x100: "display clock",
}
"""NVML's bits for why the clocks are lower than they could be. Idleness (0x1) is none."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU as it is: memory in bytes, power limit in W (None: the driver does not say)."""

    index: int
    name: str
    memory: int | None
    power_limit: float | None


class Gpus:
    """All GPUs of the machine; none, with the reason in `note`, where NVML or a GPU is missing."""

    def __init__(self, module: Any = None) -> None:
        """Start NVML. Tests pass a `module` to use instead of `pynvml`."""
        self._handles: list[Any] = []
        self.note = ""
        self.driver = ""
        self.cuda = ""
        try:
            with nvml(module) as self._nvml:
                count = self._nvml.nvmlDeviceGetCount()
                self._handles = [self._nvml.nvmlDeviceGetHandleByIndex(i) for i in range(count)]
        except NvmlUnavailable as error:
            self.note = f"no GPU: {error}"
            return
        if not self._handles:
            self.note = "no GPU: the driver knows of none"
        self.driver = text(self._ask("nvmlSystemGetDriverVersion"))
        cuda = self._ask("nvmlSystemGetCudaDriverVersion")
        self.cuda = f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else ""

    def __len__(self) -> int:
        return len(self._handles)

    def describe(self) -> list[Gpu]:
        """Return what each GPU is."""
        return [
            Gpu(
                index,
                text(self._ask("nvmlDeviceGetName", handle)),
                getattr(self._ask("nvmlDeviceGetMemoryInfo", handle), "total", None),
                _from_milli(self._ask("nvmlDeviceGetEnforcedPowerLimit", handle)),
            )
            for index, handle in enumerate(self._handles)
        ]

    def read(self) -> dict[str, float | None]:
        """Return each GPU's state by series name (`gpu0_power_w`, …); None for what the driver does not tell."""
        return {
            f"gpu{index}_{name}": value
            for index, handle in enumerate(self._handles)
            for name, value in self._state(handle).items()
        }

    def used_by(self, pids: frozenset[int]) -> set[int]:
        """Return the indices of the GPUs on which one of these processes computes, as far as the driver tells."""
        return {
            index
            for index, handle in enumerate(self._handles)
            for process in self._ask("nvmlDeviceGetComputeRunningProcesses", handle) or ()
            if process.pid in pids
        }

    def _state(self, handle: Any) -> dict[str, float | None]:
        return {
            "utilization_percent": getattr(self._ask("nvmlDeviceGetUtilizationRates", handle), "gpu", None),
            "memory_bytes": getattr(self._ask("nvmlDeviceGetMemoryInfo", handle), "used", None),
            "power_w": _from_milli(self._ask("nvmlDeviceGetPowerUsage", handle)),
            "energy_j": _from_milli(self._ask("nvmlDeviceGetTotalEnergyConsumption", handle)),
            "sm_clock_mhz": self._ask("nvmlDeviceGetClockInfo", handle, self._nvml.NVML_CLOCK_SM),
            "memory_clock_mhz": self._ask("nvmlDeviceGetClockInfo", handle, self._nvml.NVML_CLOCK_MEM),
            "temperature_c": self._ask("nvmlDeviceGetTemperature", handle, self._nvml.NVML_TEMPERATURE_GPU),
            "throttle_reasons": self._ask("nvmlDeviceGetCurrentClocksThrottleReasons", handle),
        }

    def _ask(self, function: str, *arguments: Any) -> Any:
        """Call NVML; return None if the GPU lacks the value: a MIG slice has no utilisation, a GeForce no energy."""
        try:
            return getattr(self._nvml, function)(*arguments)
        except self._nvml.NVMLError:
            return None


def _from_milli(value: int | None) -> float | None:
    return None if value is None else value / 1000
