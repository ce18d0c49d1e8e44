"""What a model needs, read from its files, its flags and the settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_snapshot import make_manifest, write_snapshot

from vllama.scheduler import need as need_module
from vllama.scheduler.engine_flags import tokens_of
from vllama.scheduler.memory import Learned, Need, Stated
from vllama.scheduler.need import need_of, stated_by
from vllama.settings import Settings

SETTINGS = Settings.from_environment({}, models=Path("/models"))
FOUR_BITS = {"quantization_config": {"quant_method": "awq", "bits": 4}}


def need(tmp_path: Path, *flags: str, settings: Settings = SETTINGS, dtype: str = "", **snapshot: Any) -> Need:
    folder = write_snapshot(tmp_path / "snapshot", **snapshot)
    return need_of(make_manifest(snapshot=folder), settings, flags, dtype=dtype)


def test_a_llama_needs_what_its_files_say(tmp_path: Path) -> None:
    found = need(tmp_path)
    assert found.weights == (32 * 8 + 8) * 2  # the norm is stored in float32 and loaded in two bytes
    assert found.kv_bytes(256) == 256 * 2 * 2 * 2 * 2
    assert (found.context, found.heads, found.bits, found.requests) == (8192, 4, 16, 64)
    assert (found.layout.layers, found.layout.hidden, found.layout.vocabulary) == (1, 8, 32)
    assert not found.is_context_stated
    assert not found.pools


def test_quantized_weights_take_what_they_are_stored_in(tmp_path: Path) -> None:
    tensors = {"w.qweight": ("I32", [100, 10]), "w.scales": ("F16", [10]), "norm.weight": ("F32", [8])}
    found = need(tmp_path, config=FOUR_BITS, tensors=tensors)
    assert (found.weights, found.bits) == (4000 + 20 + 32, 4)


def test_room_for_adapters_is_a_pair_of_matrices_for_each_layer_and_each_adapter_at_once(tmp_path: Path) -> None:
    tensors = {"w.weight": ("BF16", [16, 8]), "experts": ("BF16", [4, 10, 6]), "norm.weight": ("F32", [8])}
    without = need(tmp_path, tensors=tensors).weights
    flags = ("--enable-lora", "--max-lora-rank", "32", "--max-loras", "4")
    assert need(tmp_path / "2", *flags, tensors=tensors).weights - without == 4 * 32 * (16 + 8 + 4 * (10 + 6)) * 2
    assert need(tmp_path / "3", *flags[1:], tensors=tensors).weights == without


def test_float32_doubles_weights_and_kv_cache(tmp_path: Path) -> None:
    found = need(tmp_path, "--dtype", "float32")
    assert (found.weights, found.kv_item, found.bits) == ((32 * 8 + 8) * 4, 4, 32)


def test_a_type_that_vllama_chose_counts_until_the_user_names_another(tmp_path: Path) -> None:
    assert need(tmp_path, dtype="float32").kv_item == 4
    assert need(tmp_path / "2", "--dtype=half", dtype="float32").kv_item == 2


@pytest.mark.parametrize(("method", "bits"), [("fp8", 8), ("bitsandbytes", 4)])
def test_weights_that_are_quantized_while_they_load_are_smaller(tmp_path: Path, method: str, bits: int) -> None:
    found = need(tmp_path, "--quantization", method)
    assert (found.weights, found.bits) == ((32 * 8 + 8) * bits // 8, bits)


def test_an_fp8_kv_cache_has_one_byte_for_each_value(tmp_path: Path) -> None:
    assert need(tmp_path, "--kv-cache-dtype", "fp8_e4m3").kv_item == 1


def test_a_context_of_the_settings_is_what_the_user_wants_as_far_as_the_model_goes(tmp_path: Path) -> None:
    found = need(tmp_path, settings=replace(SETTINGS, context_length=4096))
    assert (found.context, found.is_context_stated) == (4096, True)
    longer = need(tmp_path / "2", settings=replace(SETTINGS, context_length=100_000))
    assert (longer.context, longer.is_context_stated) == (8192, True)


@pytest.mark.parametrize(
    ("rope", "context"),
    [
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}, 16384),
        ({"type": "linear", "factor": 2}, 16384),
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 1024}, 8192),
        ({"rope_type": "default"}, 8192),
    ],
)
def test_a_context_may_be_as_long_as_the_stretched_rope(tmp_path: Path, rope: dict[str, Any], context: int) -> None:
    assert need(tmp_path, config={"rope_scaling": rope}).context == context


@pytest.mark.parametrize(
    ("flags", "context", "is_stated"),
    [
        (["--max-model-len", "4k"], 4000, True),
        (["--max-model-len=-1"], 8192, False),
        (["--max-model-len", "x"], 8192, False),
    ],
)
def test_a_context_among_the_flags_wins(tmp_path: Path, flags: list[str], context: int, is_stated: bool) -> None:
    found = need(tmp_path, *flags)
    assert (found.context, found.is_context_stated, found.stated.context) == (context, is_stated, True)


def test_as_many_requests_are_planned_for_as_may_come_at_once(tmp_path: Path) -> None:
    assert need(tmp_path, settings=replace(SETTINGS, num_parallel=4)).requests == 4
    assert need(tmp_path / "2", "--max-num-seqs", "7", settings=replace(SETTINGS, num_parallel=4)).requests == 7


def test_the_second_worker_of_a_model_that_writes_is_small(tmp_path: Path) -> None:
    """A long text is cut at a comfortable context, unless the user wants another; few texts are read at once."""
    folder = write_snapshot(tmp_path / "snapshot", config={"max_position_embeddings": 131072})
    writes, embeds = make_manifest(snapshot=folder), make_manifest(snapshot=folder, embeds=True)
    longer = replace(SETTINGS, context_length=32768)
    assert [need_of(manifest, SETTINGS).context for manifest in (writes, embeds)] == [131072, 8192]
    assert [need_of(manifest, SETTINGS).requests for manifest in (writes, embeds)] == [64, 4]
    assert [need_of(manifest, SETTINGS).pools for manifest in (writes, embeds)] == [False, True]
    assert need_of(embeds, longer).context == 32768
    assert need_of(embeds, SETTINGS, ["--max-model-len", "16k"]).context == 16000


def test_a_model_that_is_held_alone_shares_nothing(tmp_path: Path) -> None:
    assert need(tmp_path).shares
    assert not need(tmp_path / "2", settings=replace(SETTINGS, max_loaded_models=1)).shares


def test_without_a_budget_for_sleep_nothing_is_left_for_sleepers(tmp_path: Path) -> None:
    assert need(tmp_path).has_sleepers
    assert not need(tmp_path / "2", settings=replace(SETTINGS, sleep_budget=0)).has_sleepers


def test_what_was_learned_comes_along(tmp_path: Path) -> None:
    manifest = make_manifest(snapshot=write_snapshot(tmp_path / "snapshot"))
    assert need_of(manifest, SETTINGS, learned={"H100": Learned(5)}).learned == {"H100": Learned(5)}


@pytest.mark.parametrize(
    ("flags", "stated"),
    [
        ([], Stated()),
        (["-tp", "2"], Stated(tensor_parallel=2)),
        (["--tensor_parallel_size=4", "--pipeline-parallel-size", "2"], Stated(tensor_parallel=4, pipeline_parallel=2)),
        (["-dp", "2"], Stated(data_parallel=2)),
        (["--gpu-memory-utilization", "0.5"], Stated(utilization=0.5)),
        (["--gpu-memory-utilization", "half"], Stated()),
        (["--kv-cache-memory-bytes", "2G"], Stated(kv=2 * 1024**3)),
        (["--nnodes", "2"], Stated(utilization=0.92, elsewhere=True)),
        (["--distributed-executor-backend=ray"], Stated(utilization=0.92, elsewhere=True)),
    ],
)
def test_the_user_s_flags_are_read_as_vllm_reads_them(flags: list[str], stated: Stated) -> None:
    assert stated_by(flags) == stated


@pytest.mark.parametrize(
    ("text", "value"), [("8192", 8192), ("8k", 8000), ("8K", 8192), ("1.5G", 1536 * 1024**2), ("-1", 0), ("auto", 0)]
)
def test_numbers_may_have_a_unit(text: str, value: int) -> None:
    assert tokens_of(text) == value


REPACKED: dict[str, Any] = {
    "config": {
        "tie_word_embeddings": True,
        "quantization_config": {"quant_method": "vllama_gguf", "bits": 4},
        "gguf": {"precision": "exact", "file_type": "Q4_0", "parameter_count": 1000},
    },
    "tensors": {
        "model.embed_tokens.weight_packed": ("I32", [32, 8]),
        "model.embed_tokens.weight_scale": ("F16", [32, 2]),
        "model.layers.0.mlp.down_proj.weight_packed": ("I32", [10, 8]),
        "model.layers.0.mlp.down_proj.weight_scale": ("F16", [10, 2]),
    },
}


def test_repacked_weights_count_as_stored_and_a_tied_embedding_twice(tmp_path: Path) -> None:
    found = need(tmp_path, **REPACKED)
    embedding, layer = 32 * 8 * 4 + 32 * 2 * 2, 10 * 8 * 4 + 10 * 2 * 2
    assert (found.weights, found.bits) == (2 * embedding + layer, 4)


def test_packed_experts_count_as_stored(tmp_path: Path) -> None:
    expert = "model.layers.0.mlp.experts.3.down_proj"
    found = need(
        tmp_path,
        config={"quantization_config": {"quant_method": "vllama_gguf", "bits": 4, "only_experts": True}},
        tensors={
            f"{expert}.weight_packed": ("I32", [64, 4]),
            f"{expert}.weight_scale": ("F16", [64, 1]),
            f"{expert}.weight_minimum": ("F16", [64, 1]),
            "model.layers.0.self_attn.o_proj.weight": ("BF16", [64, 64]),
        },
    )
    assert (found.weights, found.bits) == (64 * 4 * 4 + 2 * 64 * 2 + 64 * 64 * 2, 4)


def test_experts_of_gpt_oss_count_as_stored(tmp_path: Path) -> None:
    experts = "model.layers.0.mlp.experts.down_proj"
    found = need(
        tmp_path,
        config={"quantization_config": {"quant_method": "mxfp4"}},
        tensors={f"{experts}_blocks": ("U8", [4, 64, 2, 16]), f"{experts}_scales": ("U8", [4, 64, 2])},
    )
    assert found.weights == 4 * 64 * 2 * 17


@pytest.mark.parametrize(
    ("dtype", "multiplies", "weights", "bits"),
    [("float32", True, (32 + 10) * (8 * 4 + 2 * 2), 4), ("float32", False, 4000, 32), ("bfloat16", True, 2000, 16)],
)
def test_a_cpu_unpacks_repacked_weights_unless_it_multiplies_them_in_32_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, dtype: str, multiplies: bool, weights: int, bits: int
) -> None:
    monkeypatch.setattr(need_module, "multiplies_packed_weights", lambda: multiplies)
    folder = write_snapshot(tmp_path / "snapshot", **REPACKED)
    found = need_of(make_manifest(snapshot=folder), SETTINGS, dtype=dtype, on_cpu=True)
    assert (found.weights, found.bits) == (weights, bits)
