"""Whether a model's LoRA adapter can be served, and with what room for adapters a worker starts: pure decisions.

A base and the models with an adapter on it have one engine and share one worker. Room for adapters costs memory and
time, so a worker has none unless the store holds an adapter for its weights when it starts. A model that needs more
room than the worker has makes the scheduler replace that worker when it is idle.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vllama.errors import RequestError
from vllama.scheduler.engine_flags import given_value, is_given
from vllama.store.description import ModelDescription
from vllama.store.manifest import Manifest
from vllama.store.peft import Layer
from vllama.worker.adapter_support import AdapterSupport

_ENABLE, _DISABLE, _RANK = "--enable-lora", "--no-enable-lora", "--max-lora-rank"

_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Values of --max-lora-rank (`vllm/config/lora.py: MaxLoRARanks`)."""

_AT_ONCE, _KEPT = 4, 64
"""Adapters in one step of the engine, and in its memory: whoever is above has to wait, or is read again from disk."""

_EMBEDDINGS = frozenset({"embed_tokens", "lm_head"})
"""Layers that vLLM changes only where the model's class names them."""


def room_for(manifest: Manifest, stored: Iterable[Manifest]) -> int:
    """The rank that a worker of this model needs room for: the highest of all adapters for its weights, 0 for none."""
    sharing = (other for other in stored if other.adapter and other.weights_digest == manifest.weights_digest)
    return max((model.adapter_rank for model in (manifest, *sharing)), default=0)


def room_given(flags: Sequence[str], rank: int) -> int:
    """The rank that a worker has room for, started for `rank` with these flags of the user."""
    stated = given_value(flags, _RANK)
    if is_given(flags, _DISABLE):
        return 0
    if stated.isdigit() and (rank or is_given(flags, _ENABLE)):
        return int(stated)
    return _rounded(rank) if rank else 0


def adapter_flags(flags: Sequence[str], rank: int) -> tuple[str, ...]:
    """vLLM's flags for adapters up to this rank, those that the user has given left out."""
    if not rank or is_given(flags, _DISABLE):
        return ()
    wanted = {_RANK: str(_rounded(rank)), "--max-loras": str(_AT_ONCE), "--max-cpu-loras": str(_KEPT)}
    added = [part for flag, value in wanted.items() if not is_given(flags, flag) for part in (flag, value)]
    return (*(() if is_given(flags, _ENABLE) else (_ENABLE,)), *added)


def check_servable(
    layers: Iterable[Layer], rank: int, base: ModelDescription, support: AdapterSupport | None, flags: Sequence[str]
) -> None:
    """Raise RequestError where vLLM, with these flags of the user, cannot serve the adapter on this base.

    Where `support` is None, vLLM has the last word.
    """
    if "completion" not in base.capabilities:
        raise RequestError("adapters are served on models that write text only, and this one does not")
    if support is not None and not support.takes:
        raise RequestError(
            f"vLLM takes no LoRA adapters for {base.architecture}; merge it into the weights of its base"
        )
    if support is not None:
        _check_layers(layers, base.architecture, support)
    if is_given(flags, _DISABLE):
        raise RequestError(f"the server was started with {_DISABLE}, so models with an adapter cannot be served")
    most = room_given(flags, rank)
    if most < rank:
        raise RequestError(f"the adapter has rank {rank}, and the server was started with {_RANK} {most}")


def _check_layers(layers: Iterable[Layer], architecture: str, support: AdapterSupport) -> None:
    unserved = {layer.module for layer in layers} & _EMBEDDINGS - support.embeddings
    if unserved:
        raise RequestError(
            f"vLLM cannot change {', '.join(sorted(unserved))} of {architecture} by an adapter; train it without "
            "(target_modules), or merge it into the weights of its base"
        )


def _rounded(rank: int) -> int:
    return next(value for value in _RANKS if value >= rank)
