"""A Triton kernel that adds to products what groups of inputs have in common; vllama.worker.group_offsets says when.

Imported only where there is a GPU, or by tests in Triton's interpreter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import triton
import triton.language as tl

if TYPE_CHECKING:
    from torch import Tensor

    from vllama.worker.group_offsets import Route

_LEAST_ROWS = 16
"""Rows of the smallest tile that tensor cores multiply."""
_MANY_COLUMNS = 16_384
"""Number of columns from which on their tiles alone fill a GPU, so that each may read fewer groups at a time."""
_MANY_GROUPS = 256
"""Number of groups from which on a tile of one row takes twice as many warps."""
_WARPS = 4


@triton.jit(do_not_specialize=["row_count"])  # type: ignore[untyped-decorator] # Triton compiles the function
def _add_offsets(  # type: ignore[no-untyped-def] # noqa: PLR0912, PLR0917 - one launch for all
    result,  # [rows, columns of the result]
    product,  # [rows, columns]
    copied,  # [rows, copied_columns], which only move to their place
    inputs,  # [rows // top_k, groups * group_size], or the sums of groups
    offsets,  # [experts, groups, columns]
    bias,  # [columns of the result]
    sorted_rows,
    block_experts,
    sorted_count,
    weights,  # [rows]
    row_count,
    columns,
    copied_columns,
    result_columns,
    product_start,
    copied_start,
    groups,
    top_k: tl.constexpr,
    group_size: tl.constexpr,
    sums_given: tl.constexpr,
    has_experts: tl.constexpr,
    has_weights: tl.constexpr,
    has_bias: tl.constexpr,
    block: tl.constexpr,  # rows that belong together: a tile may have more lanes
    tile_rows: tl.constexpr,
    tile_columns: tl.constexpr,
    tile_groups: tl.constexpr,
):
    tile = tl.program_id(1)
    lanes = tl.arange(0, tile_rows)
    if has_experts:
        if tile * block >= tl.load(sorted_count):
            return
        expert = tl.load(block_experts + tile).to(tl.int64)
        if expert < 0:  # an expert of another rank
            return
        first_group = expert * groups
        rows = tl.load(sorted_rows + tile * block + lanes, mask=lanes < block, other=row_count).to(tl.int64)
    else:
        first_group = tl.full((), 0, tl.int64)
        rows = (tile * block + lanes).to(tl.int64)
    is_row = rows < row_count

    own_tiles = tl.cdiv(columns, tile_columns)
    column = tl.program_id(0) * tile_columns + tl.arange(0, tile_columns)
    if tl.program_id(0) >= own_tiles:
        column -= own_tiles * tile_columns
        mask = is_row[:, None] & (column < copied_columns)[None, :]
        found = tl.load(copied + rows[:, None] * copied_columns + column[None, :], mask=mask, other=0.0).to(tl.float32)
        column += copied_start
    else:
        is_column = column < columns
        source = rows // top_k
        # The only row is summed at the end, for a sum between threads costs more than the multiplications.
        found = tl.zeros((tile_groups if tile_rows == 1 else tile_rows, tile_columns), dtype=tl.float32)
        for start in range(0, groups, tile_groups):
            group = start + tl.arange(0, tile_groups)
            is_group = group < groups
            if sums_given:
                is_sum = is_row[:, None] & is_group[None, :]
                sums = tl.load(inputs + source[:, None] * groups + group[None, :], mask=is_sum, other=0.0)
            else:
                member = group[None, :, None] * group_size + tl.arange(0, group_size)[None, None, :]
                is_value = is_row[:, None, None] & is_group[None, :, None]
                first = source[:, None, None] * (groups * group_size)
                values = tl.load(inputs + first + member, mask=is_value, other=0.0)
                sums = tl.sum(values.to(tl.float32), axis=2)
            is_step = is_group[:, None] & is_column[None, :]
            steps = tl.load(
                offsets + (first_group + group[:, None]) * columns + column[None, :], mask=is_step, other=0.0
            )
            if tile_rows == 1:
                found += tl.trans(sums).to(tl.float32) * steps.to(tl.float32)
            else:
                found = tl.dot(sums.to(steps.dtype), steps, found)
        if tile_rows == 1:
            found = tl.sum(found, axis=0)[None, :]
        mask = is_row[:, None] & is_column[None, :]
        if has_weights:
            found *= tl.load(weights + rows, mask=is_row, other=0.0)[:, None]
        found += tl.load(product + rows[:, None] * columns + column[None, :], mask=mask, other=0.0).to(tl.float32)
        column += product_start
    if has_bias:
        found += tl.load(bias + column, mask=column < result_columns, other=0.0).to(tl.float32)[None, :]
    tl.store(result + rows[:, None] * result_columns + column[None, :], found.to(result.dtype.element_ty), mask=mask)


def add_to_rows(  # noqa: PLR0917
    products: list[Tensor],
    inputs: Tensor,
    offsets: Tensor,
    place: int,
    group: int,
    bias: Tensor | None,
    *,
    sums_given: bool,
) -> Tensor:
    """Return one or two products side by side, plus the bias; see `group_offsets.corrected`."""
    product, other = products[place], products[1 - place] if len(products) > 1 else None
    rows, columns = product.shape
    other_columns = 0 if other is None else other.shape[1]
    result = product.new_empty(rows, columns + other_columns)
    if rows == 1:
        tile, width, depth = 1, 64, 64 if columns >= _MANY_COLUMNS else 128
        warps = 2 * _WARPS if offsets.shape[0] >= _MANY_GROUPS else _WARPS
    else:
        tile, width, depth, warps = min(max(triton.next_power_of_2(rows), _LEAST_ROWS), 64), 64, 64, _WARPS
    starts = (0, columns) if place == 0 else (other_columns, 0)
    grid = (triton.cdiv(columns, width) + triton.cdiv(other_columns, width), triton.cdiv(rows, tile))
    _launch(
        grid, result, product, other, inputs, offsets, bias, None, rows, starts, 1, group, tile, weighs=False,
        sums_given=sums_given, sizes=(tile, width, depth), warps=warps,
    )  # fmt: skip
    return result


def add_to_pairs(  # noqa: PLR0917
    product: Tensor,
    inputs: Tensor,
    offsets: Tensor,
    group: int,
    route: Route,
    top_k: int,
    *,
    weighs: bool,
    sums_given: bool,
) -> None:
    """Add to the products of experts in place; see `group_offsets.add_to_pairs`."""
    pairs, columns = product.shape
    sizes = max(route.block, _LEAST_ROWS), 64, 64 if sums_given else 16
    grid = (triton.cdiv(columns, sizes[1]), triton.cdiv(route.rows.shape[0], route.block))
    _launch(
        grid, product, product, None, inputs, offsets, None, route, pairs, (0, 0), top_k, group, route.block,
        weighs=weighs, sums_given=sums_given, sizes=sizes, warps=_WARPS,
    )  # fmt: skip


def _launch(  # noqa: PLR0917
    grid: tuple[int, int],
    result: Tensor,
    product: Tensor,
    copied: Tensor | None,
    inputs: Tensor,
    offsets: Tensor,
    bias: Tensor | None,
    route: Route | None,
    rows: int,
    starts: tuple[int, int],
    top_k: int,
    group: int,
    block: int,
    *,
    weighs: bool,
    sums_given: bool,
    sizes: tuple[int, int, int],
    warps: int,
) -> None:
    unused: Any = product  # a pointer that is not read
    _add_offsets[grid](
        result,
        product,
        unused if copied is None else copied,
        inputs,
        offsets,
        unused if bias is None else bias,
        unused if route is None else route.rows,
        unused if route is None else route.experts,
        unused if route is None else route.count,
        unused if route is None else route.weights,
        rows,
        product.shape[1],
        0 if copied is None else copied.shape[1],
        result.shape[1],
        *starts,
        offsets.shape[-2],
        top_k=top_k,
        group_size=group,
        sums_given=sums_given,
        has_experts=route is not None,
        has_weights=weighs,
        has_bias=bias is not None,
        block=block,
        tile_rows=sizes[0],
        tile_columns=sizes[1],
        tile_groups=sizes[2],
        num_warps=warps,
    )
