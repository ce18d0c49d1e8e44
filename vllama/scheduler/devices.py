"""The current devices for workers: the machine's GPUs, or its RAM and cores."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from vllama.machine.host import cores, host_memory, processor
from vllama.machine.nvml import NvmlUnavailable, VisibleGpu, nvml, text, visible
from vllama.scheduler.memory import Device


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine's devices: GPUs, or the machine itself if there are none, with the `reason`.

    If not `is_known`, there are GPUs that NVML does not report.
    """

    devices: tuple[Device, ...]
    reason: str = ""
    is_known: bool = True

    @property
    def has_gpu(self) -> bool:
        """Whether workers have a GPU."""
        return self.devices[0].kind == "gpu"


def read_machine(environ: Mapping[str, str] = os.environ) -> Machine:
    """Read the machine's devices, respecting CUDA_VISIBLE_DEVICES. Takes milliseconds."""
    found, reason = _gpus(environ)
    return Machine(found) if found else Machine((host(),), reason)


def host() -> Device:
    """Return the machine as a device: its RAM within the limits of the control group."""
    ram = host_memory()
    return Device(0, processor(), ram.total, ram.free, kind="cpu", cores=cores())


def held_by(processes: Collection[int], environ: Mapping[str, str] = os.environ) -> dict[int, int] | None:
    """Return the bytes that these processes hold together on each GPU, by GPU index.

    None if NVML cannot tell: in a container it may see no processes, or different process ids.
    """
    try:
        with nvml() as library:
            held = {i: _held(library, gpu, processes) for i, gpu in enumerate(visible(library, environ))}
    except NvmlUnavailable:
        return None
    return held if any(held.values()) else None


def _gpus(environ: Mapping[str, str]) -> tuple[tuple[Device, ...], str]:
    """Return the visible GPUs, or none and the reason."""
    if environ.get("CUDA_VISIBLE_DEVICES") == "":
        return (), "CUDA_VISIBLE_DEVICES is empty"
    try:
        with nvml() as library:
            devices = tuple(_device(library, gpu, i) for i, gpu in enumerate(visible(library, environ)))
    except NvmlUnavailable as error:
        return (), str(error)
    return devices, "" if devices else "CUDA_VISIBLE_DEVICES names no GPU of this machine"


def _device(library: Any, gpu: VisibleGpu, index: int) -> Device:
    memory = library.nvmlDeviceGetMemoryInfo(gpu.handle)
    name = text(library.nvmlDeviceGetName(gpu.handle))
    return Device(index, name, int(memory.total), int(memory.free), kind="gpu", id=gpu.id)


def _held(library: Any, gpu: VisibleGpu, processes: Collection[int]) -> int:
    running = library.nvmlDeviceGetComputeRunningProcesses(gpu.handle)
    return sum(int(entry.usedGpuMemory or 0) for entry in running if entry.pid in processes)
