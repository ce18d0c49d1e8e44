"""The sleep backend of our workers: weights are copied out once, not at each sleep, and checked when they come back.

vLLM's own backend pins and fills new host memory at every sleep and gives it up at every wake-up, one allocation after
the other. This one keeps the host's copy. Written against vLLM 0.26 to 0.33 (`tests/worker/test_sleep_backend.py`
names them). Public: `SleepModeBackendFactory` and `CuMemBackend` (`vllm/device_allocator/sleep_mode_backend.py`).
Internal, and kept to this file: the factory's table, in which the name of vLLM's default is taken over, because only
vLLM 0.33 has a flag for another name; `CuMemAllocator.pointer_to_data` (`vllm/device_allocator/cumem.py`).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from vllm.device_allocator import sleep_mode_backend as vllm_backends

from vllama.worker.plugin_selection import is_selected

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

_NAME = "cumem"
_OFFLOADED = ("weights", "runtime", "cudagraph")
"""Tags whose content outlives a sleep of level 1, as in vLLM's `CuMemBackend.suspend`; the KV cache does not."""


def register() -> None:
    """Take the place of vLLM's default backend in this process; the second time does nothing."""
    if is_selected():
        vllm_backends.SleepModeBackendFactory._registry[_NAME] = lambda: KeptWeightsBackend  # noqa: SLF001 - see above


class KeptWeightsBackend(vllm_backends.CuMemBackend):  # type: ignore[misc]
    """vLLM's allocator with host copies of our own.

    Raises RuntimeError on a wake-up where what came back is not what was saved.
    """

    def __init__(self) -> None:
        super().__init__()
        from vllm.device_allocator import get_mem_allocator_instance

        from vllama.worker.host_copies import HostCopies

        self._allocator: Any = get_mem_allocator_instance()
        self._copies = HostCopies(pinned=True)
        self._copying: threading.Thread | None = None
        self._stop_copying = threading.Event()

    def begin_copy(self) -> None:
        """Begin to copy the weights to the host in a thread, so that the next sleep need not; returns at once."""
        if self._state == "RUNNING" and (self._copying is None or not self._copying.is_alive()):
            self._stop_copying.clear()
            self._copying = threading.Thread(target=self._copy_in_background, name="host-copy", daemon=True)
            self._copying.start()

    def forget_copy(self) -> None:
        """Give up the host's copy; it must not be asleep."""
        self._end_copying()
        self._copies.forget()

    def _copy_in_background(self) -> None:
        started, copied = time.perf_counter(), 0
        with _own_stream():
            for address, content in self._contents(self._addresses(("weights",), asleep=False)).items():
                if self._stop_copying.is_set():
                    return
                copied += self._copies.save({address: content})
                self._copies.save({address: content})  # once more, in case that it changed while it was copied
        log.info("copied %.0f MB of weights to the host in %.3f s", copied / 1e6, time.perf_counter() - started)

    def _end_copying(self) -> None:
        if self._copying is not None:
            self._stop_copying.set()
            self._copying.join()
            self._copying = None

    def suspend(self, level: int = 1) -> None:
        """Save the weights, unless level 2 gives them up, and free the GPU's memory."""
        self._end_copying()
        if level != 1:
            self._copies.forget()
            super().suspend(level)
            return
        self._state = "SUSPENDED"
        started = time.perf_counter()
        copied = self._copies.save(self._contents(self._addresses(_OFFLOADED, asleep=False)))
        saved = time.perf_counter()
        self._allocator.sleep(offload_tags=())
        log.info(
            "asleep: %.0f MB copied to the host in %.3f s, memory freed in %.3f s",
            copied / 1e6,
            saved - started,
            time.perf_counter() - saved,
        )

    def resume(self, tags: list[str] | None = None) -> None:
        """Take the memory back, and what was saved of it."""
        self._state = "RESUMING"
        started = time.perf_counter()
        sleeping = self._addresses(_OFFLOADED, asleep=True)
        self._allocator.wake_up(tags)
        mapped = time.perf_counter()
        damaged = self._copies.restore(self._contents(sleeping & self._addresses(_OFFLOADED, asleep=False)))
        if damaged:
            raise RuntimeError(f"{len(damaged)} allocations of weights changed while the model slept")
        self._state = "RUNNING"
        log.info("awake: memory taken in %.3f s, copied back in %.3f s", mapped - started, time.perf_counter() - mapped)

    def _addresses(self, tags: Collection[str], *, asleep: bool) -> set[int]:
        """Return where the allocations with these tags are."""
        allocations = list(self._allocator.pointer_to_data.items())  # a thread of ours may ask while vLLM allocates
        return {address for address, data in allocations if data.tag in tags and data.is_asleep == asleep}

    def _contents(self, addresses: Collection[int]) -> dict[int, Tensor]:
        """Return the bytes of allocations that are awake."""
        allocations = self._allocator.pointer_to_data
        return {address: _content(address, allocations[address].handle[1]) for address in sorted(addresses)}


class SleepExtension:
    """Methods of vLLM's worker that `collective_rpc` can call (`vllama.protocol.sleep.WORKER_EXTENSION`)."""

    sleep_mode_backend: Any

    def begin_host_copy(self) -> None:
        """Begin to copy the weights to the host."""
        if isinstance(self.sleep_mode_backend, KeptWeightsBackend):
            self.sleep_mode_backend.begin_copy()

    def forget_host_copy(self) -> None:
        """Give up the host's copy of the weights."""
        if isinstance(self.sleep_mode_backend, KeptWeightsBackend):
            self.sleep_mode_backend.forget_copy()


class _Memory:
    """Memory of the GPU for `torch.as_tensor`."""

    def __init__(self, address: int, size: int) -> None:
        self.__cuda_array_interface__ = {"shape": (size,), "typestr": "|u1", "data": (address, False), "version": 3}


def _own_stream() -> AbstractContextManager[Any]:
    import torch

    stream: AbstractContextManager[Any] = torch.cuda.stream(torch.cuda.Stream())
    return stream


def _content(address: int, size: int) -> Tensor:
    import torch

    return torch.as_tensor(_Memory(address, size), device="cuda")
