"""Access to NVIDIA's management library (NVML), and the GPUs that CUDA would show."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any


class NvmlUnavailable(Exception):
    """NVML is not available; the message says why."""


_opened: Any = None
"""The opened `pynvml` module, kept open because opening can take as long as waking a model."""


@contextlib.contextmanager
def nvml(module: Any = None) -> Iterator[Any]:
    """Return the initialised `pynvml` module, or the given stand-in. Raises NvmlUnavailable."""
    global _opened  # noqa: PLW0603 - the library has one state for a process, too
    try:
        module = module or import_module("pynvml")
    except ImportError:
        raise NvmlUnavailable("nvidia-ml-py is not installed") from None
    try:
        if _opened is not module:
            module.nvmlInit()
            _opened = module
        yield module
    except module.NVMLError as error:
        raise NvmlUnavailable(f"NVML: {error}") from error


@dataclass(frozen=True, slots=True)
class VisibleGpu:
    """A GPU or a MIG device. `id` is its name in CUDA_VISIBLE_DEVICES."""

    id: str
    uuid: str
    handle: Any

    def is_meant_by(self, entry: str) -> bool:
        """Return whether an entry of CUDA_VISIBLE_DEVICES means this GPU; the beginning of a UUID is enough."""
        return entry == self.id or (entry.startswith(("GPU-", "MIG-")) and self.uuid.startswith(entry))


def visible(library: Any, environ: Mapping[str, str]) -> list[VisibleGpu]:
    """Return the GPUs in the order of CUDA_VISIBLE_DEVICES, or all GPUs if it is not set.

    Like CUDA, stops at the first entry that is not a GPU.
    """
    present = list(_present(library))
    stated = environ.get("CUDA_VISIBLE_DEVICES")
    if stated is None:
        return present
    chosen = []
    for entry in stated.split(","):
        match = next((gpu for gpu in present if gpu.is_meant_by(entry.strip())), None)
        if match is None:
            break
        chosen.append(match)
    return chosen


def text(value: str | bytes | None) -> str:
    """Return a text from NVML as `str`; older versions of pynvml return bytes."""
    return value.decode() if isinstance(value, bytes) else value or ""


def _present(library: Any) -> Iterator[VisibleGpu]:
    """Yield every GPU, or its MIG devices if it is divided."""
    for number in range(library.nvmlDeviceGetCount()):
        handle = library.nvmlDeviceGetHandleByIndex(number)
        parts = _parts(library, handle)
        if parts is None:
            yield VisibleGpu(str(number), text(library.nvmlDeviceGetUUID(handle)), handle)
        else:
            for part in parts:
                uuid = text(library.nvmlDeviceGetUUID(part))
                yield VisibleGpu(uuid, uuid, part)


def _parts(library: Any, handle: Any) -> list[Any] | None:
    """Return the MIG devices of a GPU; None if it is not divided."""
    try:
        mode, _ = library.nvmlDeviceGetMigMode(handle)
    except library.NVMLError:
        return None
    if mode != library.NVML_DEVICE_MIG_ENABLE:
        return None
    parts = []
    for number in range(library.nvmlDeviceGetMaxMigDeviceCount(handle)):
        with contextlib.suppress(library.NVMLError):
            parts.append(library.nvmlDeviceGetMigDeviceHandleByIndex(handle, number))
    return parts
