"""Pure decisions about LoRA adapters: whether one can be served, and the adapter rank that a worker supports.

A base and the models with an adapter on it have one engine and share one worker. Room for adapters costs memory and
time, so a worker has none unless the store holds an adapter for its weights when it starts. A model that needs more
room than the worker has makes the scheduler replace that worker when it is idle.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vllama.errors import RequestError
from vllama.installed.adapter_support import AdapterSupport
from vllama.scheduler.engine_flags import given_value, is_given
from vllama.store.description import ModelDescription
from vllama.store.manifest import Manifest
from vllama.store.peft import Layer

_ENABLE, _DISABLE, _RANK = "--enable-lora", "--no-enable-lora", "--max-lora-rank"

_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Values of --max-lora-rank (`vllm/config/lora.py: MaxLoRARanks`)."""

_AT_ONCE, _KEPT = 4, 64
"""Maximum adapters in one engine step, and in memory; others wait, or are read again from disk."""

_EMBEDDINGS = frozenset({"embed_tokens", "lm_head"})
"""Layers that vLLM adapts only if the model's class names them."""


def room_for(manifest: Manifest, stored: Iterable[Manifest]) -> int:
    """Return the adapter rank that a worker of this model needs: the maximum for its weights, 0 for none."""
    sharing = (other for other in stored if other.adapter and other.weights_digest == manifest.weights_digest)
    return max((model.adapter_rank for model in (manifest, *sharing)), default=0)


def room_given(flags: Sequence[str], rank: int) -> int:
    """Return the adapter rank that a worker supports when started for `rank` with these user flags."""
    stated = given_value(flags, _RANK)
    if is_given(flags, _DISABLE):
        return 0
    if stated.isdigit() and (rank or is_given(flags, _ENABLE)):
        return int(stated)
    return _rounded(rank) if rank else 0


def adapter_flags(flags: Sequence[str], rank: int) -> tuple[str, ...]:
    """Return vLLM's flags for adapters up to this rank, without those that the user has given."""
    if not rank or is_given(flags, _DISABLE):
        return ()
    wanted = {_RANK: str(_rounded(rank)), "--max-loras": str(_AT_ONCE), "--max-cpu-loras": str(_KEPT)}
    added = [part for flag, value in wanted.items() if not is_given(flags, flag) for part in (flag, value)]
    return (*(() if is_given(flags, _ENABLE) else (_ENABLE,)), *added)


def check_servable(
    layers: Iterable[Layer], rank: int, base: ModelDescription, support: AdapterSupport | None, flags: Sequence[str]
) -> None:
    """Raise RequestError if vLLM with these user flags cannot serve the adapter on this base model.

    If `support` is None, vLLM decides.
    """
    if "completion" not in base.capabilities:
        raise RequestError("adapters are supported only for models that generate text")
    if support is not None and not support.takes:
        raise RequestError(
            f"vLLM does not support LoRA adapters for {base.architecture}; merge the adapter into the base model"
        )
    if support is not None:
        _check_layers(layers, base.architecture, support)
    if is_given(flags, _DISABLE):
        raise RequestError(f"the server was started with {_DISABLE}, so models with an adapter cannot be served")
    most = room_given(flags, rank)
    if most < rank:
        raise RequestError(f"the adapter has rank {rank}, but the server was started with {_RANK} {most}")


def _check_layers(layers: Iterable[Layer], architecture: str, support: AdapterSupport) -> None:
    unserved = {layer.module for layer in layers} & _EMBEDDINGS - support.embeddings
    if unserved:
        raise RequestError(
            f"vLLM does not support adapters for {', '.join(sorted(unserved))} of {architecture}; train the adapter "
            "without them (target_modules), or merge the adapter into the base model"
        )


def _rounded(rank: int) -> int:
    return next(value for value in _RANKS if value >= rank)
