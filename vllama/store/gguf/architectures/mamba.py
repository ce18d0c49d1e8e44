"""State spaces: Mamba, and Granite 4, which has them in most of its layers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from vllama.store.gguf.architectures.decoder import KV_HEADS, NAMES, decoder_config, is_tied, vocabulary_size
from vllama.store.gguf.architectures.granite import MOE_NAMES, SHARED, multipliers
from vllama.store.gguf.architectures.llama import ROTARY
from vllama.store.gguf.architectures.table import Architecture, Found, Rule, ignored, reshaped
from vllama.store.gguf.placing import PlacedTensor, place
from vllama.store.gguf.reading import Array, GgufFile


def to_logarithm(values: Array) -> Array:
    """Undo the converter's -exp."""
    return np.log(-values)


def convolution(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape with the dimension that the converter removed; biases are as they were."""
    return (shape[0], 1, shape[1]) if len(shape) == 2 else shape


def _mixer(name: str) -> dict[str, Rule]:
    """Return the rules for the tensors that both kinds have."""
    return {
        "blk.{i}.ssm_in": f"{name}.in_proj",
        "blk.{i}.ssm_conv1d": reshaped(f"{name}.conv1d", convolution),
        "blk.{i}.ssm_out": f"{name}.out_proj",
    }


_MAMBA = "backbone.layers.{i}.mixer"
_MAMBA_NAMES: dict[str, Rule] = {
    **_mixer(_MAMBA),
    "token_embd": "backbone.embeddings",
    "output_norm": "backbone.norm_f",
    "output": "lm_head",
    "blk.{i}.attn_norm": "backbone.layers.{i}.norm",
    "blk.{i}.ssm_x": f"{_MAMBA}.x_proj",
    "blk.{i}.ssm_dt": f"{_MAMBA}.dt_proj",
    "blk.{i}.ssm_a": lambda found: [place(found.named(_MAMBA + ".A_log"), found.tensor, change=to_logarithm)],
    "blk.{i}.ssm_d": _MAMBA + ".D",
}


def _mamba(file: GgufFile) -> dict[str, Any]:
    hidden, inner = int(file.key("{arch}.embedding_length")), int(file.key("{arch}.ssm.inner_size"))
    return {
        "architectures": ["MambaForCausalLM"],
        "model_type": "mamba",
        "vocab_size": vocabulary_size(file),
        "hidden_size": hidden,
        "intermediate_size": inner,
        "expand": inner // hidden,
        "num_hidden_layers": int(file.key("{arch}.block_count")),
        "state_size": int(file.key("{arch}.ssm.state_size")),
        "conv_kernel": int(file.key("{arch}.ssm.conv_kernel")),
        "time_step_rank": int(file.key("{arch}.ssm.time_step_rank")),
        "layer_norm_epsilon": float(file.key("{arch}.attention.layer_norm_rms_epsilon")),
        "use_bias": False,
        "use_conv_bias": True,
        "max_position_embeddings": int(file.key("{arch}.context_length")),
        "tie_word_embeddings": is_tied(file),
    }


_GRANITE = "model.layers.{i}.mamba"


def _vector(part: str, *, is_logarithm: bool = False) -> Rule:
    """Return the rule for one value per head, or for a norm by groups: both are vectors in the snapshot."""

    def rule(found: Found) -> Iterable[PlacedTensor]:
        name = (
            found.named(f"{_GRANITE}.{part}") if found.suffix != ".bias" else f"model.layers.{found.block}.mamba.{part}"
        )
        size = int(np.prod(found.tensor.shape))
        yield place(name, found.tensor, shape=(size,), change=to_logarithm if is_logarithm else None)

    return rule


def _dense(found: Found) -> Iterable[PlacedTensor]:
    """Join gates and what they gate of a model without experts, whose layers are shared ones as well."""
    yield place(found.named(f"{SHARED}.input_linear"), found.tensor, found.sibling("ffn_up"))


_HYBRID_NAMES: dict[str, Rule] = {
    **NAMES,
    **ROTARY,
    **MOE_NAMES,
    **_mixer(_GRANITE),
    "blk.{i}.ssm_a": _vector("A_log", is_logarithm=True),
    "blk.{i}.ssm_d": _vector("D"),
    "blk.{i}.ssm_dt": _vector("dt_bias"),
    "blk.{i}.ssm_norm": _vector("norm"),
    "blk.{i}.ffn_gate": _dense,
    "blk.{i}.ffn_up": ignored,  # with the gates
    "blk.{i}.ffn_down": f"{SHARED}.output_linear",
}


def _granitehybrid(file: GgufFile) -> dict[str, Any]:
    inner, ranks = int(file.key("{arch}.ssm.inner_size")), int(file.key("{arch}.ssm.time_step_rank"))
    count = int(file.key("{arch}.expert_count", 0))
    config = decoder_config(
        file,
        "GraniteMoeHybridForCausalLM",
        "granitemoehybrid",
        layer_types=["attention" if count else "mamba" for count in file.key(KV_HEADS)],
        position_embedding_type="rope" if file.key("{arch}.rope.scaling.finetuned", False) else "nope",
        mamba_n_heads=ranks,
        mamba_d_head=inner // ranks,
        mamba_d_state=int(file.key("{arch}.ssm.state_size")),
        mamba_d_conv=int(file.key("{arch}.ssm.conv_kernel")),
        mamba_n_groups=int(file.key("{arch}.ssm.group_count")),
        mamba_expand=inner // int(file.key("{arch}.embedding_length")),
        mamba_conv_bias=True,
        mamba_proj_bias=False,
        num_local_experts=count,
        num_experts_per_tok=int(file.key("{arch}.expert_used_count", 0)) if count else 0,
        **multipliers(file),
    )
    down = "ffn_down_shexp" if count else "ffn_down"
    config["shared_intermediate_size"] = file.tensors[f"blk.0.{down}.weight"].shape[1]
    return config


TABLE = {
    "granitehybrid": Architecture(_granitehybrid, _HYBRID_NAMES),
    "mamba": Architecture(_mamba, _MAMBA_NAMES),
}
