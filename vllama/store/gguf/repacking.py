"""Repacking of quantized blocks for vLLM's kernels: integers of 4 or 8 bits, a scale and maybe a minimum per group.

Without a minimum, a weight is `scale · k`: the symmetric "pack-quantized" format of compressed-tensors, which stores
the signed integer k plus 8 (4 bits) or 128 (8 bits). With a minimum, it is `scale · (k + centre) + minimum`: k is
centred to keep small what a kernel rounds. Most types of llama.cpp have exactly one of these forms in other bytes, so
their values stay what they are. The layouts of the blocks are those of llama.cpp's ggml-common.h.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

from vllama.errors import StoreError
from vllama.store.gguf.reading import Array

_SUPER_BLOCK = 256
_ZEROS = {4: 8, 8: 128}
CENTRES = {4: 8, 8: 16}
"""Numbers subtracted from the codes of types with a minimum, which have 4 bits, or 5 stored in 8."""


@dataclass(frozen=True, slots=True)
class Form:
    """How the weights of a GGML type are served.

    `group` is the number of neighbouring inputs that share a scale and a minimum, `error` the largest difference to
    llama.cpp's value in steps (the scale of the group), rounding of scales and minimums to 16 bits aside.
    `rounds_scales` says whether they are rounded: products of two numbers in the file.
    """

    bits: int
    has_minimum: bool = False
    group: int = 32
    error: float = 0.0
    rounds_scales: bool = False

    @property
    def bits_per_weight(self) -> float:
        """Size with the scale and the minimum, 16 bits each."""
        return self.bits + 16 * (1 + self.has_minimum) / self.group


_T = GGMLQuantizationType

FORMS: Mapping[GGMLQuantizationType, Form] = {
    _T.Q4_0: Form(4),
    _T.Q4_1: Form(4, has_minimum=True),
    _T.Q4_K: Form(4, has_minimum=True, rounds_scales=True),
    _T.Q5_0: Form(8),
    _T.Q5_1: Form(8, has_minimum=True),
    _T.Q5_K: Form(8, has_minimum=True, rounds_scales=True),
    _T.Q6_K: Form(8, group=64, error=1.0, rounds_scales=True),
    _T.Q8_0: Form(8),
    _T.IQ4_NL: Form(8),
    _T.IQ4_XS: Form(8, rounds_scales=True),
    _T.MXFP4: Form(8),
    **{
        kind: Form(8, error=0.5, rounds_scales=True)
        for kind in (
            _T.Q2_K, _T.Q3_K, _T.IQ1_S, _T.IQ1_M, _T.IQ2_XXS, _T.IQ2_XS, _T.IQ2_S, _T.IQ3_XXS, _T.IQ3_S, _T.TQ1_0,
            _T.TQ2_0,
        )
    },
}  # fmt: skip
"""The form of each type that is repacked. Types with several scales in a group, or below 4 bits, get new values."""


@dataclass(frozen=True)
class Packed:
    """Repacked rows of a matrix.

    `words` are 32-bit integers with 8 or 4 weights each, the first in the lowest bits; `scales` and `minimums` are
    16-bit floats, one for each group of a row.
    """

    pack: Callable[[], Array]
    scales: Array
    minimums: Array | None

    @cached_property
    def words(self) -> Array:
        """The packed integers, computed when they are first used."""
        return self.pack()


def repack(blocks: Array, kind: GGMLQuantizationType, name: str = "a tensor") -> Packed:
    """Repack rows of blocks, a matrix of bytes. Raises StoreError, naming `name`, if a scale is no finite number."""
    size, rows = GGML_QUANT_SIZES[kind][1], blocks.shape[0]
    with np.errstate(over="ignore", invalid="ignore"):
        codes, scales, minimums = _READERS[kind](np.ascontiguousarray(blocks).reshape(-1, size))
        return Packed(
            lambda: _words(codes(), FORMS[kind].bits, rows),
            _halves(scales, name).reshape(rows, -1),
            None if minimums is None else _halves(minimums, name).reshape(rows, -1),
        )


def unpack(packed: Packed, form: Form) -> Array:
    """Return the weights as 32-bit floats, as vLLM's kernels compute them."""
    rows = packed.words.shape[0]
    data = packed.words.view(np.uint8)
    if form.bits == 4:
        data = np.stack([data & 15, data >> 4], axis=-1)
    codes = data.reshape(rows, -1, form.group).astype(np.float32) - _ZEROS[form.bits]
    values = codes * packed.scales.astype(np.float32)[..., None]
    if packed.minimums is not None:
        scales, minimums = packed.scales.astype(np.float32), packed.minimums.astype(np.float32)
        values += (CENTRES[form.bits] * scales + minimums)[..., None]
    return values.reshape(rows, -1)


def _words(codes: Array, bits: int, rows: int) -> Array:
    """Pack unsigned integers in the order of the inputs."""
    flat = codes.reshape(rows, -1)
    data = flat[:, 0::2] | flat[:, 1::2] << 4 if bits == 4 else flat
    return np.ascontiguousarray(data).view("<i4")


def _halves(values: Array, name: str) -> Array:
    halves = values.astype(np.float16)
    if not np.isfinite(halves).all():
        raise StoreError(f"{name} has a scale that is infinite or not a number; the file is damaged")
    return halves


_Read = tuple[Callable[[], Array], Array, Array | None]
"""A function for the stored integers, [blocks, values]; the scales, and minimums or None, [blocks, groups]."""

_Reader = Callable[[Array], _Read]


def _half(blocks: Array, start: int) -> Array:
    return np.ascontiguousarray(blocks[:, start : start + 2]).view("<f2").astype(np.float32)


def _nibbles(data: Array, half: int) -> Array:
    """Unpack bytes whose low bits hold the first `half` values, and their high bits the next, for each `half` bytes."""
    pairs = data.reshape(data.shape[0], -1, half)
    return np.stack([pairs & 15, pairs >> 4], axis=2).reshape(data.shape[0], -1)


def _fifth_bits(data: Array) -> Array:
    """Return the bits of 32-bit integers as the fifth bit of each value."""
    return np.unpackbits(data, axis=1, bitorder="little") << 4


def _q4_0(blocks: Array) -> _Read:
    return lambda: _nibbles(blocks[:, 2:], 16), _half(blocks, 0), None


def _q4_1(blocks: Array) -> _Read:
    return lambda: _nibbles(blocks[:, 4:], 16), _half(blocks, 0), _half(blocks, 2)


def _q5_0(blocks: Array) -> _Read:
    def codes() -> Array:
        return (_nibbles(blocks[:, 6:], 16) | _fifth_bits(blocks[:, 2:6])) + np.uint8(128 - 16)

    return codes, _half(blocks, 0), None


def _q5_1(blocks: Array) -> _Read:
    def codes() -> Array:
        return (_nibbles(blocks[:, 8:], 16) | _fifth_bits(blocks[:, 4:8])) + np.uint8(128 - 16)

    return codes, _half(blocks, 0), _half(blocks, 2)


def _q8_0(blocks: Array) -> _Read:
    return lambda: blocks[:, 2:] ^ 128, _half(blocks, 0), None


def _scales_and_minimums(blocks: Array) -> tuple[Array, Array]:
    """Return the scales and minimums of the eight groups of Q4_K and Q5_K (ggml-quants.c, `get_scale_min_k4`)."""
    low, middle, high = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = np.concatenate([low & 63, high & 15 | low >> 2 & 48], axis=1)
    minimums = np.concatenate([middle & 63, high >> 4 | middle >> 2 & 48], axis=1)
    return _half(blocks, 0) * scales, _half(blocks, 2) * -minimums.astype(np.float32)


def _q4_k(blocks: Array) -> _Read:
    return lambda: _nibbles(blocks[:, 16:], 32), *_scales_and_minimums(blocks)


def _q5_k(blocks: Array) -> _Read:
    def codes() -> Array:
        fifth = np.stack([blocks[:, 16:48] >> group & 1 for group in range(8)], axis=1).reshape(-1, _SUPER_BLOCK) << 4
        found: Array = (_nibbles(blocks[:, 48:], 32) | fifth) + np.uint8(128 - 16)
        return found

    return codes, *_scales_and_minimums(blocks)


def _q6_k(blocks: Array) -> _Read:
    """Read Q6_K: codes of 6 bits, and a scale of 8 bits for 16 of them.

    The step of a group is a quarter of its largest scale. So the values with this scale are exact, four times their
    code, and the others are rounded to the nearest step, except -32 times the negative largest scale: 128 becomes 127.
    """
    small = blocks[:, 192:208].view(np.int8).reshape(-1, 4, 4).astype(np.float32)
    largest = np.take_along_axis(small, np.abs(small).argmax(axis=2)[..., None], axis=2)

    def codes() -> Array:
        low = _nibbles(blocks[:, :128], 64)
        high = np.stack(
            [blocks[:, start : start + 32] >> shift & 3 for start in (128, 160) for shift in (0, 2, 4, 6)], axis=1
        )
        six_bits = (low | high.reshape(-1, _SUPER_BLOCK) << 4).astype(np.int8) - np.int8(32)
        ratios = np.divide(4 * small, largest, out=np.zeros_like(small), where=largest != 0)
        return _eight_bits(np.rint(six_bits.reshape(-1, 4, 4, 16) * ratios[..., None]))

    return codes, _half(blocks, 208) * largest[..., 0] / 4, None


_CODEBOOK = (
    np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int16) + 128
).astype(np.uint8)
"""Values of IQ4_NL and IQ4_XS (ggml-common.h, `kvalues_iq4nl`), which are integers of 8 bits."""


def _iq4_nl(blocks: Array) -> _Read:
    return lambda: _CODEBOOK[_nibbles(blocks[:, 2:], 16)], _half(blocks, 0), None


def _iq4_xs(blocks: Array) -> _Read:
    high = np.ascontiguousarray(blocks[:, 2:4]).view("<u2") >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    low = np.stack([blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4], axis=2).reshape(-1, 8)
    scales = (low | high << 4).astype(np.float32) - 32
    return lambda: _CODEBOOK[_nibbles(blocks[:, 8:], 16)], _half(blocks, 0) * scales, None


_DOUBLED_FP4 = (np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int16) + 128).astype(np.uint8)
"""Twice the values of MXFP4, which are integers (ggml-common.h, `kvalues_mxfp4`)."""


def _mxfp4(blocks: Array) -> _Read:
    scales = np.ldexp(np.float32(1), blocks[:, :1].astype(np.int32) - 128)
    return lambda: _DOUBLED_FP4[_nibbles(blocks[:, 1:], 16)], scales, None


def _requantizing(kind: GGMLQuantizationType) -> _Reader:
    """Return the reader of a type that gets new values of 8 bits: the largest of a group becomes 127 or -127."""

    def read(blocks: Array) -> _Read:
        values = dequantize(blocks, kind).astype(np.float32).reshape(blocks.shape[0], -1, 32)
        steps = np.abs(values).max(axis=2) / np.float32(127)
        halves = steps.astype(np.float16)
        # The step that is stored must not be smaller, or the largest value would not fit.
        halves = np.where(halves.astype(np.float32) < steps, np.nextafter(halves, np.float16(np.inf)), halves)
        scales = halves.astype(np.float32)[..., None]
        codes = np.divide(values, scales, out=np.zeros_like(values), where=scales > 0)
        return lambda: _eight_bits(np.rint(codes)), halves, None

    return read


def _eight_bits(steps: Array) -> Array:
    """Return unsigned codes of these whole numbers; what is not a number is refused with its scale."""
    codes: Array = (np.nan_to_num(np.clip(steps, -128, 127)) + 128).astype(np.uint8)
    return codes.reshape(steps.shape[0], -1)


_READERS: Mapping[GGMLQuantizationType, _Reader] = {
    _T.Q4_0: _q4_0,
    _T.Q4_1: _q4_1,
    _T.Q4_K: _q4_k,
    _T.Q5_0: _q5_0,
    _T.Q5_1: _q5_1,
    _T.Q5_K: _q5_k,
    _T.Q6_K: _q6_k,
    _T.Q8_0: _q8_0,
    _T.IQ4_NL: _iq4_nl,
    _T.IQ4_XS: _iq4_xs,
    _T.MXFP4: _mxfp4,
    **{kind: _requantizing(kind) for kind in FORMS if FORMS[kind].error == 0.5},
}
