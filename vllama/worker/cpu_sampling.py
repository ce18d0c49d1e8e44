"""Ollama's default sampling on a CPU without sorting the vocabulary.

Ollama samples with top_k 40 and top_p 0.9, and vLLM sorts all logits of a batch for that: on two cores 7 ms per
request and token, more than some models need for the token itself. The 40 largest are enough. vLLM loads this in each
process of a worker as a general plugin (`vllm/plugins/__init__.py`); it takes the place of
`apply_top_k_top_p_pytorch` (`vllm/v1/sample/ops/topk_topp_sampler.py`, vLLM 0.26 and 0.32) there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vllm.platforms import current_platform

from vllama.worker.plugin_selection import is_selected

if TYPE_CHECKING:
    from torch import Tensor

_FEW = 1024
"""The largest top_k for which a partial sort is worth it."""

Mask = Callable[..., Any]


def register() -> None:
    """Put the partial sort into this process, where it computes on a CPU; the second time does nothing."""
    if not current_platform.is_cpu() or not is_selected():
        return
    from vllm.v1.sample.ops import topk_topp_sampler

    if not hasattr(topk_topp_sampler.apply_top_k_top_p_pytorch, "__wrapped__"):
        topk_topp_sampler.apply_top_k_top_p_pytorch = partially_sorting(topk_topp_sampler.apply_top_k_top_p_pytorch)


def partially_sorting(whole: Mask) -> Mask:
    """vLLM's function, which is asked only about requests with top_p and without top_k, or with a large one."""

    @functools.wraps(whole)
    def mask(logits: Tensor, k: Tensor | None, p: Tensor | None, *rest: Any, **others: Any) -> Any:
        if k is None or p is None:
            return whole(logits, k, p, *rest, **others)
        has_few = k <= _FEW
        if has_few.all():
            return _keep_likeliest(logits, k, p)
        has_many = ~has_few & ((k < logits.shape[-1]) | (p < 1))  # greedy requests have neither limit
        if has_many.any():
            logits[has_many] = whole(logits[has_many], k[has_many], p[has_many], *rest, **others)
        if has_few.any():
            logits[has_few] = _keep_likeliest(logits[has_few], k[has_few], p[has_few])
        return logits

    return mask


def _keep_likeliest(logits: Tensor, k: Tensor, p: Tensor) -> Tensor:
    """Set to -inf, in place, what is not among a row's first `k`, or comes after these have a probability of `p`.

    `logits` is [requests, vocabulary], `k` and `p` are [requests]. The likeliest token always stays.
    """
    import torch

    minus_infinity = -float("inf")
    values, tokens = logits.topk(int(k.max()), dim=-1)
    ranks = torch.arange(values.shape[-1], device=logits.device)
    values = values.masked_fill(ranks >= k.unsqueeze(1), minus_infinity)
    probabilities = values.softmax(dim=-1, dtype=torch.float32)
    before = probabilities.cumsum(dim=-1) - probabilities
    p = p.masked_fill(p >= 1, torch.inf).unsqueeze(1)  # a sum of all may round to 1 before its end
    values = values.masked_fill((before >= p) & (ranks > 0), minus_infinity)
    return logits.fill_(minus_infinity).scatter_(-1, tokens, values)
