"""The experts of gpt-oss in MXFP4, moved to where vLLM's own method `mxfp4` reads them: the same bits.

A block has 32 values of 4 bits and the exponent that they share. llama.cpp stores the exponent first, and value i
beside value i + 16 (ggml-common.h, `block_mxfp4`). OpenAI's checkpoints have the exponents in a tensor of their own,
and neighbouring values in one byte, the first in the low bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType

from vllama.store.gguf.placing import PlacedTensor
from vllama.store.gguf.reading import Array
from vllama.store.gguf.writing import OutputTensor

_BLOCK, _BLOCK_BYTES = 32, 17
_MODEL = "GptOssForCausalLM"
_EXPERTS = (".experts.gate_up_proj", ".experts.down_proj")

METHOD: Mapping[str, Any] = {
    "quant_method": "mxfp4",
    "modules_to_not_convert": [
        "model.layers.*.self_attn",
        "model.layers.*.mlp.router",
        "model.embed_tokens",
        "lm_head",
    ],
}
"""The `quantization_config` of OpenAI's own checkpoints."""


@dataclass(frozen=True)
class Mxfp4:
    """MXFP4 as it is; `name` is what descriptions call it."""

    name: str = "MXFP4"


MXFP4 = Mxfp4()


def is_packed(placed: PlacedTensor) -> bool:
    """Return whether the tensor has the weights of experts, for vLLM's method."""
    return placed.name.endswith(_EXPERTS)


def is_kept(tensors: Sequence[PlacedTensor], architecture: str) -> bool:
    """Return whether the model is gpt-oss with all experts in MXFP4: vLLM's method is for all layers or none."""
    kinds = {piece.source.type for placed in tensors if is_packed(placed) for piece in placed.pieces}
    return architecture == _MODEL and kinds == {GGMLQuantizationType.MXFP4}


def rearranged(placed: PlacedTensor, at_most: int) -> Iterator[OutputTensor]:
    """Yield the values and exponents of a stack of experts, reading about at most so many bytes at a time.

    Unlike the bfloat16 stack, the packed one has matrices as outputs × inputs.
    """
    experts, inputs, outputs = placed.shape
    rows = replace(placed, shape=(experts, outputs, inputs), transposed=False)
    blocks = inputs // _BLOCK

    def parts(field: Callable[[Array], Array]) -> Callable[[], Iterator[Array]]:
        return lambda: (field(data.reshape(-1, blocks, _BLOCK_BYTES)) for _, data in rows.blocks(at_most))

    yield OutputTensor(f"{placed.name}_blocks", "U8", (experts, outputs, blocks, _BLOCK // 2), parts(neighbours))
    yield OutputTensor(f"{placed.name}_scales", "U8", (experts, outputs, blocks), parts(lambda data: data[..., 0]))


def neighbours(blocks: Array) -> Array:
    """Return the values of blocks, the last dimension, with neighbours in one byte."""
    pairs = blocks[..., 1:]
    values = np.concatenate([pairs & 15, pairs >> 4], axis=-1)
    found: Array = values[..., 0::2] | values[..., 1::2] << 4
    return found
