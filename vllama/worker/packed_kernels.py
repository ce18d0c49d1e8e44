"""vLLM's kernels for integer weights with 16-bit activations, for one matrix at a time.

This is the only file that knows vLLM's internals below the quantization registry: the kernels in
`vllm/model_executor/kernels/linear/mixed_precision`, as vLLM 0.26, 0.32 and 0.33 have them. The weights are those of
vllama/store/gguf/repacking.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from vllm.model_executor.kernels.linear import choose_mp_linear_kernel
from vllm.model_executor.kernels.linear.mixed_precision import MPLinearLayerConfig
from vllm.model_executor.parameter import GroupQuantScaleParameter, PackedvLLMParameter
from vllm.scalar_type import scalar_types

from vllama.worker import group_offsets  # noqa: F401 - registers the operator

if TYPE_CHECKING:
    from torch import Tensor

ZEROS = {4: 8, 8: 128}
"""The integers that stand for zero."""

CENTRES = {4: 8, 8: 16}
"""The centre of codes with a minimum, `scale · (k + centre) + minimum`, as in repacking.py."""

TYPES = {4: scalar_types.uint4b8, 8: scalar_types.uint8b128}
"""vLLM's types of integers with a fixed zero, by bits."""

FIELDS = {"weight_packed": torch.int32, "weight_scale": torch.float16, "weight_minimum": torch.float16, "weight": None}
"""Tensors of a layer in a snapshot, and their types; a `weight` alone is not packed."""


class PackedMatrix(NamedTuple):
    """Rows of packed weights: `words` of 32 bits, and a scale and maybe a minimum for each group of inputs.

    Those of experts have a dimension before the rows.
    """

    words: Tensor
    scales: Tensor
    minimums: Tensor | None
    bits: int

    @property
    def inputs(self) -> int:
        """The length of a row."""
        return int(self.words.shape[-1]) * 32 // self.bits

    @property
    def form(self) -> tuple[int, int, bool]:
        """Bits, group, and whether there are minimums: matrices with the same form can be joined."""
        return self.bits, self.inputs // self.scales.shape[-1], self.minimums is not None

    @property
    def offsets(self) -> Tensor | None:
        """The numbers that are added to `scale · k`, as 32-bit floats, or None."""
        if self.minimums is None:
            return None
        return self.minimums.float() + CENTRES[self.bits] * self.scales.float()

    def part(self, index: int | slice) -> PackedMatrix:
        """Return some of the rows, or one of the experts."""
        minimums = None if self.minimums is None else self.minimums[index]
        return PackedMatrix(self.words[index], self.scales[index], minimums, self.bits)

    def values(self, dtype: torch.dtype) -> Tensor:
        """Return the whole matrix as numbers, computed in parts."""
        result = torch.empty(self.words.shape[0], self.inputs, dtype=dtype, device=self.words.device)
        step = max((1 << 24) // self.inputs, 1)
        for start in range(0, result.shape[0], step):
            rows = slice(start, start + step)
            result[rows] = unpacked(*self.part(rows), dtype)
        return result


def unpacked(words: Tensor, scales: Tensor, minimums: Tensor | None, bits: int, dtype: torch.dtype) -> Tensor:
    """Return packed weights as numbers; all tensors may have several dimensions before the last."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32, device=words.device)
    codes = (words.unsqueeze(-1) >> shifts) & (2**bits - 1)
    steps = scales.float().unsqueeze(-1)
    values = (codes.reshape(*scales.shape, -1).float() - ZEROS[bits]) * steps
    if minimums is not None:
        values = values + (minimums.float().unsqueeze(-1) + CENTRES[bits] * steps)
    return values.flatten(-2).to(dtype)


def bits_of(words: Tensor, scales: Tensor) -> int:
    """Return the bits of packed weights: groups have 32 weights of 4 bits, or 32 or 64 of 8 bits."""
    return 4 if words.shape[-1] == 4 * scales.shape[-1] else 8


def equal_neighbours(parts: Sequence[PackedMatrix | Tensor]) -> list[list[Any]]:
    """Divide the matrices of fused layers into runs of the same form."""
    runs = groupby(parts, key=lambda part: part.form if isinstance(part, PackedMatrix) else None)
    return [list(run) for _, run in runs]


def joined(matrices: list[PackedMatrix]) -> PackedMatrix:
    """Return one matrix with the rows of these, which have the same form."""
    minimums = [matrix.minimums for matrix in matrices if matrix.minimums is not None]
    return PackedMatrix(
        torch.cat([matrix.words for matrix in matrices], dim=-2),
        torch.cat([matrix.scales for matrix in matrices], dim=-2),
        torch.cat(minimums, dim=-2) if minimums else None,
        matrices[0].bits,
    )


class PackedProduct(nn.Module):  # type: ignore[misc]
    """Multiplies activations of one type by a packed matrix.

    The kernel computes with the integers and their scales, rounded to the activations' type. A minimum adds the same
    for all inputs of a group: the sum of these inputs times the group's offset, a small matrix product.
    Raises ValueError if vLLM has no kernel for this device, form and shape.
    """

    def __init__(self, matrix: PackedMatrix, dtype: torch.dtype) -> None:
        super().__init__()
        bits, self.group, has_minimum = matrix.form
        outputs, inputs = matrix.words.shape[0], matrix.inputs
        config = _kernel_config(inputs, outputs, bits, self.group, dtype)
        kernel = choose_mp_linear_kernel(config)
        unused: Any = None  # the weights are complete
        self.weight_packed = PackedvLLMParameter(
            data=matrix.words, input_dim=1, output_dim=0, packed_dim=1, packed_factor=32 // bits, weight_loader=unused
        )
        self.weight_scale = GroupQuantScaleParameter(
            data=matrix.scales.to(dtype), input_dim=1, output_dim=0, weight_loader=unused
        )
        self.bias = None
        offsets = matrix.offsets
        self.offsets = None
        if has_minimum and offsets is not None:
            self.offsets = nn.Parameter(offsets.t().to(dtype).contiguous(), requires_grad=False)
        self._kernel = kernel(config, w_q_param_name="weight_packed", w_s_param_name="weight_scale")
        self._kernel.process_weights_after_loading(self)

    def multiply(self, inputs: Tensor) -> Tensor:
        """Return the product with the integers and their scales alone."""
        product: Tensor = self._kernel.apply_weights(self, inputs, None)
        return product

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the product for rows of inputs."""
        return side_by_side([self], inputs, None)


class PlainProduct(nn.Module):  # type: ignore[misc]
    """Multiplies by a matrix that is not packed, beside others that are."""

    offsets = None

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)

    def multiply(self, inputs: Tensor) -> Tensor:
        """Return the product for rows of inputs."""
        return nn.functional.linear(inputs, self.weight)


def side_by_side(products: Sequence[Any], inputs: Tensor, bias: Tensor | None) -> Tensor:
    """Return the products of the parts of a fused layer, side by side, plus its bias.

    Each of them has `multiply`, and `offsets`, which are to be added with their `group` unless they are None.
    """
    rows = inputs.reshape(-1, inputs.shape[-1])
    parts = [product.multiply(rows) for product in products]
    for place, product in enumerate(products):
        if product.offsets is None:
            continue
        if len(products) - sum(other.offsets is None for other in products) == 1:
            whole = torch.ops.vllama.corrected(parts, rows, product.offsets, place, product.group, bias)
            return whole.reshape(*inputs.shape[:-1], -1)
        parts[place] = torch.ops.vllama.corrected([parts[place]], rows, product.offsets, 0, product.group, None)
    whole = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
    whole = whole if bias is None else whole + bias
    return whole.reshape(*inputs.shape[:-1], -1)


def _kernel_config(inputs: int, outputs: int, bits: int, group: int, dtype: torch.dtype) -> MPLinearLayerConfig:
    shape = (inputs, outputs)
    fields: dict[str, Any] = {
        "full_weight_shape": shape,
        "partition_weight_shape": shape,
        "weight_type": TYPES[bits],
        "act_type": dtype,
        "group_size": group,
        "zero_points": False,
        "has_g_idx": False,  # until vLLM 0.31
    }
    known = {field.name for field in dataclasses.fields(MPLinearLayerConfig)}
    return MPLinearLayerConfig(**{name: value for name, value in fields.items() if name in known})
