"""Where the tensors of a GGUF file go in a snapshot, and what happens to them on their way.

Most changes move whole rows: to take one expert of a stack, to undo the rotary order of llama.cpp, to separate or join
fused layers. A row is a whole number of quantized blocks, so these work without decoding. Changes of values do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from vllama.errors import StoreError
from vllama.store.gguf.reading import Array, GgufTensor

RowOrder = slice | npt.NDArray[np.int64]
"""Which rows of a tensor are taken, in which order."""


@dataclass(frozen=True)
class Piece:
    """Rows of a tensor of the file: all of them in their order, unless `rows` says otherwise.

    A transposed piece is the transpose of these rows, and its rows are their columns.
    """

    source: GgufTensor
    rows: RowOrder | None = None
    transposed: bool = False

    @cached_property
    def row_count(self) -> int:
        """The number of rows of the piece."""
        return self._columns if self.transposed else len(self._taken)

    @property
    def row_length(self) -> int:
        """The number of values in a row of the piece."""
        return len(self._taken) if self.transposed else self._columns

    @property
    def _columns(self) -> int:
        shape = self.source.shape
        return shape[-1] if len(shape) > 1 or self.source.is_quantized else 1

    @property
    def _taken(self) -> range | npt.NDArray[np.int64]:
        rows = slice(None) if self.rows is None else self.rows
        return range(*rows.indices(self.source.blocks.shape[0])) if isinstance(rows, slice) else rows

    def order(self, start: int = 0, stop: int | None = None) -> RowOrder:
        """Return which rows of the source are rows `start` to `stop` of the piece, before it is transposed."""
        taken = self._taken[start:stop]
        return slice(taken.start, taken.stop, taken.step) if isinstance(taken, range) else taken


@dataclass(frozen=True, kw_only=True)
class PlacedTensor:
    """A tensor of the snapshot.

    `pieces` follow each other, or alternate row by row if `alternates`; their rows have the same length. `shape` is the
    shape in the snapshot. Values change in the order of the fields: first `change`, then `offset` is added, then
    `empty_rows` rows of zeros precede the others and `padding_rows` follow them, and at last `transposed` swaps the
    last two dimensions, so `shape` is the shape after that.
    """

    name: str
    pieces: tuple[Piece, ...]
    shape: tuple[int, ...]
    alternates: bool = False
    change: Callable[[Array], Array] | None = None
    offset: float = 0.0
    empty_rows: int = 0
    padding_rows: int = 0
    transposed: bool = False

    @property
    def source(self) -> GgufTensor:
        """The tensor of the file, or the first of several."""
        return self.pieces[0].source

    @property
    def moves_rows_only(self) -> bool:
        """Whether the values stay as they are, so that quantized blocks can be kept."""
        transposed = self.transposed or any(piece.transposed for piece in self.pieces)
        return self.change is None and not self.offset and not self.empty_rows and not transposed

    @property
    def row_length(self) -> int:
        """The number of values in a row, before the tensor is transposed."""
        return self.pieces[0].row_length

    @property
    def row_count(self) -> int:
        """The number of rows."""
        return self.empty_rows + sum(piece.row_count for piece in self.pieces) + self.padding_rows

    def padded(self, rows: int) -> PlacedTensor:
        """Return this matrix with so many rows, those beyond its own being zero."""
        return replace(self, shape=(rows, *self.shape[1:]), padding_rows=rows - self.shape[0])

    def blocks(self, at_most: int) -> Iterator[tuple[GgufTensor, Array]]:
        """Yield all rows in order as they are stored, in parts of about at most so many bytes, with their tensors.

        Pieces that alternate must have the same type.
        """
        row = max(self.source.blocks.shape[1] * self.source.blocks.itemsize, 1)
        for parts in self._parts(max(at_most // row, 1)):
            arrays = [source.blocks[rows] for source, rows in parts]
            yield parts[0][0], _alternating(arrays)
        if self.padding_rows:  # the scale of a block of zero bytes is zero, in all types
            yield self.source, np.zeros((self.padding_rows, self.source.blocks.shape[1]), self.source.blocks.dtype)

    def values(self, at_most: int) -> Iterator[Array]:
        """Yield all values in order as 32-bit floats, in parts of about at most so many values.

        A transposed tensor comes matrix by matrix.
        """
        if not self.transposed:
            yield from self._values(at_most)
            return
        inputs, outputs = self.shape[-2:]
        waiting: list[Array] = []
        rows = 0
        for part in self._values(min(at_most, inputs * outputs)):
            for piece in np.split(part, range(outputs - rows, len(part), outputs)):
                waiting.append(piece)
                rows += len(piece)
                if rows == outputs:
                    yield np.ascontiguousarray(np.concatenate(waiting).T)
                    waiting, rows = [], 0

    def _values(self, at_most: int) -> Iterator[Array]:
        if self.empty_rows:
            yield np.zeros((self.empty_rows, self.row_length), dtype=np.float32)
        for values in self._decoded(max(at_most // max(self.row_length, 1), 1)):
            changed = values if self.change is None else self.change(values)
            yield changed + np.float32(self.offset) if self.offset else changed
        if self.padding_rows:
            yield np.zeros((self.padding_rows, self.row_length), dtype=np.float32)

    def _decoded(self, step: int) -> Iterator[Array]:
        if any(piece.transposed for piece in self.pieces):
            for piece in self.pieces:
                values = piece.source.values(piece.order())
                yield values.T if piece.transposed else values
            return
        for parts in self._parts(step):
            yield _alternating([source.values(rows) for source, rows in parts])

    def _parts(self, step: int) -> Iterator[list[tuple[GgufTensor, RowOrder]]]:
        """Yield which rows come next: of one piece, or of all pieces that alternate."""
        for pieces in [self.pieces] if self.alternates else [(piece,) for piece in self.pieces]:
            count = pieces[0].row_count
            for start in range(0, count, step):
                yield [(piece.source, piece.order(start, min(start + step, count))) for piece in pieces]


def _alternating(arrays: list[Array]) -> Array:
    return arrays[0] if len(arrays) == 1 else np.stack(arrays, axis=1).reshape(-1, arrays[0].shape[1])


def place(
    name: str,
    *pieces: Piece | GgufTensor,
    shape: tuple[int, ...] | None = None,
    alternates: bool = False,
    change: Callable[[Array], Array] | None = None,
    offset: float = 0.0,
    empty_rows: int = 0,
    transposed: bool = False,
) -> PlacedTensor:
    """Return a tensor of the snapshot that is made of these pieces or whole tensors.

    The default shape is the shape of the source, as a matrix or vector if its rows are not exactly those of the source.
    Raises StoreError if the rows do not have the shape.
    """
    parts = tuple(piece if isinstance(piece, Piece) else Piece(piece) for piece in pieces)
    first = parts[0].source
    rows = empty_rows + sum(part.row_count for part in parts)
    if shape is None:
        is_whole = len(parts) == 1 and rows == first.blocks.shape[0]
        shape = first.shape if is_whole else (rows, *first.shape[-1:])[: min(len(first.shape), 2)]
        shape = (*shape[:-2], shape[-1], shape[-2]) if transposed else shape
    placed = PlacedTensor(
        name=name,
        pieces=parts,
        shape=shape,
        alternates=alternates,
        change=change,
        offset=offset,
        empty_rows=empty_rows,
        transposed=transposed,
    )
    lengths = {part.row_length for part in parts}
    if math.prod(shape) != rows * placed.row_length or len(lengths) != 1:
        raise StoreError(f"{first.name} has shape {first.shape}, of which {name} with shape {shape} cannot be made")
    return placed


def rotary_rows(heads: int, rows: int, rotated: int | None = None) -> npt.NDArray[np.int64]:
    """Return the order of rows that undoes llama.cpp's rotary order of a q or k layer with so many rows.

    llama.cpp rotates neighbouring values of a head, Hugging Face's code a value of the first half with one of the
    second, so the converter interleaves the halves (conversion/llama.py, `LlamaModel.permute`). Only the first
    `rotated` values of each head take part.
    """
    head = rows // heads
    rotated = head if rotated is None else rotated
    order = np.arange(rows, dtype=np.int64).reshape(heads, head)
    pairs = order[:, :rotated].reshape(heads, rotated // 2, 2)
    order[:, :rotated] = pairs.swapaxes(1, 2).reshape(heads, rotated)
    return order.reshape(-1)
