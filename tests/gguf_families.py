"""Tiny random models of transformers as GGUF files, written as llama.cpp's converters write them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Arrays = Mapping[str, Any]
_SUFFIXES = (".weight", ".bias")
_NAMES = ("blk.", "token_", "output", "position_", "per_layer_", "altup_")
Change = Callable[[str, Any, Any], Arrays | None]
"""From a name and values of a checkpoint, and the configuration, to names and values; None for no change."""

_SMALL: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 128,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,  # of 32 values, the least that vLLM's CPU attention takes
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "long_factor": [1.5 + i / 8 for i in range(16)],
    "short_factor": [1.0 + i / 16 for i in range(16)],
}
_GRANITE = {
    "embedding_multiplier": 12.0,
    "logits_scaling": 8.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.015625,
}


@dataclass(frozen=True)
class Family:
    """A model: its classes in transformers, and what its converter does besides renaming."""

    architecture: str
    model: str
    config: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    is_small: bool = True
    change: Change = lambda *_: None
    keys: Callable[[Any], Mapping[str, Any]] = lambda _: {}
    tensors: Callable[[Any], Arrays] = lambda _: {}
    tokenizer: str = "gpt2"
    lost: str = "(?!)"

    def configure(self) -> Any:
        """Return the configuration of the model."""
        import transformers

        settings = {**(_SMALL if self.is_small else {}), **self.settings}
        return getattr(transformers, self.config)(architectures=[self.model], **settings)

    def build(self, destination: Path) -> Any:
        """Save a random model with 32-bit floats and return its configuration."""
        import torch
        import transformers

        model = getattr(transformers, self.model)(self.configure()).float().eval()
        values = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                shift = 1.0 if name.endswith("norm.weight") and "gemma" not in self.architecture else 0.0
                parameter.copy_(torch.randn(parameter.shape, generator=values) * 0.08 + shift)
        model.save_pretrained(destination)
        model.config.allow_global_per_layer_attribute_access = True
        return model.config

    def write(self, snapshot: Path, config: Any, path: Path) -> None:
        """Write the saved model as a GGUF file with 32-bit floats."""
        from safetensors.numpy import load_file

        tensors = self.tensors_of(load_file(snapshot / "model.safetensors"), config)
        write_gguf(path, self.architecture, self.keys_of(config), tensors)

    def keys_of(self, config: Any) -> Mapping[str, Any]:
        """Return the keys of the file by their full names."""
        own = {**_keys(config), **self.keys(config)}
        return {
            "tokenizer.ggml.model": self.tokenizer,
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.padding_token_id": getattr(config, "pad_token_id", None) or 0,
            **{f"{self.architecture}.{key}": value for key, value in own.items()},
        }

    def tensors_of(self, saved: Arrays, config: Any) -> Arrays:
        import gguf

        kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == self.architecture)
        layers = int(getattr(config, "num_hidden_layers", 0) or config.n_layer)
        names = gguf.get_tensor_name_map(kind, layers)
        found: dict[str, Any] = {}
        for name, values in _stacked(saved).items():
            if re.search(self.lost, name):
                continue
            changed = self.change(name, values, config)
            for part, array in ({name: values} if changed is None else changed).items():
                known = (part, names.get_name(part, _SUFFIXES), names.get_name(part.partition(".")[2], _SUFFIXES))
                found[next(name for name in known if name and name.startswith(_NAMES))] = array
        return {**found, **self.tensors(config)}


def _stacked(saved: Arrays) -> Arrays:
    """Return the tensors with all experts of a layer, and other numbered matrices, stacked in one."""
    import numpy as np

    found: dict[str, Any] = {}
    stacks: dict[str, dict[int, Any]] = {}
    for name, values in saved.items():
        if expert := re.search(r"\.(experts|altup_\w+)\.(\d+)\.", name):
            stacks.setdefault(name.replace(expert[0], f".{expert[1]}."), {})[int(expert[2])] = values
        else:
            found[name] = values
    return found | {name: np.stack([stack[i] for i in range(len(stack))]) for name, stack in stacks.items()}


_KEYS = {
    "context_length": ("max_position_embeddings", "n_positions", "seq_length"),
    "embedding_length": ("hidden_size", "n_embd"),
    "block_count": ("num_hidden_layers", "n_layer"),
    "feed_forward_length": ("intermediate_size", "n_inner"),
    "attention.head_count": ("num_attention_heads", "n_head"),
    "attention.head_count_kv": ("num_key_value_heads", "num_kv_heads", "n_head"),
    "attention.key_length": ("head_dim",),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", "norm_eps"),
    "attention.layer_norm_epsilon": ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"),
    "expert_count": ("num_local_experts", "num_experts", "n_routed_experts"),
    "expert_used_count": ("num_experts_per_tok",),
    "logit_scale": ("logit_scale", "logits_scaling"),
    "attention.scale": ("attention_multiplier",),
    "embedding_scale": ("embedding_multiplier",),
    "residual_scale": ("residual_multiplier",),
    "attention.sliding_window": ("sliding_window",),
}
"""Keys of GGUF, and their names in config.json (llama.cpp's conversion/base.py, `set_gguf_parameters`)."""


def _keys(config: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, names in _KEYS.items():
        value = next((value for name in names if (value := getattr(config, name, None)) is not None), None)
        if value is not None:
            found[key] = value
    rope = getattr(config, "rope_parameters", None) or {}
    full = rope.get("full_attention", rope)
    if "rope_theta" in full:
        found["rope.freq_base"] = full["rope_theta"]
    if full.get("rope_type") == "yarn":
        found["rope.scaling.type"] = "yarn"
        found["rope.scaling.factor"] = full["factor"]
        found["rope.scaling.original_context_length"] = full["original_max_position_embeddings"]
        if "attention_factor" in full:
            found["rope.scaling.yarn_attn_factor"] = full["attention_factor"]
    if part := full.get("partial_rotary_factor"):
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        found["rope.dimension_count"] = int(part * head)
    return found


def write_gguf(path: Path, architecture: str, keys: Mapping[str, Any], tensors: Arrays, kind: str = "F32") -> None:
    """Write a GGUF file, whose matrices have the type `kind`."""
    import gguf

    matrices, vectors = gguf.GGMLQuantizationType[kind], gguf.GGMLQuantizationType.F32
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in keys.items():
        _add(writer, key, value)
    for name, values in tensors.items():
        chosen = matrices if values.ndim == 2 else vectors
        writer.add_tensor(name, gguf.quantize(values, chosen), raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, list(value))


def _permuted(name: str, values: Any, config: Any) -> Arrays | None:
    """Interleave the halves of each head of q and k (conversion/llama.py, `LlamaModel.permute`)."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
    if heads is None:
        return None
    shape = values.shape
    return {name: values.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)}


def _plus_one(name: str, values: Any, _: Any) -> Arrays | None:
    return {name: values + 1} if name.endswith("norm.weight") else None


def _granite(name: str, values: Any, config: Any) -> Arrays | None:
    """Separate gates from what they gate (conversion/granite.py, `GraniteMoeModel`)."""
    if name.endswith("shared_mlp.output_linear.weight") and not config.num_local_experts:
        return {f"blk.{name.split('.')[2]}.ffn_down.weight": values}
    if not name.endswith("input_linear.weight"):
        return _permuted(name, values, config)
    half = values.shape[-2] // 2
    layer = name.split(".")[2]
    kind = "_exps" if "sparse" in name else "_shexp" if config.num_local_experts else ""
    gate, up = values[..., :half, :], values[..., half:, :]
    return {f"blk.{layer}.ffn_gate{kind}.weight": gate.copy(), f"blk.{layer}.ffn_up{kind}.weight": up.copy()}


def _separated(name: str, values: Any, config: Any) -> Arrays | None:
    """Order queries, keys and values one after the other (conversion/falcon.py, conversion/bloom.py)."""
    if "query_key_value" not in name:
        return None
    import numpy as np

    heads = config.num_attention_heads
    groups = getattr(config, "num_kv_heads", heads)
    size = config.hidden_size // heads
    by_group = values.reshape(groups, heads // groups + 2, size, -1)
    parts = [by_group[:, :-2], by_group[:, -2], by_group[:, -1]]
    return {name: np.concatenate([part.reshape(-1, *values.shape[1:]) for part in parts])}


def _transposed(name: str, values: Any, _: Any) -> Arrays | None:
    return {name: values.T.copy()} if re.search(r"c_(attn|proj|fc)\.weight$", name) else None


def _squeezed(name: str, values: Any, _: Any) -> Arrays | None:
    if name.endswith("conv.conv.weight"):
        return {name: values.reshape(values.shape[0], values.shape[2])}
    if expert := re.search(r"experts\.(w\d)", name):
        part = {"w1": "gate", "w2": "down", "w3": "up"}[expert[1]]
        return {f"blk.{name.split('.')[2]}.ffn_{part}_exps.weight": values}
    return {f"blk.{name.split('.')[2]}.exp_probs_b.bias": values} if name.endswith("expert_bias") else None


def _scores(name: str, values: Any, _: Any) -> Arrays | None:
    return {f"blk.{name.split('.')[2]}.exp_probs_b.bias": values} if "e_score" in name else None


def _shared_gate(name: str, values: Any, _: Any) -> Arrays | None:
    return {name: values.reshape(-1)} if "shared_expert_gate" in name else None


def _after_padding(name: str, values: Any, _: Any) -> Arrays | None:
    return {name: values[2:].copy()} if "position_embeddings" in name else None


def _llama4(name: str, values: Any, _: Any) -> Arrays | None:
    """Separate gates from what they gate, and swap inputs and outputs of experts (conversion/llama.py)."""
    layer, part = name.split(".")[2] if ".layers." in name else "", name.partition("feed_forward.")[2]
    if part == "experts.down_proj":
        return {f"blk.{layer}.ffn_down_exps.weight": values.swapaxes(-1, -2).copy()}
    if part != "experts.gate_up_proj":
        return None
    half, swapped = values.shape[-1] // 2, values.swapaxes(-1, -2)
    gate, up = swapped[:, :half].copy(), swapped[:, half:].copy()
    return {f"blk.{layer}.ffn_gate_exps.weight": gate, f"blk.{layer}.ffn_up_exps.weight": up}


def _gpt_oss(name: str, values: Any, _: Any) -> Arrays | None:
    """Separate gates from what they gate, which alternate, and swap inputs and outputs (conversion/gpt_oss.py)."""
    layer = name.split(".")[2] if ".layers." in name else ""
    if "sinks" in name:
        return {f"blk.{layer}.attn_sinks.weight": values}
    if "experts" not in name:
        return None
    suffix = "bias" if name.endswith("_bias") else "weight"
    if suffix == "weight":
        values = values.swapaxes(-1, -2)
    if "down_proj" in name:
        return {f"blk.{layer}.ffn_down_exps.{suffix}": values.copy()}
    gate, up = (values[:, first::2].copy() for first in (0, 1))
    return {f"blk.{layer}.ffn_gate_exps.{suffix}": gate, f"blk.{layer}.ffn_up_exps.{suffix}": up}


def _deepseek(name: str, values: Any, config: Any) -> Arrays | None:
    """Separate the halves of a layer head by head, and transpose the first (conversion/deepseek.py)."""
    if not name.endswith("kv_b_proj.weight"):
        return _scores(name, values, config)
    layer, heads = name.split(".")[2], config.num_attention_heads
    by_head = values.reshape(heads, -1, values.shape[1])
    keys, rest = by_head[:, : config.qk_nope_head_dim], by_head[:, config.qk_nope_head_dim :]
    return {
        f"blk.{layer}.attn_k_b.weight": keys.swapaxes(1, 2).copy(),
        f"blk.{layer}.attn_v_b.weight": rest.copy(),
    }


def _deepseek_keys(config: Any) -> dict[str, Any]:
    return {
        "attention.head_count_kv": 1,
        "attention.kv_lora_rank": config.kv_lora_rank,
        "attention.key_length": config.kv_lora_rank + config.qk_rope_head_dim,
        "attention.value_length": config.kv_lora_rank,
        "attention.key_length_mla": config.qk_nope_head_dim + config.qk_rope_head_dim,
        "attention.value_length_mla": config.v_head_dim,
        "rope.dimension_count": config.qk_rope_head_dim,
        "leading_dense_block_count": config.first_k_dense_replace,
        "expert_shared_count": config.n_shared_experts,
        "expert_weights_scale": config.routed_scaling_factor,
        "expert_group_count": config.n_group,
        "expert_group_used_count": config.topk_group,
    } | ({"attention.q_lora_rank": config.q_lora_rank} if config.q_lora_rank else {})


def _state_space(name: str, values: Any, config: Any) -> Arrays | None:
    """Store -exp of the logarithm, and drop dimensions of size 1 (conversion/mamba.py)."""
    import numpy as np

    is_second = "granite" in config.model_type
    if ".layers." not in name:
        return None
    part, layer = name.rpartition("layers.")[2].partition(".")[2].partition(".")[2], name.split(".")[2]
    if part == "A_log":
        return {f"blk.{layer}.ssm_a": -np.exp(values).reshape((-1, 1) if is_second else values.shape)}
    if part == "D":
        return {f"blk.{layer}.ssm_d": values.reshape((-1, 1) if is_second else values.shape)}
    if part == "dt_bias":
        return {f"blk.{layer}.ssm_dt.bias": values}
    if part == "conv1d.weight":
        return {name: values.reshape(values.shape[0], values.shape[2])}
    if is_second and part == "norm.weight":
        return {f"blk.{layer}.ssm_norm.weight": values.reshape(config.mamba_n_groups, -1)}
    return _granite(name, values, config) if is_second else None


def _granite_keys(config: Any) -> dict[str, Any]:
    return {
        "attention.head_count_kv": [0, 2],
        "ssm.conv_kernel": config.mamba_d_conv,
        "ssm.state_size": config.mamba_d_state,
        "ssm.group_count": config.mamba_n_groups,
        "ssm.inner_size": config.mamba_n_heads * config.mamba_d_head,
        "ssm.time_step_rank": config.mamba_n_heads,
        "rope.scaling.finetuned": False,
    }


def _gemma4(name: str, values: Any, _: Any) -> Arrays | None:
    layer = name.split(".")[2] if ".layers." in name else ""
    parts = {
        "layer_scalar": "layer_output_scale.weight",
        "router.scale": "ffn_gate_inp.scale",
        "router.per_expert_scale": "ffn_down_exps.scale",
        "experts.gate_up_proj": "ffn_gate_up_exps.weight",
        "experts.down_proj": "ffn_down_exps.weight",
    }
    return next(({f"blk.{layer}.{known}": values} for part, known in parts.items() if name.endswith(part)), None)


def _gemma4_keys(config: Any) -> dict[str, Any]:
    full = config.per_layer_config[config.layer_types.index("full_attention")]
    slides = [kind == "sliding_attention" for kind in config.layer_types]
    width, shared = config.intermediate_size, config.num_hidden_layers - config.num_kv_shared_layers
    return {
        "attention.sliding_window_pattern": slides,
        "attention.key_length": full.head_dim,
        "attention.key_length_swa": config.head_dim,
        "attention.head_count_kv": [
            config.num_key_value_heads if slide else full.num_key_value_heads for slide in slides
        ],
        "attention.shared_kv_layers": config.num_kv_shared_layers,
        "embedding_length_per_layer_input": config.hidden_size_per_layer_input,
        "feed_forward_length": [
            2 * width if config.use_double_wide_mlp and layer >= shared else width
            for layer in range(config.num_hidden_layers)
        ],
        "rope.freq_base_swa": config.rope_parameters["sliding_attention"]["rope_theta"],
        **({"final_logit_softcapping": config.final_logit_softcapping} if config.final_logit_softcapping else {}),
        **(
            {"expert_used_count": config.top_k_experts, "expert_feed_forward_length": config.moe_intermediate_size}
            if config.enable_moe_block
            else {}
        ),
    }


def _gemma4_divisors(config: Any) -> Arrays:
    import numpy as np

    size = config.per_layer_config[config.layer_types.index("full_attention")].head_dim // 2
    return {"rope_freqs.weight": np.array([1.0] * (size // 4) + [1e30] * (size - size // 4), "float32")}


def _gemma3n(name: str, values: Any, _: Any) -> Arrays | None:
    if "altup_" in name:
        return {name: values}
    if name.endswith("correct_output_scale"):
        return {f"blk.{name.split('.')[2]}.altup_correct_scale.weight": values}
    return None


def _gemma3n_keys(config: Any) -> dict[str, Any]:
    from statistics import NormalDist

    shares = config.activation_sparsity_pattern
    return {
        "altup.active_idx": config.altup_active_idx,
        "altup.num_inputs": config.altup_num_inputs,
        "embedding_length_per_layer_input": config.hidden_size_per_layer_input,
        "attention.shared_kv_layers": config.num_kv_shared_layers,
        "activation_sparsity_scale": [NormalDist().inv_cdf(share) if share else float("-inf") for share in shares],
        "final_logit_softcapping": config.final_logit_softcapping,
        "rope.freq_base_swa": config.rope_parameters["sliding_attention"]["rope_theta"],
    }


def _qwen_next(name: str, values: Any, config: Any) -> Arrays | None:
    """Put heads of values or the parts of queries where llama.cpp has them (conversion/qwen.py)."""
    import numpy as np

    layer, part = name.split(".")[2] if ".layers." in name else "", name.partition("linear_attn.")[2]
    if not part:
        return _plus_one(name, values, config) or _shared_gate(name, values, config)
    keys, heads, key_size, size = (
        config.linear_num_key_heads,
        config.linear_num_value_heads,
        config.linear_key_head_dim,
        config.linear_value_head_dim,
    )

    def tiled(rows: Any) -> Any:
        if "next" in config.model_type:
            return rows
        return rows.reshape(keys, heads // keys, -1, *rows.shape[1:]).swapaxes(0, 1).reshape(rows.shape).copy()

    before = 2 * keys * key_size
    if part == "in_proj_qkvz.weight":
        by_head = values.reshape(keys, -1, values.shape[1])
        split = np.split(by_head, np.cumsum([key_size, key_size, heads // keys * size]), axis=1)
        q, k, v, z = (each.reshape(-1, values.shape[1]) for each in split)
        return {f"blk.{layer}.attn_qkv.weight": np.concatenate([q, k, v]), f"blk.{layer}.attn_gate.weight": z.copy()}
    if part in {"in_proj_qkv.weight", "conv1d.weight"}:
        values = values.reshape(values.shape[0], values.shape[-1])
        values = np.concatenate([values[:before], tiled(values[before:])])
        return {f"blk.{layer}.{'attn_qkv' if 'qkv' in part else 'ssm_conv1d'}.weight": values}
    if part == "out_proj.weight":
        return {f"blk.{layer}.ssm_out.weight": tiled(values.T).T.copy()}
    known = {
        "A_log": "ssm_a",
        "dt_bias": "ssm_dt.bias",
        "in_proj_a.weight": "ssm_alpha.weight",
        "in_proj_b.weight": "ssm_beta.weight",
        "in_proj_ba.weight": "ssm_ba.weight",
        "in_proj_z.weight": "attn_gate.weight",
        "norm.weight": "ssm_norm.weight",
    }
    changed = values if part in {"in_proj_ba.weight", "norm.weight"} else tiled(values)
    return {f"blk.{layer}.{known[part]}": -np.exp(changed) if part == "A_log" else changed}


def _qwen_next_keys(config: Any) -> dict[str, Any]:
    return {
        "ssm.conv_kernel": config.linear_conv_kernel_dim,
        "ssm.state_size": config.linear_key_head_dim,
        "ssm.group_count": config.linear_num_key_heads,
        "ssm.time_step_rank": config.linear_num_value_heads,
        "ssm.inner_size": config.linear_num_value_heads * config.linear_value_head_dim,
        "full_attention_interval": 4,
    }


def _minimax(name: str, values: Any, config: Any) -> Arrays | None:
    if expert := re.search(r"experts\.(w\d)", name):
        part = {"w1": "gate", "w2": "down", "w3": "up"}[expert[1]]
        return {f"blk.{name.split('.')[2]}.ffn_{part}_exps.weight": values}
    return _scores(name, values, config)


def _rope_freqs(config: Any) -> Arrays:
    """Return what Llama 3's frequencies are divided by (conversion/llama.py, `generate_extra_tensors`)."""
    import numpy as np

    rope, size = config.rope_parameters, config.head_dim
    frequencies = rope["rope_theta"] ** (-np.arange(0, size, 2) / size)
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    turns = rope["original_max_position_embeddings"] * frequencies / (2 * np.pi)
    smooth = np.clip((turns - low) / (high - low), 0, 1) if high > low else (turns > low).astype(float)
    return {"rope_freqs.weight": (1 / ((1 - smooth) / factor + smooth)).astype("float32")}


def _long_factors(config: Any) -> Arrays:
    import numpy as np

    rope = config.rope_parameters
    return {f"rope_factors_{kind}.weight": np.array(rope[f"{kind}_factor"], "float32") for kind in ("long", "short")}


def _original_context(config: Any) -> dict[str, Any]:
    return {"rope.scaling.original_context_length": config.original_max_position_embeddings}


def _pattern(config: Any) -> dict[str, Any]:
    return {"attention.sliding_window_pattern": [kind == "sliding_attention" for kind in config.layer_types]}


def _causal(model: str, architecture: str, **more: Any) -> Family:
    return Family(architecture, f"{model}ForCausalLM", f"{model}Config", **more)


_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
_TWO = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 128, "vocab_size": 128}

_MLA = {
    "num_key_value_heads": 4,
    "q_lora_rank": None,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 32,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 2.5,
}
_HYBRID = {
    "layer_types": ["mamba", "attention"],
    "mamba_n_heads": 4,
    "mamba_d_head": 64,
    "mamba_d_state": 16,
    "mamba_n_groups": 1,
    "mamba_expand": 2,
    "position_embedding_type": "nope",
}
_MINISTRAL = {
    "rope_type": "yarn",
    "rope_theta": 1000000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale_all_dim": 1.0,
    "mscale": 1.0,
    "llama_4_scaling_beta": 0.1,
}
_GEMMA4 = {"head_dim": 32, "global_head_dim": 64}
_LINEAR = {
    "head_dim": 32,
    "num_hidden_layers": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}

FAMILIES: dict[str, Family] = {
    "llama": _causal(
        "Llama",
        "llama",
        change=_permuted,
        settings={"rope_parameters": _LLAMA3, "tie_word_embeddings": True},
        tensors=_rope_freqs,
    ),
    "llama-bias": _causal(
        "Llama", "llama", change=_permuted, settings={"attention_bias": True, "mlp_bias": True, "head_dim": 32}
    ),
    "mistral": _causal("Mistral", "llama", change=_permuted, settings={"sliding_window": None}),
    "mixtral": _causal("Mixtral", "llama", change=_permuted, settings=_LOCAL | {"sliding_window": None}),
    "llama4": Family(
        "llama4",
        "Llama4ForCausalLM",
        "Llama4TextConfig",
        settings=_LOCAL
        | {
            "num_hidden_layers": 4,
            "num_experts_per_tok": 1,  # the only number that vLLM takes
            "head_dim": 32,
            "intermediate_size": 48,
            "intermediate_size_mlp": 96,
            "interleave_moe_layer_step": 2,
            "rope_parameters": _LLAMA3
            | {"factor": 16.0, "high_freq_factor": 1.0, "original_max_position_embeddings": 8192},
        },
        change=_llama4,
        keys=lambda config: {
            "feed_forward_length": config.intermediate_size_mlp,
            "expert_feed_forward_length": config.intermediate_size,
            "interleave_moe_layer_step": config.interleave_moe_layer_step,
        },
        tensors=_rope_freqs,
    ),
    "smollm3": _causal("SmolLM3", "smollm3", change=_permuted, settings={"num_hidden_layers": 4}),
    "arcee": _causal("Arcee", "arcee", change=_permuted, settings={"rope_parameters": {"rope_theta": 10000.0}}),
    "exaone4": _causal(
        "Exaone4",
        "exaone4",
        settings={
            "num_hidden_layers": 4,
            "sliding_window": 32,
            "sliding_window_pattern": 4,
            "rope_parameters": _LLAMA3,
            "head_dim": 32,
        },
        keys=_pattern,
        tensors=_rope_freqs,
    ),
    "ernie4_5": _causal("Ernie4_5", "ernie4_5", settings={"head_dim": 32}),
    "hunyuan-dense": _causal("HunYuanDenseV1", "hunyuan-dense", settings={"head_dim": 32}),
    "mistral3": _causal(
        "Ministral3",
        "mistral3",
        change=_permuted,
        settings={"head_dim": 32, "rope_parameters": _MINISTRAL},
        keys=lambda config: {
            "attention.temperature_scale": config.rope_parameters["llama_4_scaling_beta"],
            "rope.scaling.yarn_log_multiplier": config.rope_parameters["mscale_all_dim"],
        },
    ),
    "qwen2": _causal("Qwen2", "qwen2"),
    "qwen2moe": _causal(
        "Qwen2Moe", "qwen2moe", change=_shared_gate, settings=_MOE | {"shared_expert_intermediate_size": 48}
    ),
    "qwen3": _causal("Qwen3", "qwen3", settings={"head_dim": 32}),
    "qwen3moe": _causal("Qwen3Moe", "qwen3moe", settings=_MOE | {"head_dim": 32, "norm_topk_prob": True}),
    "seed_oss": _causal("SeedOss", "seed_oss", settings={"head_dim": 32}),
    "gemma": _causal("Gemma", "gemma", change=_plus_one, settings={"head_dim": 32}),
    "gemma2": _causal(
        "Gemma2",
        "gemma2",
        change=_plus_one,
        settings={"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 32},
        keys=lambda config: {
            "attn_logit_softcapping": config.attn_logit_softcapping,
            "final_logit_softcapping": config.final_logit_softcapping,
        },
    ),
    "gemma3": Family(
        "gemma3",
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        change=_plus_one,
        settings={"head_dim": 32, "query_pre_attn_scalar": 32, "num_hidden_layers": 7, "sliding_window": 32},
    ),
    "phi2": _causal(
        "Phi",
        "phi2",
        settings={"num_key_value_heads": 4, "intermediate_size": 512, "partial_rotary_factor": 0.5},
    ),
    "phi3": _causal(
        "Phi3",
        "phi3",
        settings={"sliding_window": None, "original_max_position_embeddings": 256},
        keys=_original_context,
    ),
    "phi3-long": _causal(
        "Phi3",
        "phi3",
        settings={"sliding_window": None, "original_max_position_embeddings": 64, "rope_parameters": _LONG},
        keys=_original_context,
        tensors=_long_factors,
    ),
    "granite": _causal("Granite", "granite", change=_permuted, settings=_GRANITE | {"tie_word_embeddings": True}),
    "granitemoe": _causal("GraniteMoe", "granitemoe", change=_granite, settings=_GRANITE | _LOCAL),
    "granitemoeshared": _causal(
        "GraniteMoeShared",
        "granitemoe",
        change=_granite,
        settings=_GRANITE | _LOCAL | {"shared_intermediate_size": 48},
    ),
    "command-r": _causal("Cohere", "command-r", settings={"logit_scale": 0.0625}),
    "command-r-plus": _causal("Cohere", "command-r", settings={"logit_scale": 0.8, "use_qk_norm": True}),
    "command-r7b": _causal(
        "Cohere2", "cohere2", settings={"logit_scale": 0.25, "num_hidden_layers": 4, "sliding_window": 32}
    ),
    "olmo": _causal(
        "Olmo",
        "olmo",
        change=_permuted,
        settings={"clip_qkv": 8.0},
        keys=lambda config: {"attention.clamp_kqv": config.clip_qkv},
    ),
    "olmo2": _causal("Olmo2", "olmo2"),
    "olmo3": _causal(
        "Olmo3",
        "olmo2",
        settings={
            "num_hidden_layers": 4,
            "sliding_window": 32,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 500000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
                "attention_factor": 1.2,
            },
        },
        keys=_pattern,
    ),
    "olmoe": _causal("Olmoe", "olmoe", settings={"num_experts": 4, "num_experts_per_tok": 2}),
    "starcoder2": _causal("Starcoder2", "starcoder2"),
    "falcon-7b": Family(
        "falcon",
        "FalconForCausalLM",
        "FalconConfig",
        _TWO | {"multi_query": True, "num_kv_heads": 1, "parallel_attn": True, "bias": False, "alibi": False},
        is_small=False,
        change=_separated,
        keys=lambda config: {"feed_forward_length": 4 * config.hidden_size, "attention.head_count_kv": 1},
    ),
    "falcon-40b": Family(
        "falcon",
        "FalconForCausalLM",
        "FalconConfig",
        _TWO | {"num_kv_heads": 2, "new_decoder_architecture": True, "bias": False, "alibi": False},
        is_small=False,
        change=_separated,
        keys=lambda config: {"feed_forward_length": 4 * config.hidden_size},
    ),
    "bloom": Family(
        "bloom",
        "BloomForCausalLM",
        "BloomConfig",
        {"vocab_size": 128, "hidden_size": 128, "n_layer": 2, "n_head": 4},
        is_small=False,
        change=_separated,
        keys=lambda config: {"feed_forward_length": 512, "context_length": 256, "attention.head_count_kv": 4},
    ),
    "gpt2": Family(
        "gpt2",
        "GPT2LMHeadModel",
        "GPT2Config",
        {"vocab_size": 128, "n_embd": 128, "n_layer": 2, "n_head": 4, "n_positions": 256},
        is_small=False,
        change=_transposed,
        keys=lambda config: {"feed_forward_length": 4 * config.n_embd},
    ),
    "stablelm": _causal(
        "StableLm",
        "stablelm",
        settings={"num_key_value_heads": 4, "use_qkv_bias": True, "partial_rotary_factor": 0.25},
    ),
    "nemotron": _causal("Nemotron", "nemotron", change=_plus_one, settings={"partial_rotary_factor": 0.5}),
    "lfm2": _causal(
        "Lfm2",
        "lfm2",
        change=_squeezed,
        settings={
            "layer_types": ["conv", "full_attention"],
            "block_auto_adjust_ff_dim": False,
            "conv_L_cache": 3,
            "block_ff_dim": 96,
        },
        keys=lambda config: {"attention.head_count_kv": [0, 2], "shortconv.l_cache": 3},
    ),
    "lfm2moe": _causal(
        "Lfm2Moe",
        "lfm2moe",
        change=_squeezed,
        settings=_MOE | {"layer_types": ["conv", "full_attention"], "conv_L_cache": 3, "num_dense_layers": 1},
        keys=lambda config: {
            "attention.head_count_kv": [0, 2],
            "shortconv.l_cache": 3,
            "leading_dense_block_count": 1,
        },
    ),
    "glm4": _causal("Glm4", "glm4", settings={"head_dim": 32, "partial_rotary_factor": 0.5, "attention_bias": True}),
    "glm4moe": _causal(
        "Glm4Moe",
        "glm4moe",
        change=_scores,
        settings={
            "head_dim": 32,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "first_k_dense_replace": 1,
            "partial_rotary_factor": 0.5,
            "attention_bias": True,
            "use_qk_norm": True,
            "routed_scaling_factor": 1.5,
        },
        keys=lambda config: {
            "leading_dense_block_count": 1,
            "expert_weights_scale": 1.5,
            "expert_shared_count": 1,
        },
    ),
    "gpt-oss": _causal(
        "GptOss",
        "gpt-oss",
        change=_gpt_oss,
        settings=_LOCAL
        | {
            "head_dim": 32,
            "sliding_window": 32,
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 4.0,
                "rope_theta": 150000.0,
                "truncate": False,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "deepseek-2": _causal("DeepseekV2", "deepseek2", change=_deepseek, settings=_MLA, keys=_deepseek_keys),
    "deepseek-3": _causal(
        "DeepseekV3",
        "deepseek2",
        change=_deepseek,
        settings=_MLA | {"q_lora_rank": 32, "n_group": 2},
        keys=lambda config: _deepseek_keys(config) | {"expert_weights_norm": True},
    ),
    "minimax-m2": _causal(
        "MiniMaxM2", "minimax-m2", change=_minimax, settings=_LOCAL | {"head_dim": 32, "rotary_dim": 16}
    ),
    "mamba": Family(
        "mamba",
        "MambaForCausalLM",
        "MambaConfig",
        {"vocab_size": 128, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 16},
        is_small=False,
        change=_state_space,
        keys=lambda config: {
            "context_length": 1 << 20,
            "feed_forward_length": 0,
            "attention.layer_norm_rms_epsilon": config.layer_norm_epsilon,
            "ssm.conv_kernel": config.conv_kernel,
            "ssm.state_size": config.state_size,
            "ssm.inner_size": config.intermediate_size,
            "ssm.time_step_rank": config.time_step_rank,
        },
    ),
    "granite-4": _causal(
        "GraniteMoeHybrid",
        "granitehybrid",
        change=_state_space,
        settings=_GRANITE | _LOCAL | _HYBRID | {"shared_intermediate_size": 48},
        keys=_granite_keys,
    ),
    "granite-4-dense": _causal(
        "GraniteMoeHybrid",
        "granitehybrid",
        change=_state_space,
        settings=_GRANITE
        | _HYBRID
        | {"num_local_experts": 0, "num_experts_per_tok": 0, "shared_intermediate_size": 96},
        keys=_granite_keys,
    ),
    "gemma4-e": Family(
        "gemma4",
        "Gemma4ForCausalLM",
        "Gemma4TextConfig",
        _GEMMA4
        | {
            "num_hidden_layers": 12,
            "vocab_size_per_layer_input": 128,
            "hidden_size_per_layer_input": 16,
            "num_kv_shared_layers": 6,
            "use_double_wide_mlp": True,
            "final_logit_softcapping": 30.0,
        },
        change=_gemma4,
        keys=_gemma4_keys,
        tensors=_gemma4_divisors,
    ),
    "gemma4-moe": Family(
        "gemma4",
        "Gemma4ForCausalLM",
        "Gemma4TextConfig",
        _GEMMA4
        | {
            "num_hidden_layers": 6,
            "hidden_size_per_layer_input": 0,
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 1,
            "enable_moe_block": True,
            "num_experts": 4,
            "top_k_experts": 2,
            "moe_intermediate_size": 32,
        },
        change=_gemma4,
        keys=_gemma4_keys,
        tensors=_gemma4_divisors,
    ),
    "gemma3n": Family(
        "gemma3n",
        "Gemma3nForCausalLM",
        "Gemma3nTextConfig",
        {
            "head_dim": 32,
            "num_hidden_layers": 10,
            "vocab_size_per_layer_input": 128,
            "hidden_size_per_layer_input": 16,
            "num_kv_shared_layers": 4,
            "laurel_rank": 8,
            "sliding_window": 32,
            "activation_sparsity_pattern": [0.95] * 5 + [0.0] * 5,
        },
        change=_gemma3n,
        keys=_gemma3n_keys,
    ),
    "qwen35": Family(
        "qwen35",
        "Qwen3_5ForCausalLM",
        "Qwen3_5TextConfig",
        _LINEAR,
        change=_qwen_next,
        keys=_qwen_next_keys,
    ),
    "qwen3next": _causal(
        "Qwen3Next",
        "qwen3next",
        change=_qwen_next,
        settings=_LINEAR | _MOE | {"shared_expert_intermediate_size": 32},
        keys=_qwen_next_keys,
    ),
    "embeddinggemma": Family(
        "gemma-embedding",
        "Gemma3TextModel",
        "Gemma3TextConfig",
        {
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "num_hidden_layers": 7,
            "sliding_window": 32,
            "use_bidirectional_attention": True,
        },
        change=_plus_one,
        keys=lambda _: {"attention.sliding_window": 32},
    ),
    "bert": Family(
        "bert",
        "BertModel",
        "BertConfig",
        _TWO | {"intermediate_size": 96, "max_position_embeddings": 64},
        is_small=False,
        tokenizer="bert",
        lost="pooler",
    ),
    "xlm-roberta": Family(
        "bert",
        "XLMRobertaModel",
        "XLMRobertaConfig",
        _TWO | {"intermediate_size": 96, "max_position_embeddings": 66, "type_vocab_size": 1, "pad_token_id": 1},
        is_small=False,
        change=_after_padding,
        tokenizer="t5",
        lost="pooler",
    ),
    "modern-bert": Family(
        "modern-bert",
        "ModernBertModel",
        "ModernBertConfig",
        _TWO
        | {"num_hidden_layers": 4, "intermediate_size": 96, "max_position_embeddings": 64, "local_attention": 16}
        | {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2},
        is_small=False,
        keys=lambda config: {
            "attention.sliding_window": config.local_attention,
            "attention.sliding_window_pattern": 3,
            "rope.freq_base_swa": config.rope_parameters["sliding_attention"]["rope_theta"],
        },
    ),
    "nomic-bert": Family(
        "nomic-bert",
        "NomicBertModel",
        "NomicBertConfig",
        _TWO | {"intermediate_size": 96, "max_position_embeddings": 64},
        is_small=False,
        tokenizer="bert",
        lost="pooler",
    ),
}
"""By a name for the test."""
