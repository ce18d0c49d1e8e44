"""Compare the Triton kernel for the offsets of groups with torch, in Triton's interpreter, which needs no GPU.

`TRITON_INTERPRET=1 interpreted_kernel.py` prints a line of JSON for each case: its name and the largest error, relative
to the largest value. A process of its own, since Triton reads the variable when it is imported.
"""

from __future__ import annotations

import json

import torch

from vllama.worker import offset_kernel
from vllama.worker.group_offsets import Route, corrected, group_sums

GROUP = 32


def told(name: str, found: torch.Tensor, truth: torch.Tensor) -> None:
    error = float((found.float() - truth.float()).abs().max() / truth.float().abs().max())
    print(json.dumps({"case": name, "error": error}), flush=True)


def rows_and_parts() -> None:
    """One or several rows; alone, before and after a part that is only copied; with and without a bias."""
    for rows in (1, 3, 40):
        for place, widths in ((0, (96,)), (0, (80, 48)), (1, (48, 80))):
            for has_bias in (False, True):
                inputs = torch.randn(rows, 7 * GROUP)
                products = [torch.randn(rows, width) for width in widths]
                offsets = torch.randn(7, widths[place])
                bias = torch.randn(sum(widths)) if has_bias else None
                truth = corrected(products, inputs, offsets, place, GROUP, bias)
                given = inputs if rows == 1 else group_sums(inputs, GROUP)
                found = offset_kernel.add_to_rows(products, given, offsets, place, GROUP, bias, sums_given=rows > 1)
                told(f"{rows} rows, part {place} of {widths}, bias {has_bias}", found, truth)


def sorted_by_expert(experts: torch.Tensor, count: int, block: int, weights: torch.Tensor) -> Route:
    """Return what vLLM's `moe_align_block_size` does, with the experts of another rank (-1) left out."""
    flat, rows, owners = experts.reshape(-1), [], []
    for expert in range(count):
        pairs = (flat == expert).nonzero().reshape(-1).tolist()
        pairs += [flat.numel()] * (-len(pairs) % block)
        rows += pairs
        owners += [expert] * (len(pairs) // block)
    total = len(rows)
    rows += [flat.numel()] * (2 * block)  # vLLM's arrays are longer than what they have
    owners += [0, 0]
    numbers = [torch.tensor(values, dtype=torch.int32) for values in (rows, owners, [total])]
    return Route(numbers[0], numbers[1], numbers[2], block, weights)


def pairs_of_experts() -> None:
    """Both matrix products of a layer of experts, for few and many tokens."""
    for tokens, block in ((1, 8), (5, 8), (30, 16), (30, 32)):
        for top_k, weighs in ((3, False), (1, True)):
            pairs = tokens * 3
            inputs = torch.randn(pairs // top_k, 5 * GROUP)
            experts = torch.stack([torch.randperm(6)[:3] for _ in range(tokens)])
            offsets, product = torch.randn(6, 5, 72), torch.randn(pairs, 72)
            weights = torch.rand(tokens, 3)
            route = sorted_by_expert(experts, 6, block, weights)
            sums = group_sums(inputs, GROUP).repeat_interleave(top_k, 0)
            more = torch.einsum("pg,pgn->pn", sums, offsets[experts.reshape(-1)])
            truth = product + more * (weights.reshape(-1, 1) if weighs else 1)
            for sums_given in (False, True):
                found = product.clone()
                given = group_sums(inputs, GROUP) if sums_given else inputs
                offset_kernel.add_to_pairs(
                    found, given, offsets, GROUP, route, top_k, weighs=weighs, sums_given=sums_given
                )
                told(f"{tokens} tokens, blocks of {block}, top {top_k}, sums given {sums_given}", found, truth)


if __name__ == "__main__":
    torch.manual_seed(1)
    rows_and_parts()
    pairs_of_experts()
