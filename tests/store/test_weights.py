from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vllama.errors import ManifestCorrupt
from vllama.store.weights import (
    Tensor,
    human_count,
    joined_tensors,
    packed_bytes,
    parameter_count,
    quantization_level,
    read_tensors,
)

from .conftest import write_safetensors


def test_the_tensors_are_read_from_the_header(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "a.safetensors", {"x": ("BF16", [3, 2]), "scalar": ("F32", [])})
    write_safetensors(tmp_path / "b.safetensors", {"y": ("F8_E4M3", [4])})
    tensors = read_tensors([tmp_path / "a.safetensors", tmp_path / "b.safetensors"])
    assert tensors == (Tensor("x", "BF16", (3, 2)), Tensor("scalar", "F32", ()), Tensor("y", "F8_E4M3", (4,)))
    assert [tensor.elements for tensor in tensors] == [6, 1, 4]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "not a safetensors file"),
        ((2).to_bytes(8, "little") + b"[]", "not a safetensors file"),
        ((9).to_bytes(8, "little") + b'{"x": {}}', "not a safetensors file"),
    ],
)
def test_a_file_in_another_format_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(ManifestCorrupt, match=message):
        read_tensors([path])


def test_a_file_that_was_cut_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {"x": ("F32", [100])})
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ManifestCorrupt, match="is incomplete"):
        read_tensors([path])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ManifestCorrupt, match=r"gone\.safetensors: No such file"):
        read_tensors([tmp_path / "gone.safetensors"])


AWQ = {"quant_method": "awq", "bits": 4}
GPTQ8 = {"quant_method": "gptq", "bits": 8}
PACKED = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {"group_0": {"weights": {"num_bits": 4}}},
}


@pytest.mark.parametrize(
    ("quantization", "tensors", "count"),
    [
        ({}, [Tensor("w", "BF16", (10, 20)), Tensor("norm.scale", "BF16", (20,))], 220),
        (
            AWQ,  # 8 values in each integer
            [
                Tensor("q.qweight", "I32", (64, 8)),
                Tensor("q.qzeros", "I32", (1, 8)),
                Tensor("q.scales", "F16", (1, 64)),
                Tensor("norm.weight", "F16", (64,)),
            ],
            64 * 64 + 64,
        ),
        (GPTQ8, [Tensor("q.qweight", "I32", (16, 64)), Tensor("q.g_idx", "I32", (64,))], 64 * 64),
        (
            PACKED,
            [
                Tensor("q.weight_packed", "I32", (64, 8)),
                Tensor("q.weight_scale", "BF16", (64, 1)),
                Tensor("q.weight_shape", "I32", (2,)),
            ],
            64 * 64,
        ),
        (
            {"quant_method": "fp8"},
            [Tensor("q.weight", "F8_E4M3", (64, 64)), Tensor("q.weight_scale_inv", "F32", (1, 1))],
            64 * 64,
        ),
        (
            {"quant_method": "mxfp4"},
            [Tensor("e.gate_blocks", "U8", (4, 32, 16)), Tensor("e.gate_scales", "U8", (4, 32))],
            4 * 32 * 32,
        ),
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True},
            [Tensor("q.weight", "U8", (2048, 1)), Tensor("q.weight.absmax", "F32", (64,))],
            4096,
        ),
    ],
)
def test_packed_weights_are_unpacked_and_scales_not_counted(
    quantization: dict[str, Any], tensors: list[Tensor], count: int
) -> None:
    assert parameter_count(tensors, quantization) == count


@pytest.mark.parametrize(
    ("quantization", "level"),
    [
        (AWQ, "AWQ"),
        (GPTQ8, "GPTQ-INT8"),
        ({"quant_method": "gptq"}, "GPTQ-INT4"),
        (PACKED, "INT4"),
        ({"quant_method": "compressed-tensors", "format": "float-quantized"}, "FP8"),
        ({"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}, "NVFP4"),
        ({"quant_method": "fp8"}, "FP8"),
        ({"quant_method": "mxfp4"}, "MXFP4"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "NVFP4"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "BNB-4BIT"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "BNB-INT8"),
    ],
)
def test_the_level_names_the_method_of_quantization(quantization: dict[str, Any], level: str) -> None:
    assert quantization_level([Tensor("w", "I32", (1,))], quantization) == level


@pytest.mark.parametrize(
    ("dtype", "level"), [("BF16", "BF16"), ("F16", "F16"), ("F32", "F32"), ("F8_E4M3", "FP8"), ("I8", "I8")]
)
def test_without_quantization_the_level_is_the_type_of_most_weights(dtype: str, level: str) -> None:
    tensors = [Tensor("norm", "F64", (1,)), Tensor("w", dtype, (100,)), Tensor("norm2", "F64", (1,))]
    assert quantization_level(tensors, {}) == level


def test_no_tensors_have_no_level() -> None:
    assert quantization_level([], {}) == ""


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1_000, "1K"),
        (32_499, "32K"),
        (134_515_008, "134.52M"),
        (137_000_000, "137M"),
        (494_032_768, "494.03M"),
        (999_999_999, "1000.00M"),
        (1_000_000_000, "1B"),
        (7_615_616_512, "7.6B"),
        (70_000_000_000, "70B"),
    ],
)
def test_counts_are_written_as_ollama_writes_them(count: int, text: str) -> None:
    assert human_count(count) == text


def test_a_repacked_matrix_is_one_tensor_with_the_shape_of_its_weights() -> None:
    def parts(name: str, words: int, groups: int, *, minimum: bool = False) -> list[Tensor]:
        found = [Tensor(f"{name}.weight_packed", "I32", (6, words)), Tensor(f"{name}.weight_scale", "F16", (6, groups))]
        return [*found, *([Tensor(f"{name}.weight_minimum", "F16", (6, groups))] if minimum else [])]

    norm = Tensor("norm.weight", "F32", (256,))
    tensors = [norm, *parts("q", 32, 8, minimum=True), *parts("k", 64, 8), *parts("v", 64, 4)]

    assert joined_tensors(tensors) == (
        norm,
        Tensor("q.weight", "INT4", (6, 256)),
        Tensor("k.weight", "INT8", (6, 256)),
        Tensor("v.weight", "INT8", (6, 256)),
    )


def test_experts_are_unpacked_in_the_memory_of_a_cpu() -> None:
    def packed(name: str) -> list[Tensor]:
        return [
            Tensor(f"{name}.weight_packed", "I32", (64, 8)),
            Tensor(f"{name}.weight_scale", "F16", (64, 2)),
            Tensor(f"{name}.weight_minimum", "F16", (64, 2)),
        ]

    norm = Tensor("model.norm.weight", "F32", (64,))
    layer, expert = packed("model.layers.0.self_attn.o_proj"), packed("model.layers.0.mlp.experts.7.up_proj")
    assert packed_bytes([*layer, *expert, norm], 4) == 64 * (8 * 4 + 2 * 2 * 2) + 64 * 64 * 4 + 64 * 4
    assert packed_bytes([*expert, norm], 4) is None
