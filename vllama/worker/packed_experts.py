"""vLLM's Marlin kernel for experts with integer weights, one matrix of all experts at a time.

This is the only file that knows vLLM's internals of mixtures below their layer: the operators in `vllm/_custom_ops.py`
and the functions of `fused_moe`, as vLLM 0.26 and 0.32 have them. vLLM's own functions around them (`fused_marlin_moe`)
want the same number of bits in all matrices, which a Q4_K_M file has in half of its layers only.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from vllm import _custom_ops as operators
from vllm.model_executor.layers.fused_moe.activation import apply_moe_activation
from vllm.model_executor.layers.fused_moe.moe_align_block_size import moe_align_block_size
from vllm.model_executor.layers.quantization.utils.marlin_utils import (
    marlin_make_workspace_new,
    marlin_moe_permute_scales,
)

from vllama.worker import group_offsets
from vllama.worker.group_offsets import Route
from vllama.worker.packed_kernels import TYPES, PackedMatrix, equal_neighbours, joined

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

_BLOCKS = (8, 16, 32, 64)
"""Numbers of rows in a block of one expert."""

_FULL = 0.9
"""The mean part of a block that has rows, from which on a larger block is better (vLLM's `fused_marlin_moe`)."""

_TILES = ((128, 64), (64, 128))
"""The divisors of inputs and outputs, one pair of which Marlin needs (`moe/marlin_moe_wna16`, `thread_configs`)."""

_UNTIL_0_31 = {"g_idx": None, "is_k_full": True}
"""Arguments about reordered inputs, which later versions lack, as they lack `perm`."""


class PackedExperts(nn.Module):  # type: ignore[misc]
    """Computes the experts of a layer from packed weights: `down(activation(gate, up))`.

    `matrices` are w1 (gate), w3 (up) and w2 (down) of all experts. Raises ValueError if the kernel does not take their
    form or shape.
    """

    def __init__(self, matrices: Mapping[str, PackedMatrix | Tensor], dtype: torch.dtype) -> None:
        super().__init__()
        runs = equal_neighbours([matrices["w1"], matrices["w3"]])
        self.gate_up = nn.ModuleList(ExpertProduct(_whole(run), dtype) for run in runs)
        self.down = ExpertProduct(_whole([matrices["w2"]]), dtype)

    def forward(
        self,
        inputs: Tensor,
        weights: Tensor,
        experts: Tensor,
        *,
        activation: Any,
        expert_count: int,
        expert_map: Tensor | None,
        weights_inputs: bool,
    ) -> Tensor:
        """Return the weighted sum of the chosen experts for each row of inputs.

        `weights` and `experts` are [rows, chosen]. `expert_map` has the place of each expert on this rank, or -1, and
        is None if it has all. `weights_inputs` says that weights apply before the activation.
        """
        rows, chosen = experts.shape
        route = _route(weights, experts, expert_count, expert_map)
        parts = [product(inputs.contiguous(), route, chosen, weighs=weights_inputs) for product in self.gate_up]
        both = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        hidden = both.new_empty(both.shape[0], both.shape[1] // 2)
        apply_moe_activation(activation, hidden, both)
        # Pairs of experts on other ranks are not computed: they must be zero.
        down = self.down(hidden, route, 1, weighs=not weights_inputs, is_partial=expert_map is not None)
        return down.view(rows, chosen, -1).sum(dim=1)


class ExpertProduct(nn.Module):  # type: ignore[misc]
    """Multiplies rows by the matrices of their experts. Raises ValueError if the kernel does not take the shape."""

    def __init__(self, matrix: PackedMatrix, dtype: torch.dtype) -> None:
        super().__init__()
        self._bits, self._group, _ = matrix.form
        self._outputs, self._inputs = matrix.words.shape[1], matrix.inputs
        if all(self._inputs % inputs or self._outputs % outputs for inputs, outputs in _TILES):
            raise ValueError(f"the kernel takes no matrices of {self._outputs} × {self._inputs}")
        if dtype not in {torch.float16, torch.bfloat16}:
            raise ValueError(f"the kernel does not compute in {dtype}")
        offsets = matrix.offsets
        self.offsets = None
        if offsets is not None:
            self.offsets = nn.Parameter(offsets.transpose(1, 2).to(dtype).contiguous(), requires_grad=False)
        words, scales = _in_marlin_order(matrix, dtype)
        self.words = nn.Parameter(words, requires_grad=False)
        self.scales = nn.Parameter(scales, requires_grad=False)
        self.workspace = marlin_make_workspace_new(words.device, 4)
        self._more = _known(operators.moe_wna16_marlin_gemm, {**_UNTIL_0_31, "perm": None})

    def forward(
        self, inputs: Tensor, route: Route, top_k: int, *, weighs: bool = False, is_partial: bool = False
    ) -> Tensor:
        """Return a row for each pair of a row of inputs and one of its `top_k` experts.

        `weighs` says that the route's weights are factors of these rows, `is_partial` that some pairs are not
        computed, and are zero.
        """
        pairs = inputs.shape[0] * top_k
        result = (inputs.new_zeros if is_partial else inputs.new_empty)(pairs, self._outputs)
        operators.moe_wna16_marlin_gemm(
            input=inputs,
            output=result,
            b_qweight=self.words,
            b_bias=None,
            b_scales=self.scales,
            a_scales=None,
            global_scale=None,
            b_qzeros=None,
            workspace=self.workspace,
            sorted_token_ids=route.rows,
            expert_ids=route.experts,
            num_tokens_past_padded=route.count,
            topk_weights=route.weights,
            moe_block_size=route.block,
            top_k=top_k,
            mul_topk_weights=weighs,
            b_q_type=TYPES[self._bits],
            size_m=inputs.shape[0],
            size_n=self._outputs,
            size_k=self._inputs,
            use_atomic_add=False,
            use_fp32_reduce=True,
            is_zp_float=False,
            **self._more,
        )
        if self.offsets is not None:
            group_offsets.add_to_pairs(result, inputs, self.offsets, self._group, route, top_k=top_k, weighs=weighs)
        return result


def _whole(run: list[PackedMatrix | Tensor]) -> PackedMatrix:
    matrices = [matrix for matrix in run if isinstance(matrix, PackedMatrix)]
    if len(matrices) < len(run):
        raise ValueError("some matrices of these experts are not packed")
    return joined(matrices)


def _route(weights: Tensor, experts: Tensor, expert_count: int, expert_map: Tensor | None) -> Route:
    rows_per_expert = experts.numel() / expert_count
    block = next((size for size in _BLOCKS if rows_per_expert / size < _FULL), _BLOCKS[-1])
    rows, owners, count = moe_align_block_size(experts, block, expert_count, expert_map, ignore_invalid_experts=True)
    return Route(rows, owners, count, block, weights.to(torch.float32).contiguous())


def _in_marlin_order(matrix: PackedMatrix, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return words and scales as the kernel reads them, computed expert by expert."""
    bits, group, _ = matrix.form
    experts, outputs, inputs = matrix.words.shape[0], matrix.words.shape[1], matrix.inputs
    device = matrix.words.device
    no_order = torch.empty(1, 0, dtype=torch.int32, device=device)
    more = _known(operators.gptq_marlin_moe_repack, {"perm": no_order})
    words = torch.empty(experts, inputs // 16, outputs * (bits // 2), dtype=torch.int32, device=device)
    scales = torch.empty(experts, inputs // group, outputs, dtype=dtype, device=device)
    for expert in range(experts):
        own = slice(expert, expert + 1)
        words[own] = operators.gptq_marlin_moe_repack(
            b_q_weight=matrix.words[own].transpose(1, 2).contiguous(),
            size_k=inputs,
            size_n=outputs,
            num_bits=bits,
            **more,
        )
        scales[own] = marlin_moe_permute_scales(
            s=matrix.scales[own].transpose(1, 2).to(dtype).contiguous(),
            size_k=inputs,
            size_n=outputs,
            group_size=group,
        )
    return words, scales


def _known(function: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that the function takes in the installed version."""
    known = inspect.signature(function).parameters
    return {name: value for name, value in arguments.items() if name in known}
