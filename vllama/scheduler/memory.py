"""What a model needs, what there is, and the plan that comes of it: the records, and the plan as vLLM's flags.

The rule by which the plan is made is in `vllama.scheduler.placing`.
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
"""Tokens: a context below it is refused, unless the model has no more."""

COMFORTABLE = 8192
"""Tokens of a request that the KV cache is laid out for, and the context for which more devices are taken."""

REQUESTS = 64
"""How many such requests at once, where OLLAMA_NUM_PARALLEL does not say."""


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
        """Bytes that are never planned for: the estimates are estimates. RAM can be swapped, a GPU's memory cannot."""
        return max(512 * MIB, self.total // 50) if self.kind == "gpu" else 0


@dataclass(frozen=True, slots=True)
class Claim:
    """What a resident was promised on one device, and the part that it is known to hold already; bytes."""

    device: int
    size: int
    held: int = 0


@dataclass(frozen=True, slots=True)
class Learned:
    """Measured bytes: on each device what a load took beyond weights and KV cache, and what stays while asleep.

    `host` is what its sleep took of the host's memory. `residue` and `host` are 0 where it never slept.
    """

    overhead: int
    residue: int = 0
    host: int = 0


@dataclass(frozen=True, slots=True)
class Overhead:
    """What is neither weights nor KV cache, in bytes on each device.

    `fixed` is held while it is awake: the CUDA context, libraries, graphs, the sampler's buffers; `asleep` is what of
    it stays in sleep. `transient` is what the largest batch needs while it is computed.
    """

    fixed: int
    transient: int
    asleep: int = 0
    is_learned: bool = False

    @property
    def total(self) -> int:
        """Both."""
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
    """What the user's own vLLM flags decide; 0 where they do not. `kv` is bytes on each device.

    `elsewhere`: the user spreads the model over machines, or has Ray do so; its devices are not ours to choose.
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
    """What a model needs, read from its files and flags (vllama.scheduler.need).

    `weights` are bytes on all devices together, in `bits` bits each on the whole, with the room for LoRA adapters, if
    any. `pinning` is by how much larger their copy in the host's memory is estimated to be, while they sleep there.
    `kv_item` is the bytes of one value in the KV cache. `context` is tokens, `is_context_stated` where the user wants
    just that. `requests` are the requests that the KV cache should hold; `shares` says that there may be other models
    awake on the device, `has_sleepers` that some may sleep there. `learned` is by the device's name. `notes` say what
    is a guess.
    """

    name: str
    weights: int
    kv: KvShape
    context: int
    bits: int = 16
    pinning: float = 1.0
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
        """What one request of so many tokens holds in the KV cache of each of `size` devices."""
        values = self.kv.elements(math.ceil(tokens / 256) * 256, devices=size // self.stated.pipeline_parallel or 1)
        return math.ceil(values * self.kv_item / self.stated.pipeline_parallel)

    @property
    def floor(self) -> int:
        """The least context that is worth a load, in tokens."""
        return self.context if self.is_context_stated else min(FLOOR, self.context)


@dataclass(frozen=True, slots=True)
class Placement:
    """The plan of one load; bytes are those on each of the `devices`. `context` is tokens, as far as can be foretold.

    `claim` is all that it may take: weights, overhead and KV cache.
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
        """Over how many devices one copy of the weights is spread."""
        return self.tensor_parallel_size * self.need.stated.pipeline_parallel

    @property
    def kv_per_token(self) -> int:
        """Bytes that a token of a short request holds on each device."""
        return (self.need.kv_bytes(FLOOR, self.spread) - self.need.kv_bytes(0, self.spread)) // FLOOR

    @property
    def host_bytes(self) -> int:
        """What its sleep takes of the host's memory: as measured at a first one, else the estimate."""
        learned = self.need.learned.get(self.devices[0].name)
        estimate = int(self.weights * len(self.devices) * self.need.pinning)
        return learned.host if learned and learned.host else estimate

    def requests(self, tokens: int) -> int:
        """How many requests of so many tokens the KV cache holds at once."""
        one = self.need.kv_bytes(tokens, self.spread)
        return self.kv // one if one else self.need.requests

    def claims(self, *, is_loaded: bool = False) -> tuple[Claim, ...]:
        """What it takes while awake. Before it is loaded it holds nothing, and then all but what batches need.

        On a CPU the pages of the KV cache are taken when they are first used, too.
        """
        later = self.overhead.transient + (self.kv if self.devices[0].kind == "cpu" else 0)
        held = self.claim - later if is_loaded else 0
        return tuple(Claim(device.index, self.claim, held) for device in self.devices)

    def claims_waking(self) -> tuple[Claim, ...]:
        """What it takes while awake, as long as it holds no more than in its sleep."""
        return tuple(Claim(device.index, self.claim, self.overhead.asleep) for device in self.devices)

    def claims_asleep(self) -> tuple[Claim, ...]:
        """What stays on the devices while it sleeps."""
        return tuple(Claim(device.index, self.overhead.asleep, self.overhead.asleep) for device in self.devices)

    def with_overhead(self, overhead: Overhead) -> Placement:
        """The same placement, of whose overhead more is known now."""
        return replace(self, overhead=overhead, claim=self.weights + overhead.total + self.kv)


@dataclass(frozen=True, slots=True)
class Unfit:
    """Why there is no place, and what there would be a place for. Bytes are those on one device.

    `weights`, `overhead` and `kv` (for one request of `context` tokens) are the least with which it would load,
    `available` is the most that one device has for it. `fits_alone`: there would be room without the residents.
    `largest_context` is tokens, `gpus` a number of devices like these, `bits` of a quantisation; each 0 where that
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
        """The least that it would take, in bytes."""
        return self.weights + self.overhead.total + self.kv

    @property
    def message(self) -> str:
        """Ollama's words for the case, then the numbers, then what would fit."""
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
            yield f"quantised to {self.bits} bits"


def flags(placement: Placement) -> list[str]:
    """The plan as vLLM's flags: all but those that the user gave."""
    need, stated, device = placement.need, placement.need.stated, placement.devices[0]
    chosen: list[str] = []
    if not stated.kv and not stated.utilization:
        chosen += ["--kv-cache-memory-bytes", str(placement.kv)]
    if device.kind == "gpu" and not stated.utilization:
        # With a stated KV cache it serves for one check alone: so much must be free when vLLM starts.
        share = (placement.weights + placement.kv) / device.total
        chosen += ["--gpu-memory-utilization", f"{min(max(math.floor(share * 1000) / 1000, 0.001), 1):.3f}"]
    if not stated.context:
        # vLLM finds the largest context that fits its KV cache itself, and more exactly than we can.
        chosen += ["--max-model-len", str(need.context if need.is_context_stated else -1)]
    if placement.tensor_parallel_size > 1 and not stated.tensor_parallel:
        chosen += ["--tensor-parallel-size", str(placement.tensor_parallel_size)]
    return chosen


def environment(placement: Placement) -> dict[str, str]:
    """The variables that give the worker its devices; NVML counts them as CUDA does in PCI order alone."""
    if placement.devices[0].kind != "gpu" or placement.need.stated.elsewhere:
        return {}
    ids = ",".join(device.id or str(device.index) for device in placement.devices)
    return {"CUDA_VISIBLE_DEVICES": ids, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def gib(size: int) -> str:
    """Bytes as Ollama writes them in its errors: "3.4 GiB"."""
    return f"{size / GIB:.1f} GiB" if size >= GIB // 10 else f"{size / MIB:.1f} MiB"
