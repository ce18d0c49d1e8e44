"""NVIDIA's management library (NVML): opened once, why there is none, and the GPUs that CUDA would show."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any


class NvmlUnavailable(Exception):
    """There is no NVML to ask; the text says why."""


_opened: Any = None
"""The module whose library is open. It stays so: opening it can take as long as waking a model."""


@contextlib.contextmanager
def nvml(module: Any = None) -> Iterator[Any]:
    """Give the module `pynvml`, or what stands for it, ready to be asked. Its errors become NvmlUnavailable."""
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
    """A GPU, or a part of one that is divided (MIG). `id` is what CUDA_VISIBLE_DEVICES calls it."""

    id: str
    uuid: str
    handle: Any

    def is_meant_by(self, entry: str) -> bool:
        """Whether an entry of CUDA_VISIBLE_DEVICES means it; of a UUID its beginning is enough."""
        return entry == self.id or (entry.startswith(("GPU-", "MIG-")) and self.uuid.startswith(entry))


def visible(library: Any, environ: Mapping[str, str]) -> list[VisibleGpu]:
    """Return the GPUs in the order that CUDA_VISIBLE_DEVICES gives them, all without that variable.

    As CUDA does, the list is read up to the first entry that is no GPU.
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
    """Return a text of NVML's; older versions of its Python module answer with bytes."""
    return value.decode() if isinstance(value, bytes) else value or ""


def _present(library: Any) -> Iterator[VisibleGpu]:
    """Every GPU; of one that is divided each part."""
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
    """The MIG devices of a GPU; None where it is not divided."""
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
