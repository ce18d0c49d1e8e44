"""Records of the memory plan (needs, devices, placements), and the plan as vLLM's flags.

The rules of the plan are in `vllama.scheduler.placing`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from vllama.store.kv_shape import KvShape

MIB = 1024**2
GIB = 1024**3

FLOOR = 2048
"""Minimum context in tokens, unless the model's own is shorter."""

COMFORTABLE = 8192
"""Tokens per request for which the KV cache is sized, and for which more devices are used."""

REQUESTS = 64
"""Number of such requests at once, unless OLLAMA_NUM_PARALLEL is set."""


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU, or the machine itself with its RAM. `total` and `free` are bytes; `free` counts all processes.

    `index` is unique within one list; `id` is what CUDA_VISIBLE_DEVICES calls it.
    """

    index: int
    name: str
    total: int
    free: int
    kind: Literal["gpu", "cpu"] = "gpu"
    id: str = ""
    cores: int = 0

    @property
    def headroom(self) -> int:
        """Bytes left free because of inexact estimates. RAM can be swapped, GPU memory cannot."""
        return max(512 * MIB, self.total // 50) if self.kind == "gpu" else 0


@dataclass(frozen=True, slots=True)
class Claim:
    """A resident's planned bytes on one device, and the part of them that it already holds."""

    device: int
    size: int
    held: int = 0


@dataclass(frozen=True, slots=True)
class Learned:
    """Measured bytes per device: overhead beyond weights and KV cache, and memory kept while asleep.

    `host` is what its sleep took of the host's memory. `residue` and `host` are 0 where it never slept.
    """

    overhead: int
    residue: int = 0
    host: int = 0


@dataclass(frozen=True, slots=True)
class Overhead:
    """Memory other than weights and KV cache, in bytes per device.

    `fixed` is held while it is awake: the CUDA context, libraries, graphs, the sampler's buffers; `asleep` is what of
    it stays in sleep. `transient` is what the largest batch needs while it is computed.
    """

    fixed: int
    transient: int
    asleep: int = 0
    is_learned: bool = False

    @property
    def total(self) -> int:
        """Total overhead in bytes."""
        return self.fixed + self.transient


@dataclass(frozen=True, slots=True)
class Layout:
    """The sizes of a model that its overhead depends on; elements, 0 where unknown."""

    layers: int = 0
    hidden: int = 0
    intermediate: int = 0
    vocabulary: int = 0


@dataclass(frozen=True, slots=True)
class Stated:
    """Values set by the user's own vLLM flags, 0 if not set. `kv` is bytes per device.

    `elsewhere`: the user spreads the model over several machines or with Ray, so its devices are not planned.
    """

    tensor_parallel: int = 0
    pipeline_parallel: int = 1
    data_parallel: int = 1
    kv: int = 0
    utilization: float = 0.0
    context: bool = False
    elsewhere: bool = False


@dataclass(frozen=True, slots=True)
class Need:
    """The needs of a model, read from its files and flags (vllama.scheduler.need).

    `weights` is the bytes on all devices, with about `bits` bits per weight, including memory for LoRA adapters.
    `kv_item` is the bytes of a value in the KV cache. `context` is in tokens, `is_context_stated` if the user set it.
    `requests` is the number that the KV cache should hold; `shares` says that other models may be awake on the
    device, `has_sleepers` that some may sleep there. `learned` is keyed by device name. `notes` name estimates.
    """

    name: str
    weights: int
    kv: KvShape
    context: int
    bits: int = 16
    kv_item: int = 2
    is_context_stated: bool = False
    requests: int = REQUESTS
    heads: int = 0
    layout: Layout = Layout()
    pools: bool = False
    eager: bool = False
    shares: bool = True
    has_sleepers: bool = True
    stated: Stated = Stated()
    learned: Mapping[str, Learned] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def kv_bytes(self, tokens: int, size: int = 1) -> int:
        """Return the bytes of one request of `tokens` in the KV cache of each of `size` devices."""
        values = self.kv.elements(math.ceil(tokens / 256) * 256, devices=size // self.stated.pipeline_parallel or 1)
        return math.ceil(values * self.kv_item / self.stated.pipeline_parallel)

    @property
    def floor(self) -> int:
        """The minimum context for a load, in tokens."""
        return self.context if self.is_context_stated else min(FLOOR, self.context)


@dataclass(frozen=True, slots=True)
class Placement:
    """The plan of a load, in bytes per device. `context` is the expected context in tokens.

    `claim` is its total: weights, overhead and KV cache.
    """

    need: Need
    devices: tuple[Device, ...]
    tensor_parallel_size: int
    weights: int
    overhead: Overhead
    kv: int
    context: int
    claim: int

    @property
    def spread(self) -> int:
        """The number of devices across which one copy of the weights is split."""
        return self.tensor_parallel_size * self.need.stated.pipeline_parallel

    @property
    def kv_per_token(self) -> int:
        """Bytes of one token of a short request on each device."""
        return (self.need.kv_bytes(FLOOR, self.spread) - self.need.kv_bytes(0, self.spread)) // FLOOR

    @property
    def host_bytes(self) -> int:
        """Host memory in bytes that its sleep takes, measured or estimated."""
        learned = self.need.learned.get(self.devices[0].name)
        estimate = self.weights * len(self.devices)
        return learned.host if learned and learned.host else estimate

    def requests(self, tokens: int) -> int:
        """Return the number of requests of `tokens` that the KV cache holds at once."""
        one = self.need.kv_bytes(tokens, self.spread)
        return self.kv // one if one else self.need.requests

    def claims(self, *, is_loaded: bool = False) -> tuple[Claim, ...]:
        """Return its claims while awake. Before the load it holds nothing, then all except batch memory.

        On a CPU the pages of the KV cache are taken when they are first used, too.
        """
        later = self.overhead.transient + (self.kv if self.devices[0].kind == "cpu" else 0)
        held = self.claim - later if is_loaded else 0
        return tuple(Claim(device.index, self.claim, held) for device in self.devices)

    def claims_waking(self) -> tuple[Claim, ...]:
        """Return its claims while awake, with only its sleeping memory held so far."""
        return tuple(Claim(device.index, self.claim, self.overhead.asleep) for device in self.devices)

    def claims_asleep(self) -> tuple[Claim, ...]:
        """Return its claims while asleep."""
        return tuple(Claim(device.index, self.overhead.asleep, self.overhead.asleep) for device in self.devices)

    def with_overhead(self, overhead: Overhead) -> Placement:
        """Return the placement with a newly measured overhead."""
        return replace(self, overhead=overhead, claim=self.weights + overhead.total + self.kv)


@dataclass(frozen=True, slots=True)
class Unfit:
    """The reason why a model does not fit, and what would fit. Bytes are per device.

    `weights`, `overhead` and `kv` (for one request of `context` tokens) are the least with which it would load,
    `available` is the most that one device has for it. `fits_alone`: there would be room without the residents.
    `largest_context` is tokens, `gpus` a number of devices like these, `bits` of a quantization; each 0 where that
    does not help.
    """

    need: Need
    device: Device
    weights: int
    overhead: Overhead
    kv: int
    context: int
    available: int
    fits_alone: bool = False
    largest_context: int = 0
    gpus: int = 0
    bits: int = 0

    @property
    def needed(self) -> int:
        """The minimum memory for a load, in bytes."""
        return self.weights + self.overhead.total + self.kv

    @property
    def message(self) -> str:
        """The message: Ollama's words, the numbers, and what would fit."""
        kind = "GPU" if self.device.kind == "gpu" else "system"
        stated = self.need.stated
        purpose = "as stated" if stated.kv or stated.utilization else f"for one request of {self.context} tokens"
        text = (
            f"model requires more {kind} memory ({gib(self.needed)}) than is available ({gib(self.available)}): "
            f"weights {gib(self.weights)}, overhead {gib(self.overhead.total)}, KV cache {gib(self.kv)} {purpose}"
        )
        remedies = " or ".join(self._remedies())
        return f"{text}; it would fit {remedies}" if remedies else text

    def _remedies(self) -> Iterator[str]:
        if self.fits_alone:
            yield "without the models that are loaded now"
        if self.largest_context:
            yield f"with a context of {self.largest_context} tokens (OLLAMA_CONTEXT_LENGTH)"
        if self.gpus:
            yield f"on {self.gpus} GPUs of this kind"
        if self.bits:
            yield f"quantized to {self.bits} bits"


def flags(placement: Placement) -> list[str]:
    """Return the plan as vLLM's flags, without those that the user gave."""
    need, stated, device = placement.need, placement.need.stated, placement.devices[0]
    chosen: list[str] = []
    if not stated.kv and not stated.utilization:
        chosen += ["--kv-cache-memory-bytes", str(placement.kv)]
    if device.kind == "gpu" and not stated.utilization:
        # With a stated KV cache it is used for one check only: that this much is free when vLLM starts.
        share = (placement.weights + placement.kv) / device.total
        chosen += ["--gpu-memory-utilization", f"{min(max(math.floor(share * 1000) / 1000, 0.001), 1):.3f}"]
    if not stated.context:
        # vLLM finds the largest context that fits its KV cache itself, and more exactly than we can.
        chosen += ["--max-model-len", str(need.context if need.is_context_stated else -1)]
    if placement.tensor_parallel_size > 1 and not stated.tensor_parallel:
        chosen += ["--tensor-parallel-size", str(placement.tensor_parallel_size)]
    return chosen


def environment(placement: Placement) -> dict[str, str]:
    """Return the variables that select the devices; NVML numbers them like CUDA in PCI order."""
    if placement.devices[0].kind != "gpu" or placement.need.stated.elsewhere:
        return {}
    ids = ",".join(device.id or str(device.index) for device in placement.devices)
    return {"CUDA_VISIBLE_DEVICES": ids, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def gib(size: int) -> str:
    """Return bytes as Ollama writes them in errors: "3.4 GiB"."""
    return f"{size / GIB:.1f} GiB" if size >= GIB // 10 else f"{size / MIB:.1f} MiB"
