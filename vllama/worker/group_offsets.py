"""The part of a product with packed weights that is the same for all inputs of a group.

A weight with a minimum is `scale · k + offset`. Kernels of vLLM multiply by `scale · k`; what is missing is the sum of
each group of inputs times the group's offset. For a few rows, as while text is generated, a kernel of ours adds that in
one launch, and joins the parts of a fused layer and adds its bias on the way. For many rows, sums and a matrix product
of torch are faster.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from torch import Tensor

_FEW_ROWS = 64
"""Maximum number of rows for the kernel of a dense layer; for more, torch's product reads offsets less often."""

_FEW_PAIRS = 64
"""Maximum number of pairs of a token and an expert for which the kernel sums the inputs, for each block of outputs."""


class Route(NamedTuple):
    """Which expert each row is multiplied by, as vLLM's kernels take it (`moe_align_block_size`).

    `rows` are the numbers of pairs of a token and an expert, sorted by expert, in blocks of `block` rows; numbers
    beyond the last pair fill the blocks. `experts` has the expert of each block, `count` the number of rows in all.
    `weights` are the factors of the pairs, [tokens, experts of each], in 32 bits.
    """

    rows: Tensor
    experts: Tensor
    count: Tensor
    block: int
    weights: Tensor


def group_sums(inputs: Tensor, group: int) -> Tensor:
    """Return the sums of the groups of each row."""
    return inputs.unflatten(-1, (-1, group)).sum(-1)


def corrected(  # noqa: PLR0917 - an operator has no named arguments
    products: list[Tensor], inputs: Tensor, offsets: Tensor, place: int, group: int, bias: Tensor | None
) -> Tensor:
    """Return the products side by side, one of them corrected, plus the bias.

    `offsets` are those of `products[place]`, [groups, outputs]; `inputs` the rows that were multiplied, [rows, inputs].
    """
    if inputs.is_cuda and inputs.shape[0] <= _FEW_ROWS and len(products) <= 2:
        from vllama.worker import offset_kernel

        is_one = inputs.shape[0] == 1
        given = inputs.contiguous() if is_one else group_sums(inputs, group)
        return offset_kernel.add_to_rows(products, given, offsets, place, group, bias, sums_given=not is_one)
    parts = list(products)
    parts[place] = torch.addmm(parts[place], group_sums(inputs, group), offsets)
    joined = torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]
    return joined if bias is None else joined + bias


def _meta(  # noqa: PLR0917
    products: list[Tensor], inputs: Tensor, offsets: Tensor, place: int, group: int, bias: Tensor | None
) -> Tensor:
    del offsets, place, group, bias
    return inputs.new_empty(inputs.shape[0], sum(product.shape[1] for product in products))


_operator = torch.library.custom_op(
    "vllama::corrected",
    corrected,
    mutates_args=(),
    schema="(Tensor[] products, Tensor inputs, Tensor offsets, int place, int group, Tensor? bias) -> Tensor",
)
_operator.register_fake(_meta)
"""An operator of torch, so that a compiled model decides by the number of rows of each step."""


def add_to_pairs(
    product: Tensor, inputs: Tensor, offsets: Tensor, group: int, route: Route, *, top_k: int, weighs: bool
) -> None:
    """Add what is missing to the products of experts, in place.

    Row i of `product` belongs to row i // top_k of `inputs`. `offsets` are [experts, groups, outputs]. `weighs` says
    that the rows have the route's weights as factors.
    """
    from vllama.worker import offset_kernel

    is_few = route.block <= 16 and product.shape[0] <= _FEW_PAIRS
    given = inputs.contiguous() if is_few else group_sums(inputs, group)
    offset_kernel.add_to_pairs(product, given, offsets, group, route, top_k, weighs=weighs, sums_given=not is_few)
