"""Where a model goes and how much memory it gets, before anything is loaded: pure functions over facts.

The rule, in the order in which it is applied:

1. What a device has for a newcomer is what is free now, less what residents were promised and have not taken yet, less
   a headroom (`room`).
2. The context is the wanted one, or else the largest that fits when nobody else is there; less than FLOOR tokens is no
   context, and a context that the user stated is never shortened.
3. One device if it holds the weights and COMFORTABLE tokens of context; otherwise the smallest tensor parallel size
   that does; otherwise the size that gives the largest context.
4. The KV cache is enough for `Need.requests` requests of min(context, COMFORTABLE) tokens, and for one of the whole
   context. Of what is left beside weights and overhead it takes half at the most, as long as that leaves others a
   quarter of the device, and otherwise what it can use; a 32nd of the device stays for those that sleep. On a CPU it
   takes an eighth of the free memory and 4 GiB at the most. One request of the whole context is the least in any case.
5. A model for which there is room only without the others is Unfit with `fits_alone`: the scheduler puts others to
   sleep and asks again. What does not fit alone is never loaded.

So small models share one GPU without configuration, and a large one takes what it can use. What the user's own vLLM
flags state wins (`Stated`), and counts in the claim.
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
"""What part of a device is still of use to another model."""

_LEFT_FOR_SLEEPERS = 32
"""What part of a device is left for what models hold of it while they sleep: without it none could wake again."""

_MOST_DEVICES = 64


def place(need: Need, devices: Sequence[Device], claims: Sequence[Claim] = ()) -> Placement | Unfit:
    """Apply the rule at the head of this file. `devices` must not be empty."""
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
    """The bytes that a newcomer may take on the device."""
    promised = sum(max(0, claim.size - claim.held) for claim in claims if claim.device == device.index)
    return max(0, device.free - promised - device.headroom)


def has_room(wanted: Iterable[Claim], devices: Sequence[Device], claims: Sequence[Claim] = ()) -> bool:
    """Whether a resident that sleeps can take what it was promised, beside the claims of the others.

    `wanted` are its claims while awake, with what it holds asleep as `held`.
    """
    rooms = {device.index: room(device, claims) for device in devices}
    return all(claim.size - claim.held <= rooms.get(claim.device, 0) for claim in wanted)


def released(devices: Sequence[Device], claims: Sequence[Claim]) -> tuple[Device, ...]:
    """The devices as they would be without the residents that have these claims."""
    return changed(devices, claims, ())


def changed(devices: Sequence[Device], before: Iterable[Claim], after: Iterable[Claim]) -> tuple[Device, ...]:
    """The devices as they would be once residents hold what `after` says in place of what they hold now."""
    free = {device.index: device.free for device in devices}
    for sign, claims in ((1, before), (-1, after)):
        for claim in claims:
            if claim.device in free:
                free[claim.device] += sign * claim.held
    return tuple(replace(device, free=min(device.total, max(0, free[device.index]))) for device in devices)


def overhead(need: Need, device: Device, size: int = 1) -> Overhead:
    """What a worker takes besides weights and KV cache: learned where such a load was measured, else estimated."""
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
    """Tokens and requests that vLLM computes at once by default (`EngineArgs.get_batch_defaults`)."""
    if device.kind == "cpu":
        return 2048, 128
    return (8192, 1024) if device.total >= 70 * GIB and "A100" not in device.name else (2048, 256)


_Rooms = Sequence[tuple[Device, int]]


def _rooms(devices: Sequence[Device], claims: Sequence[Claim]) -> _Rooms:
    return [(device, room(device, claims)) for device in devices]


def _sizes(need: Need, devices: Sequence[Device]) -> list[int]:
    """How many devices a copy of the weights may be spread over, smallest first."""
    stated = need.stated
    if stated.tensor_parallel or stated.pipeline_parallel > 1:
        return [max(stated.tensor_parallel, 1) * stated.pipeline_parallel]
    if devices[0].kind == "cpu":
        return [1]
    return [size for size in range(1, len(devices) + 1) if _divides(need, size)]


def _divides(need: Need, size: int) -> bool:
    """Whether vLLM takes this tensor parallel size: it divides the heads, and suits those of the KV cache."""
    if size == 1:
        return True
    kv_heads = need.kv.kv_heads or size
    return need.heads > 0 and need.heads % size == 0 and (kv_heads % size == 0 or size % kv_heads == 0)


def _settle(need: Need, rooms: _Rooms, sizes: Iterable[int]) -> Placement | None:
    """The first size with a comfortable context, or else the one with the largest."""
    found = [placement for size in sizes if (placement := _on(need, _group(need, rooms, size), size))]
    comfortable = min(need.context, COMFORTABLE)
    return next(
        (placement for placement in found if placement.context >= comfortable),
        max(found, key=lambda placement: placement.context, default=None),
    )


def _group(need: Need, rooms: _Rooms, size: int) -> _Rooms:
    """As many devices of one kind as are needed, those with the most room; none where there are too few."""
    count = size * need.stated.data_parallel
    groups = []
    for name in dict.fromkeys(device.name for device, _ in rooms):
        alike = sorted((entry for entry in rooms if entry[0].name == name), key=lambda entry: -entry[1])
        if len(alike) >= count:
            groups.append(alike[:count])
    if not groups and need.stated.elsewhere:
        return rooms
    return max(groups, key=lambda group: group[-1][1], default=[])


def _on(need: Need, group: _Rooms, size: int) -> Placement | None:
    """The placement on these devices; None where they have too little room."""
    if not group:
        return None
    device, budget = group[-1]  # the one with the least room decides
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
    """The KV cache on each device, in whole MiB."""
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
    """The largest context of which one request fits into so many bytes, the wanted one at the most.

    If it has to be shortened it leaves the reserve, too.
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
    """The bytes that stay free for what other models hold of the device while they sleep."""
    return device.total // _LEFT_FOR_SLEEPERS if need.has_sleepers and device.kind == "gpu" else 0


def _explain(need: Need, devices: Sequence[Device], claims: Sequence[Claim], context: int = 0) -> Unfit:
    """Say what is missing, on the device with the most room, and what would help."""
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
    """How many devices like the largest of these would do, if they were empty; 0 where no number does."""
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
    quantised = replace(need, weights=math.ceil(need.weights * bits / need.bits * 1.05), bits=bits)
    return _settle(quantised, _rooms(devices, ()), _sizes(need, devices)) is not None
