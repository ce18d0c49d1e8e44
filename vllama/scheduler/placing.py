"""Placement: devices and memory of a model before its load, as pure functions over facts.

The rules, in order of application:

1. A device offers a newcomer its free memory, less the claims of residents that they have not taken yet, less a
   headroom (`room`).
2. The context is the wanted one, or else the largest that fits on empty devices; it has at least FLOOR tokens, and a
   context that the user stated is never shortened.
3. One device if it holds the weights and COMFORTABLE tokens of context; otherwise the smallest tensor parallel size
   that does; otherwise the size that gives the largest context.
4. The KV cache is enough for `Need.requests` requests of min(context, COMFORTABLE) tokens, and for one of the whole
   context. It takes at most half of the memory that weights and overhead leave, if that leaves others a quarter of the
   device, and otherwise all it can use; a 32nd of the device is reserved for sleeping models. On a CPU it takes at most
   an eighth of the free memory and 4 GiB. The minimum is always one request of the whole context.
5. A model that fits only without the others is Unfit with `fits_alone`: the scheduler puts others to sleep and plans
   again. A model that does not fit alone is never loaded.

Therefore small models share one GPU without configuration, and a large one takes all it can use. The user's own vLLM
flags take precedence (`Stated`), and count in the claim.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from vllama.scheduler.memory import (
    COMFORTABLE,
    GIB,
    MIB,
    Claim,
    Device,
    Need,
    Overhead,
    Placement,
    Unfit,
)

_SMALLEST_KV = 64 * MIB
_CPU_KV_SHARE, _CPU_KV_MOST = 8, 4 * GIB
_LEFT_FOR_OTHERS = 4
"""Fraction (1/n) of a device that is still useful to another model."""

_LEFT_FOR_SLEEPERS = 32
"""Fraction (1/n) of a device reserved for the memory of sleeping models: without it none could wake."""

_MOST_DEVICES = 64


def place(need: Need, devices: Sequence[Device], claims: Sequence[Claim] = ()) -> Placement | Unfit:
    """Place a model by the rules at the top of this file. `devices` must not be empty."""
    alone = _settle(need, _rooms(released(devices, claims), ()), _sizes(need, devices))
    if alone is None:
        return _explain(need, devices, claims)
    if not claims:
        return alone
    wanted = replace(need, context=alone.context, is_context_stated=True)
    beside = _settle(wanted, _rooms(devices, claims), [alone.spread])
    if beside is None:
        return replace(_explain(need, devices, claims, alone.context), fits_alone=True)
    return replace(beside, need=need)


def room(device: Device, claims: Iterable[Claim] = ()) -> int:
    """Return the bytes that a new model may take on the device."""
    promised = sum(max(0, claim.size - claim.held) for claim in claims if claim.device == device.index)
    return max(0, device.free - promised - device.headroom)


def has_room(wanted: Iterable[Claim], devices: Sequence[Device], claims: Sequence[Claim] = ()) -> bool:
    """Return whether a sleeping resident can wake up beside the claims of the others.

    `wanted` are its claims while awake, with its memory while asleep as `held`.
    """
    rooms = {device.index: room(device, claims) for device in devices}
    return all(claim.size - claim.held <= rooms.get(claim.device, 0) for claim in wanted)


def released(devices: Sequence[Device], claims: Sequence[Claim]) -> tuple[Device, ...]:
    """Return the devices as they would be without the residents that have these claims."""
    return changed(devices, claims, ())


def changed(devices: Sequence[Device], before: Iterable[Claim], after: Iterable[Claim]) -> tuple[Device, ...]:
    """Return the devices as they would be if residents held `after` instead of `before`."""
    free = {device.index: device.free for device in devices}
    for sign, claims in ((1, before), (-1, after)):
        for claim in claims:
            if claim.device in free:
                free[claim.device] += sign * claim.held
    return tuple(replace(device, free=min(device.total, max(0, free[device.index]))) for device in devices)


def overhead(need: Need, device: Device, size: int = 1) -> Overhead:
    """Return a worker's memory besides weights and KV cache: measured if known, else estimated."""
    layout = need.layout
    batched, sequences = _batch(device)
    transient = batched * (4 * layout.hidden + 3 * layout.intermediate // size) * 2
    sampler = 0 if need.pools else 4 * sequences * layout.vocabulary * 4  # four copies of its logits, in float32
    if device.kind == "cpu":
        base, asleep = 3 * GIB // 2, 0
    else:
        context = GIB + (GIB // 2 if size > 1 else 0)  # CUDA, libraries and workspaces; NCCL
        graphs = 0 if need.eager or need.pools else layout.layers * 24 * MIB
        base = asleep = context + graphs
    if learned := need.learned.get(device.name):
        return Overhead(learned.overhead, transient, learned.residue or min(asleep, learned.overhead), is_learned=True)
    return Overhead(base + sampler, transient, asleep)


def _batch(device: Device) -> tuple[int, int]:
    """Return the tokens and requests that vLLM computes at once by default (`EngineArgs.get_batch_defaults`)."""
    if device.kind == "cpu":
        return 2048, 128
    return (8192, 1024) if device.total >= 70 * GIB and "A100" not in device.name else (2048, 256)


_Rooms = Sequence[tuple[Device, int]]


def _rooms(devices: Sequence[Device], claims: Sequence[Claim]) -> _Rooms:
    return [(device, room(device, claims)) for device in devices]


def _sizes(need: Need, devices: Sequence[Device]) -> list[int]:
    """Yield the numbers of devices that one copy of the weights may be split across, smallest first."""
    stated = need.stated
    if stated.tensor_parallel or stated.pipeline_parallel > 1:
        return [max(stated.tensor_parallel, 1) * stated.pipeline_parallel]
    if devices[0].kind == "cpu":
        return [1]
    return [size for size in range(1, len(devices) + 1) if _divides(need, size)]


def _divides(need: Need, size: int) -> bool:
    """Return whether vLLM supports this tensor parallel size: it divides the heads and fits the KV heads."""
    if size == 1:
        return True
    kv_heads = need.kv.kv_heads or size
    return need.heads > 0 and need.heads % size == 0 and (kv_heads % size == 0 or size % kv_heads == 0)


def _settle(need: Need, rooms: _Rooms, sizes: Iterable[int]) -> Placement | None:
    """Return the first size with a comfortable context, else the one with the largest context."""
    found = [placement for size in sizes if (placement := _on(need, _group(need, rooms, size), size))]
    comfortable = min(need.context, COMFORTABLE)
    return next(
        (placement for placement in found if placement.context >= comfortable),
        max(found, key=lambda placement: placement.context, default=None),
    )


def _group(need: Need, rooms: _Rooms, size: int) -> _Rooms:
    """Return enough devices of one kind, those with the most free memory; none if there are too few.

    On CPUs all ranks share the machine's memory: each has its part of it.
    """
    count = size * need.stated.data_parallel
    if rooms[0][0].kind == "cpu":
        return [(device, budget // count) for device, budget in rooms[:1]] * count
    groups = []
    for name in dict.fromkeys(device.name for device, _ in rooms):
        alike = sorted((entry for entry in rooms if entry[0].name == name), key=lambda entry: -entry[1])
        if len(alike) >= count:
            groups.append(alike[:count])
    if not groups and need.stated.elsewhere:
        return rooms
    return max(groups, key=lambda group: group[-1][1], default=[])


def _on(need: Need, group: _Rooms, size: int) -> Placement | None:
    """Return the placement on these devices; None if they have too little memory."""
    if not group:
        return None
    device, budget = group[-1]  # the device with the least free memory decides
    extra = overhead(need, device, size)
    weights = math.ceil(need.weights / size)
    left = budget - weights - extra.total
    if need.stated.utilization and not need.stated.kv:
        promised = int(need.stated.utilization * device.total)
        left = promised - weights - extra.total if promised <= budget + device.headroom else -1
    most = need.stated.kv or left
    context = _context(need, most, _for_sleepers(need, device), size)
    if left < most or most <= 0 or context < need.floor:
        return None
    kv = most if need.stated.kv or need.stated.utilization else _kv(need, device, context, most, size)
    return Placement(
        need=need,
        devices=tuple(sorted((device for device, _ in group), key=lambda device: device.index)),
        tensor_parallel_size=size // need.stated.pipeline_parallel,
        weights=weights,
        overhead=extra,
        kv=kv,
        context=context,
        claim=weights + extra.total + kv,
    )


def _kv(need: Need, device: Device, context: int, most: int, size: int) -> int:
    """Return the KV cache on each device in bytes, rounded to MiB."""
    preferred = need.requests * need.kv_bytes(min(context, COMFORTABLE), size)
    if device.kind == "cpu":
        preferred = min(preferred, device.free // _CPU_KV_SHARE, _CPU_KV_MOST)
    else:
        usable = max(most - _for_sleepers(need, device), 0)
        leaves_enough = need.shares and usable // 2 >= device.total // _LEFT_FOR_OTHERS
        preferred = min(preferred, usable // 2 if leaves_enough else usable)
    least = need.kv_bytes(context, size)
    return min(max(math.ceil(max(preferred, least, _SMALLEST_KV) / MIB) * MIB, MIB), most)


def _context(need: Need, kv: int, reserve: int, size: int) -> int:
    """Return the largest context of which one request fits into `kv` bytes, at most the wanted one.

    If it must be shortened, it leaves the reserve free too.
    """
    if need.kv_bytes(need.context, size) <= kv:
        return need.context
    if not need.is_context_stated and need.kv_bytes(need.floor, size) <= kv - reserve:
        kv -= reserve
    low, high = 0, need.context // 256 + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if need.kv_bytes(middle * 256, size) <= kv else (low, middle)
    return low * 256


def _for_sleepers(need: Need, device: Device) -> int:
    """Return the bytes reserved on the device for sleeping models."""
    return device.total // _LEFT_FOR_SLEEPERS if need.has_sleepers and device.kind == "gpu" else 0


def _explain(need: Need, devices: Sequence[Device], claims: Sequence[Claim], context: int = 0) -> Unfit:
    """Return the shortage on the device with the most free memory, and remedies."""
    empty, context = released(devices, claims), context or need.floor
    device = max(devices, key=lambda device: room(device, claims))
    shared = max(_sizes(need, devices), default=1)
    extra = overhead(need, device, shared)
    shortened = replace(need, is_context_stated=False)
    fits = _settle(shortened, _rooms(empty, ()), _sizes(need, empty)) if need.is_context_stated else None
    weights, stated = math.ceil(need.weights / shared), need.stated
    claimed = max(0, int(stated.utilization * device.total) - weights - extra.total)
    return Unfit(
        need=need,
        device=device,
        weights=weights,
        overhead=extra,
        kv=max(stated.kv or claimed, need.kv_bytes(context, shared)),
        context=context,
        available=room(device, claims),
        largest_context=fits.context if fits else 0,
        gpus=_gpus(need, empty),
        bits=next((bits for bits in (8, 4) if bits < need.bits and _fits_in(need, bits, empty)), 0),
    )


def _gpus(need: Need, devices: Sequence[Device]) -> int:
    """Return how many empty devices like the largest of these would suffice; 0 if no number does."""
    largest = max(devices, key=lambda device: device.total)
    if largest.kind == "cpu" or need.stated.tensor_parallel or need.stated.pipeline_parallel > 1:
        return 0
    present = sum(device.name == largest.name for device in devices)
    for size in range(present + 1, _MOST_DEVICES + 1):
        alike = [replace(largest, index=index, free=largest.total) for index in range(size)]
        if _divides(need, size) and _settle(need, _rooms(alike, ()), [size]):
            return size
    return 0


def _fits_in(need: Need, bits: int, devices: Sequence[Device]) -> bool:
    quantized = replace(need, weights=math.ceil(need.weights * bits / need.bits * 1.05), bits=bits)
    return _settle(quantized, _rooms(devices, ()), _sizes(need, devices)) is not None
