"""Repacked blocks against the `gguf` library's own decoding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllama.errors import StoreError

pytest.importorskip("gguf")

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize
from k_quants import q4_k, q6_k

from vllama.store.gguf.placing import rotary_rows
from vllama.store.gguf.reading import Array
from vllama.store.gguf.repacking import FORMS, Form, repack, unpack

pytestmark = pytest.mark.vllm

_FLOATS = {
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "Q4_1": (0, 2),
    "Q5_1": (0, 2),
    "TQ1_0": (52,),
    "TQ2_0": (64,),
}
_SCALES_AT = {kind: _FLOATS.get(kind.name, (0,)) for kind in FORMS if kind.name not in {"IQ1_M", "MXFP4"}}
"""Where the blocks of a type have 16-bit floats. IQ1_M spreads one over the top bits of four integers, and MXFP4 has
exponents."""

_SUBNORMAL_ERROR = 2.0**-25
"""Half the distance between the smallest 16-bit floats."""


def _random_blocks(kind: GGMLQuantizationType, rows: int, blocks: int, seed: int, scale: float) -> Array:
    size = GGML_QUANT_SIZES[kind][1]
    random = np.random.default_rng(seed)
    data = random.integers(0, 256, (rows, blocks, size), dtype=np.uint8)
    for start in _SCALES_AT.get(kind, ()):
        halves = (random.standard_normal((rows, blocks, 1)) * scale).astype("<f2")
        halves[random.random(halves.shape) < 0.1] = 0
        data[:, :, start : start + 2] = halves.view(np.uint8)
    if kind.name == "IQ1_M":
        data[:, :, 48:56] = np.array([0x00, 0x00, 0x00, 0x00, 0x00, 0x80, 0x00, 0x20], np.uint8)
    if kind.name == "MXFP4":
        data[:, :, 0] = random.integers(104, 140, (rows, blocks))  # what 16-bit floats have
    return data.reshape(rows, -1)


def _largest_error(
    kind: GGMLQuantizationType, form: Form, truth: Array, scales: Array, minimums: Array | None
) -> Array:
    """Return the bound for each value: whole steps, and the rounding of scales and minimums to 16 bits."""
    groups = truth.reshape(truth.shape[0], -1, form.group)
    steps = np.abs(scales.astype(np.float32))[..., None]
    bound = form.error * steps
    if form.rounds_scales:
        relative = 2.0**-11 * (1 + 2.0**-10)
        codes = 2 ** (form.bits - 1) if not form.has_minimum else 31
        bound = bound + relative * np.abs(groups) * (1 if minimums is None else 0) + codes * _SUBNORMAL_ERROR
        if minimums is not None:
            bound = bound + relative * (codes * steps + np.abs(minimums.astype(np.float32))[..., None])
        bound = bound + relative * form.error * steps
    return (bound + np.abs(groups) * 2.0**-22).reshape(truth.shape)


@pytest.mark.parametrize("kind", list(FORMS), ids=lambda kind: kind.name)
@given(seed=st.integers(0, 2**32), scale=st.sampled_from([1e-6, 1e-3, 0.05, 1.0]), rows=st.integers(1, 5))
def test_repacked_weights_are_those_of_llama_cpp_within_the_stated_error(
    kind: GGMLQuantizationType, seed: int, scale: float, rows: int
) -> None:
    form = FORMS[kind]
    blocks = _random_blocks(kind, rows, 3, seed, scale)
    packed = repack(blocks, kind)
    truth = np.asarray(dequantize(blocks, kind), np.float32)
    found = unpack(packed, form)

    if not form.rounds_scales and not form.has_minimum:
        np.testing.assert_array_equal(found, truth)
    else:
        error = np.abs(found - truth)
        bound = _largest_error(kind, form, truth, packed.scales, packed.minimums)
        if (
            not form.rounds_scales and packed.minimums is not None
        ):  # scales and minimums are those of the file: only 32-bit arithmetic differs
            reach = 32 * np.abs(packed.scales.astype(np.float32)) + np.abs(packed.minimums.astype(np.float32))
            bound = np.repeat(reach, form.group, axis=1).reshape(truth.shape) * 2.0**-22
        assert (error <= bound).all(), (error / np.maximum(bound, 1e-30)).max()
    assert packed.words.dtype == np.dtype("<i4")
    assert packed.words.shape == (rows, truth.shape[1] * form.bits // 32)
    assert packed.scales.shape == (rows, truth.shape[1] // form.group)
    assert (packed.minimums is not None) == form.has_minimum


@pytest.mark.parametrize("kind", list(_SCALES_AT), ids=lambda kind: kind.name)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_scale_that_is_no_number_is_refused(kind: GGMLQuantizationType, value: float) -> None:
    for start in _SCALES_AT[kind]:
        blocks = _random_blocks(kind, 2, 2, 7, 0.01)
        size = GGML_QUANT_SIZES[kind][1]
        blocks.reshape(4, size)[2] |= 0x11  # so that no small scale is zero, which would hide the large one
        blocks.reshape(4, size)[2, start : start + 2] = np.array([value], "<f2").view(np.uint8)
        with pytest.raises(StoreError, match="infinite or not a number"):
            repack(blocks, kind)


def test_exponents_beyond_16_bit_floats_are_refused() -> None:
    blocks = np.full((1, 17), 200, np.uint8)
    with pytest.raises(StoreError, match="infinite or not a number"):
        repack(blocks, GGMLQuantizationType.MXFP4)


def test_blocks_of_zeros_become_zeros() -> None:
    for kind, form in FORMS.items():
        blocks = np.zeros((2, 2 * GGML_QUANT_SIZES[kind][1]), np.uint8)
        np.testing.assert_array_equal(unpack(repack(blocks, kind), form), dequantize(blocks, kind))


def test_most_values_of_q6_k_are_exact_where_scales_do_not_differ() -> None:
    kind = GGMLQuantizationType.Q6_K
    blocks = _random_blocks(kind, 4, 4, 3, 0.01)
    blocks.reshape(16, -1)[:, 192:208] = 77
    truth = np.asarray(dequantize(blocks, kind), np.float32)
    np.testing.assert_allclose(unpack(repack(blocks, kind), FORMS[kind]), truth, rtol=2.0**-10)


@pytest.mark.parametrize("kind", list(FORMS), ids=lambda kind: kind.name)
def test_rows_can_be_reordered_before_or_after_repacking(kind: GGMLQuantizationType) -> None:
    blocks = _random_blocks(kind, 16, 2, 11, 0.01)
    order = rotary_rows(2, 16)
    before, after = repack(blocks[order], kind), repack(blocks, kind)
    np.testing.assert_array_equal(before.words, after.words[order])
    np.testing.assert_array_equal(before.scales, after.scales[order])


def test_four_bit_weights_lie_in_the_order_of_compressed_tensors() -> None:
    """The first of eight weights is in the lowest bits, with 8 added."""
    block = np.zeros((1, 18), np.uint8)
    block[0, :2] = np.array([1.0], "<f2").view(np.uint8)
    block[0, 2:] = np.arange(16, dtype=np.uint8)  # weight i is i - 8, weights 16 to 31 are -8
    packed = repack(block, GGMLQuantizationType.Q4_0)
    assert packed.words.tolist()[0][0] == 0x76543210
    assert unpack(packed, FORMS[GGMLQuantizationType.Q4_0])[0, :16].tolist() == list(range(-8, 8))


def test_quantized_values_survive_repacking() -> None:
    """The quantizers of the tests, gguf's decoding and ours agree: what goes in comes out, within a step."""
    values = np.random.default_rng(5).standard_normal((8, 512)).astype(np.float32) * 0.02
    for kind, quantize, steps in ((GGMLQuantizationType.Q4_K, q4_k, 15), (GGMLQuantizationType.Q6_K, q6_k, 31)):
        found = unpack(repack(quantize(values), kind), FORMS[kind])
        assert np.abs(found - values).max() < 1.1 * np.abs(values).max() * 2 / steps
        assert np.corrcoef(found.ravel(), values.ravel())[0, 1] > 0.99
