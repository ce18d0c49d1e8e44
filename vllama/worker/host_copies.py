"""Copies of GPU allocations in pinned host memory, and sums that tell whether an allocation has changed since.

Weights do not change while a model serves, so that the copy of one sleep serves the next one. Memory that does change,
such as the slots of adapters, is found by its sums and copied again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

_PIECE_BYTES = 256 * 1024**2
"""Bytes that are pinned at a time: a power of two, because torch rounds up to one."""

_ROW_WORDS = 2048
GRANULARITY = 8 * _ROW_WORDS
"""Sizes of allocations are multiples of this, in bytes; CUDA's own granularity is 2 MiB."""


@dataclass(slots=True)
class _Copy:
    pieces: list[Tensor]
    sums: Tensor
    """On the CPU, int64, shape [2]."""


class HostCopies:
    """Host copies of allocations by their address; an allocation is a uint8 tensor over its whole content.

    `pinned` memory is needed for fast copies, and can only be had where there is a GPU.
    """

    def __init__(self, *, pinned: bool) -> None:
        self._pinned = pinned
        self._copies: dict[int, _Copy] = {}
        self._free: list[Tensor] = []  # what is left of the pinned pieces

    def save(self, allocations: Mapping[int, Tensor]) -> int:
        """Copy out what is not yet held or has changed, and return how many bytes that were.

        Waits until all is copied. The copies of other allocations stay.
        """
        current = _sums_of(allocations)
        stale = {
            address: content
            for address, content in allocations.items()
            if address not in self._copies or not torch.equal(self._copies[address].sums, current[address])
        }
        for address, content in stale.items():
            pieces = self._copies[address].pieces if address in self._copies else self._take(content.numel())
            for piece, part in zip(pieces, content.split([piece.numel() for piece in pieces]), strict=True):
                piece.copy_(part, non_blocking=True)
            self._copies[address] = _Copy(pieces, current[address])
        _wait(stale)
        return sum(content.numel() for content in stale.values())

    def restore(self, allocations: Mapping[int, Tensor]) -> list[int]:
        """Copy back what is held of these allocations; return the addresses whose content is not what was saved."""
        held = {address: content for address, content in allocations.items() if address in self._copies}
        for address, content in held.items():
            pieces = self._copies[address].pieces
            for piece, part in zip(pieces, content.split([piece.numel() for piece in pieces]), strict=True):
                part.copy_(piece, non_blocking=True)
        current = _sums_of(held)
        return [
            address
            for address, copy in self._copies.items()
            if address in held and not torch.equal(copy.sums, current[address])
        ]

    def forget(self) -> None:
        """Give the host memory back."""
        self._copies.clear()
        self._free.clear()

    def _take(self, size: int) -> list[Tensor]:
        """Return tensors of `size` bytes in all."""
        taken: list[Tensor] = []
        while size:
            if not self._free:
                self._free.append(torch.empty(_PIECE_BYTES, dtype=torch.uint8, pin_memory=self._pinned))
            piece = self._free.pop()
            taken.append(piece[:size])
            if piece.numel() > size:
                self._free.append(piece[size:])
            size -= taken[-1].numel()
        return taken


def _sums_of(allocations: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """Return the sums of each allocation, on the CPU; waits for the GPU once."""
    if not allocations:
        return {}
    found = torch.stack([sums(content) for content in allocations.values()]).cpu()
    return dict(zip(allocations, found, strict=True))


def sums(content: Tensor) -> Tensor:
    """Return two sums over all bytes, weighted by where they are; int64, shape [2], on the content's device.

    Every change of a single bit changes them, and so does nearly every other change; they are no protection against
    deliberate changes. `content` is uint8, its size a multiple of `GRANULARITY`. Needs next to no memory.
    """
    rows = content.view(torch.int64).view(-1, _ROW_WORDS)
    return torch.stack([_weighted(rows.sum(0)), _weighted(rows.sum(1))])


def _weighted(words: Tensor) -> Tensor:
    """Return the sum of words times odd numbers, modulo 2**64."""
    return (words * torch.arange(1, 2 * words.numel(), 2, device=words.device)).sum()


def _wait(allocations: Mapping[int, Tensor]) -> None:
    for device in {content.device for content in allocations.values()}:
        if device.type != "cpu":
            torch.accelerator.current_stream(device).synchronize()
