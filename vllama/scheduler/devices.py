"""The devices of this machine, as they are now: its GPUs by NVML, or its RAM and cores."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllama.scheduler.memory import Device

log = logging.getLogger(__name__)

_PROC, _CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Machine:
    """What workers can have. `devices` are GPUs, or the machine itself where there are none, and then `reason` why.

    Not `is_known`: there are GPUs, but NVML does not tell of them.
    """

    devices: tuple[Device, ...]
    reason: str = ""
    is_known: bool = True

    @property
    def has_gpu(self) -> bool:
        """Whether workers find a GPU."""
        return self.devices[0].kind == "gpu"


def read_machine(environ: Mapping[str, str] = os.environ) -> Machine:
    """Look at the machine; of the GPUs only those that CUDA_VISIBLE_DEVICES leaves. Takes milliseconds."""
    found, reason = _gpus(environ)
    return Machine(found) if found else Machine((host(),), reason)


@dataclass(frozen=True, slots=True)
class HostMemory:
    """RAM in bytes: in all, and what is available now."""

    total: int
    free: int


def host_memory() -> HostMemory:
    """The machine's RAM, or what its control group leaves of it."""
    facts = _numbers(_PROC / "meminfo")
    total, free = facts.get("MemTotal", 0) * 1024, facts.get("MemAvailable", 0) * 1024
    for limit, used, reclaimable in _limits():
        total, free = min(total, limit), min(free, limit - used + reclaimable)
    return HostMemory(total, max(free, 0))


def held_by(processes: Collection[int], environ: Mapping[str, str] = os.environ) -> dict[int, int] | None:
    """The bytes that these processes hold together on each GPU, by its index.

    None where NVML cannot tell: in a container it may see no processes, or others' numbers for them.
    """
    try:
        with _nvml() as nvml:
            devices = _visible(nvml, environ)
            held = {device.index: _held(nvml, handle, processes) for device, handle in devices}
    except _NvmlUnavailable:
        return None
    return held if any(held.values()) else None


def ram_of(processes: Collection[int]) -> int:
    """The RAM that processes hold, shared pages in proportion; what is mapped from files does not count."""
    total = 0
    for process in processes:
        facts = _numbers(_PROC / str(process) / "smaps_rollup")
        total += (facts.get("Pss_Anon", 0) + facts.get("Pss_Shmem", 0)) * 1024
    return total


def process_tree(root: int) -> frozenset[int]:
    """This process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for stat in _PROC.glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            parent = int(stat.read_text(errors="replace").rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found, waiting = {root}, [root]
    while waiting:
        for child in children.get(waiting.pop(), ()):
            if child not in found:
                found.add(child)
                waiting.append(child)
    return frozenset(found)


class _NvmlUnavailable(Exception):
    """There is no NVML to ask; the text says why."""


_initialised: Any = None
"""The module whose library is open. It stays so: opening it can take as long as waking a model."""


@contextlib.contextmanager
def _nvml() -> Iterator[Any]:
    """The module `pynvml`, ready to be asked."""
    global _initialised  # noqa: PLW0603 - the library has one state for a process, too
    try:
        import pynvml
    except ImportError:
        raise _NvmlUnavailable("nvidia-ml-py is not installed") from None
    try:
        if _initialised is not pynvml:
            pynvml.nvmlInit()
            _initialised = pynvml
        yield pynvml
    except pynvml.NVMLError as error:
        raise _NvmlUnavailable(f"NVML: {error}") from error


def _gpus(environ: Mapping[str, str]) -> tuple[tuple[Device, ...], str]:
    """The visible GPUs, or none and why."""
    if environ.get("CUDA_VISIBLE_DEVICES") == "":
        return (), "CUDA_VISIBLE_DEVICES is empty"
    try:
        with _nvml() as nvml:
            devices = tuple(device for device, _ in _visible(nvml, environ))
    except _NvmlUnavailable as error:
        return (), str(error)
    return devices, "" if devices else "CUDA_VISIBLE_DEVICES names no GPU of this machine"


def _visible(nvml: Any, environ: Mapping[str, str]) -> list[tuple[Device, Any]]:
    """The devices and their handles, in the order that CUDA_VISIBLE_DEVICES gives them.

    As CUDA does, the list is read up to the first entry that is no device.
    """
    present = list(_present(nvml))
    stated = environ.get("CUDA_VISIBLE_DEVICES")
    if stated is not None:
        chosen = []
        for entry in stated.split(","):
            matches = [item for item in present if _is_meant(entry.strip(), item)]
            if not matches:
                break
            chosen.append(matches[0])
        present = chosen
    return [(_device(nvml, handle, index, spelled), handle) for index, (spelled, _, handle) in enumerate(present)]


def _present(nvml: Any) -> Iterator[tuple[str, str, Any]]:
    """(what CUDA_VISIBLE_DEVICES calls it, UUID, handle) of each GPU; of one that is divided (MIG) each part."""
    for number in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(number)
        parts = _parts(nvml, handle)
        if parts is None:
            yield str(number), _text(nvml.nvmlDeviceGetUUID(handle)), handle
        else:
            for part in parts:
                uuid = _text(nvml.nvmlDeviceGetUUID(part))
                yield uuid, uuid, part


def _parts(nvml: Any, handle: Any) -> list[Any] | None:
    """The MIG devices of a GPU; None where it is not divided."""
    try:
        mode, _ = nvml.nvmlDeviceGetMigMode(handle)
    except nvml.NVMLError:
        return None
    if mode != nvml.NVML_DEVICE_MIG_ENABLE:
        return None
    parts = []
    for number in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        with contextlib.suppress(nvml.NVMLError):
            parts.append(nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number))
    return parts


def _is_meant(entry: str, item: tuple[str, str, Any]) -> bool:
    """Whether an entry of CUDA_VISIBLE_DEVICES means this device; of a UUID its beginning is enough."""
    spelled, uuid, _ = item
    return entry == spelled or (entry.startswith(("GPU-", "MIG-")) and uuid.startswith(entry))


def _device(nvml: Any, handle: Any, index: int, spelled: str) -> Device:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    return Device(
        index=index,
        name=_text(nvml.nvmlDeviceGetName(handle)),
        total=int(memory.total),
        free=int(memory.free),
        kind="gpu",
        id=spelled,
    )


def _held(nvml: Any, handle: Any, processes: Collection[int]) -> int:
    running = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
    return sum(int(entry.usedGpuMemory or 0) for entry in running if entry.pid in processes)


def _text(value: str | bytes) -> str:
    """Older versions of NVML's Python module answer with bytes."""
    return value.decode() if isinstance(value, bytes) else value


def host() -> Device:
    """The machine: its RAM, or what its control group leaves of it."""
    ram = host_memory()
    return Device(0, _processor(), ram.total, ram.free, kind="cpu", cores=len(os.sched_getaffinity(0)))


def _limits() -> list[tuple[int, int, int]]:
    """(limit, in use, of that reclaimable) of this process's control group and those above it, where they have one."""
    own = next((line[3:] for line in _lines(_PROC / "self" / "cgroup") if line.startswith("0::")), "/")
    found = []
    for group in (Path(own), *Path(own).parents):
        folder = _CGROUPS / str(group).lstrip("/")
        limit, used = ("".join(_lines(folder / name)).strip() for name in ("memory.max", "memory.current"))
        if limit.isdecimal() and used.isdecimal():
            found.append((int(limit), int(used), _numbers(folder / "memory.stat").get("inactive_file", 0)))
    return found


def _processor() -> str:
    names = (line.partition(":")[2].strip() for line in _lines(_PROC / "cpuinfo") if line.startswith("model name"))
    return next(names, os.uname().machine)


def _numbers(path: Path) -> dict[str, int]:
    """The first number of each line, by the line's first word without its colon."""
    pairs = (line.replace(":", " ").split() for line in _lines(path))
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) > 1 and pair[1].isdecimal()}


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []
