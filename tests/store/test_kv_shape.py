"""What one request holds in the KV cache; the figures are those that vLLM prints for these models."""

from __future__ import annotations

from typing import Any

import pytest

from vllama.store.kv_shape import KvShape, kv_shape

LLAMA_8B: dict[str, Any] = {
    "model_type": "llama",
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_size": 4096,
}
DEEPSEEK_V3 = {
    "model_type": "deepseek_v3",
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "hidden_size": 7168,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
}
QWEN3_NEXT = {
    "model_type": "qwen3_next",
    "num_hidden_layers": 48,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "hidden_size": 2048,
    "full_attention_interval": 4,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
}


@pytest.mark.parametrize(
    ("config", "per_token"),
    [
        (LLAMA_8B, 2 * 32 * 8 * 128),
        (LLAMA_8B | {"num_key_value_heads": None}, 2 * 32 * 32 * 128),
        (LLAMA_8B | {"head_dim": 64}, 2 * 32 * 8 * 64),
        ({"n_layer": 12, "n_head": 12, "n_embd": 768}, 2 * 12 * 768),
        ({"n_layer": 24, "n_head": 16, "n_embd": 2048, "multi_query": True}, 2 * 24 * 128),
        (DEEPSEEK_V3, 61 * 576),
        ({}, 0),
    ],
)
def test_full_attention_costs_the_same_for_every_token(config: dict[str, Any], per_token: int) -> None:
    shape = kv_shape(config)
    assert shape.elements(1) == per_token
    assert shape.elements(1000) == 1000 * per_token


def test_tensor_parallelism_divides_the_kv_heads_as_far_as_they_go() -> None:
    shape = kv_shape(LLAMA_8B)
    assert [shape.elements(100, devices=size) for size in (2, 8, 16)] == [
        shape.elements(100) // 2,
        shape.elements(100) // 8,
        shape.elements(100) // 8,
    ]


def test_a_compressed_latent_is_kept_by_every_device() -> None:
    assert kv_shape(DEEPSEEK_V3).elements(100, devices=8) == 100 * 61 * 576


def test_a_window_ends_the_growth() -> None:
    shape = kv_shape(LLAMA_8B | {"sliding_window": 4096})
    assert (shape.full, shape.windowed) == (0, 65536)
    assert shape.elements(2048) == 65536 * 2048
    assert shape.elements(100_000, batched=2048) == shape.elements(6144, batched=2048)


def test_a_window_that_is_switched_off_is_none() -> None:
    shape = kv_shape(LLAMA_8B | {"sliding_window": 4096, "use_sliding_window": False})
    assert (shape.full, shape.windowed) == (65536, 0)


@pytest.mark.parametrize(
    "config",
    [
        {"layer_types": ["sliding_attention", "full_attention"] * 16, "sliding_window": 1024},
        {"model_type": "gemma2", "sliding_window": 1024},
        {"sliding_window_pattern": 2, "sliding_window": 1024},
    ],
)
def test_layers_of_two_kinds_are_counted_apart(config: dict[str, Any]) -> None:
    shape = kv_shape(LLAMA_8B | config)
    assert (shape.full, shape.windowed, shape.window) == (32768, 32768, 1024)
    assert shape.elements(1000) == pytest.approx(1.1 * 65536 * 1000, rel=1e-6)


def test_linear_attention_has_a_state_of_one_size() -> None:
    shape = kv_shape(QWEN3_NEXT)
    assert shape.full == 12 * 2 * 2 * 256
    assert shape.state == 36 * (32 * 128 * 128 + 3 * (2 * 16 * 128 + 32 * 128))
    assert shape.elements(1000) - shape.elements(0) == pytest.approx(1.1 * 1000 * shape.full, abs=1)


def test_the_state_of_mamba_is_counted() -> None:
    mamba2 = {"model_type": "mamba2", "num_hidden_layers": 64, "hidden_size": 4096, "state_size": 128, "expand": 2}
    shape = kv_shape(mamba2)
    assert (shape.full, shape.notes) == (0, ())
    assert shape.state == 64 * (8192 * 128 + 3 * (8192 + 2 * 128))


def test_a_hybrid_of_nvidia_names_its_layers_by_letters() -> None:
    config = LLAMA_8B | {"model_type": "nemotron_h", "hybrid_override_pattern": "M-M*-", "ssm_state_size": 128}
    shape = kv_shape(config | {"num_hidden_layers": 5})
    assert shape.full == 2 * 8 * 128
    assert shape.state == 2 * (8192 * 128 + 3 * (8192 + 256))


def test_a_guess_says_that_it_is_one() -> None:
    assert kv_shape({"model_type": "rwkv7", "num_hidden_layers": 24, "hidden_size": 2048}).notes
    assert KvShape(10).elements(10) == 100
