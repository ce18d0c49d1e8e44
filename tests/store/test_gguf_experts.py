"""Mixtures of experts whose experts keep the quantization of their GGUF file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("gguf")

import gguf
from gguf import GGMLQuantizationType
from gguf_families import FAMILIES
from k_quants import requantize

from vllama.store.gguf import mxfp4
from vllama.store.gguf.architectures.table import expert_rows
from vllama.store.gguf.conversion import plan, write_model
from vllama.store.gguf.reading import Array, GgufFile, GgufTensor
from vllama.store.gguf.repacking import FORMS, Packed, unpack
from vllama.store.gguf.writing import OutputTensor

pytestmark = pytest.mark.vllm

_T = GGMLQuantizationType

_FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
"""The numbers that four bits stand for (OCP Microscaling Formats, E2M1)."""

PACKED = (
    "mixtral",
    "qwen2moe",
    "qwen3moe",
    "olmoe",
    "deepseek-2",
    "deepseek-3",
    "glm4moe",
    "lfm2moe",
    "minimax-m2",
    "qwen3next",
)


def quantized(name: str, folder: Path, kinds: dict[str, GGMLQuantizationType], **settings: Any) -> GgufFile:
    """Write a tiny model as GGUF whose matrices have types: the first of `kinds` whose key is in a tensor's name."""
    from dataclasses import replace

    family = FAMILIES[name]
    family = replace(family, settings={**family.settings, **settings})

    def choose(tensor: str, values: Array, layers: int) -> GGMLQuantizationType | None:
        del layers
        if values.ndim < 2 or "ffn_gate_inp" in tensor or tensor.endswith(".bias"):
            return None
        kind = next((kind for part, kind in kinds.items() if part in tensor), None)
        return None if kind is None or values.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] else kind

    family.write(folder / "before", family.build(folder / "before"), folder / "floats.gguf")
    requantize(folder / "floats.gguf", folder / "model.gguf", choose)
    return GgufFile(folder / "model.gguf")


def read(tensor: OutputTensor) -> Array:
    dtype = {"I32": "<i4", "F16": "<f2", "U8": "u1", "F32": "<f4", "BF16": "<u2"}[tensor.dtype]
    found: Array = np.concatenate([part.reshape(-1) for part in tensor.parts()]).view(dtype).reshape(tensor.shape)
    return found


@pytest.mark.parametrize("name", PACKED)
def test_experts_stay_quantized(name: str, tmp_path: Path) -> None:
    file = quantized(name, tmp_path, {"ffn_down_exps": _T.Q8_0, "_exps": _T.Q4_1, ".weight": _T.Q4_0})
    made = plan(file, repacks=True)
    config, tensors = made.config, made.tensors
    outputs = {tensor.name: tensor for tensor in tensors}
    assert config["quantization_config"]["quant_method"] == "vllama_gguf"
    experts = [tensor for tensor in file.tensors.values() if "_exps" in tensor.name]
    words = [tensor for name, tensor in outputs.items() if ".experts." in name and name.endswith(".weight_packed")]
    assert len(words) == sum(tensor.shape[0] for tensor in experts)
    assert not any(".experts." in name and name.endswith(".weight") for name in outputs)

    for kind, names in ((_T.Q4_1, ("gate_proj", "w1")), (_T.Q8_0, ("down_proj", "w2"))):
        part = "ffn_gate_exps" if kind is _T.Q4_1 else "ffn_down_exps"
        source = next(tensor for tensor in experts if part in tensor.name)
        layer = int(source.name.split(".")[1])
        stem = next(
            name.removesuffix(".weight_packed")
            for name in outputs
            if f".layers.{layer}." in name and ".experts.2." in name and name.split(".")[-2] in names
        )
        minimums = outputs.get(f"{stem}.weight_minimum")
        packed = Packed(
            lambda stem=stem: read(outputs[f"{stem}.weight_packed"]),  # type: ignore[misc]
            read(outputs[f"{stem}.weight_scale"]),
            None if minimums is None else read(minimums),
        )
        rows = source.blocks.shape[0] // source.shape[0]
        truth = source.values(slice(2 * rows, 3 * rows))
        np.testing.assert_allclose(unpack(packed, FORMS[kind]), truth, rtol=1e-6, atol=1e-7)


def test_stacks_of_experts_are_divided_where_they_are_packed() -> None:
    """Qwen 3.5's snapshot has all experts of a layer in one tensor; transformers has no class to write its GGUF."""
    from vllama.store.gguf.placing import place
    from vllama.store.gguf.quantization import divided

    blocks = np.arange(4 * 2 * 34, dtype=np.uint8).reshape(8, 34)
    gate, up, down = (
        GgufTensor(f"blk.0.ffn_{name}_exps.weight", (4, 2, 32), _T.Q8_0, blocks + number)
        for number, name in enumerate(("gate", "up", "down"))
    )
    module = "model.layers.0.mlp.experts"
    pieces = [expert_rows(tensor, expert) for expert in range(4) for tensor in (gate, up)]
    stacks = [place(f"{module}.gate_up_proj", *pieces, shape=(4, 4, 32)), place(f"{module}.down_proj", down)]
    found = {placed.name: placed for placed in divided(stacks, "Qwen3_5MoeForCausalLM")}
    assert len(found) == 12
    for name, tensor in (("gate_proj", gate), ("up_proj", up), ("down_proj", down)):
        ((_, rows),) = found[f"{module}.3.{name}.weight"].blocks(1000)
        np.testing.assert_array_equal(rows, tensor.blocks[6:8])
    assert list(divided(stacks, "Gemma4ForCausalLM")) == stacks


def test_models_whose_experts_alone_are_packed_say_so(tmp_path: Path) -> None:
    file = quantized("lfm2moe", tmp_path, {".weight": _T.Q8_0})
    made = plan(file, repacks=True)
    config, tensors = made.config, made.tensors
    assert config["quantization_config"] == {"quant_method": "vllama_gguf", "bits": 8, "only_experts": True}
    assert all(".experts." in tensor.name for tensor in tensors if tensor.name.endswith("_packed"))


def test_experts_of_a_layer_with_different_types_become_bfloat16(tmp_path: Path) -> None:
    """Old files of Mixtral have each expert in a tensor of its own, and all experts are in one kernel."""
    from vllama.store.gguf.placing import place
    from vllama.store.gguf.quantization import kept_forms

    file = quantized("mixtral", tmp_path, {"ffn_gate_exps": _T.Q4_0, "ffn_up_exps": _T.Q8_0})
    gate, up = (file.tensors[f"blk.0.ffn_{part}_exps.weight"] for part in ("gate", "up"))
    name = "model.layers.0.block_sparse_moe.experts.{}.w{}.weight"
    placed = [
        place(name.format(0, 1), expert_rows(gate, 0)),
        place(name.format(1, 1), expert_rows(up, 1)),
        place(name.format(0, 3), expert_rows(gate, 0)),
        place(name.format(1, 3), expert_rows(gate, 1)),
    ]
    forms = kept_forms(placed, "MixtralForCausalLM")
    assert [form is None for form in forms] == [True, True, False, False]


@given(seed=st.integers(0, 2**32), blocks=st.integers(1, 4))
def test_mxfp4_keeps_its_bits(seed: int, blocks: int) -> None:
    data = np.random.default_rng(seed).integers(0, 256, (3, blocks, 17), dtype=np.uint8)
    data[..., 0] %= 250  # larger exponents stand for numbers beyond 32-bit floats
    values = mxfp4.neighbours(data)
    codes = np.stack([values & 15, values >> 4], axis=-1).reshape(3, blocks, 32)
    with np.errstate(over="ignore", under="ignore"):
        found = np.ldexp(_FP4[codes], data[..., :1].astype(np.int32) - 127)
    truth = gguf.dequantize(data.reshape(3, -1), _T.MXFP4).reshape(3, blocks, 32)
    np.testing.assert_array_equal(found, truth)


def test_gpt_oss_becomes_the_format_of_openai(tmp_path: Path) -> None:
    file = quantized("gpt-oss", tmp_path, {"_exps": _T.MXFP4, "attn": _T.Q8_0})
    made = plan(file, repacks=True)
    config, tensors = made.config, made.tensors
    assert config["quantization_config"]["quant_method"] == "mxfp4"
    assert {"type": "MXFP4", "served": "MXFP4"}.items() <= next(
        entry for entry in config["gguf"]["tensors"] if entry["type"] == "MXFP4"
    ).items()
    outputs = {tensor.name: tensor for tensor in tensors}
    bf16 = {tensor.name: tensor for tensor in plan(file, repacks=False).tensors}
    for name in ("gate_up_proj", "down_proj"):
        stem = f"model.layers.1.mlp.experts.{name}"
        values, exponents = read(outputs[f"{stem}_blocks"]), read(outputs[f"{stem}_scales"])
        codes = np.stack([values & 15, values >> 4], axis=-1).reshape(*exponents.shape, 32)
        found = np.ldexp(_FP4[codes], exponents[..., None].astype(np.int32) - 127).reshape(*values.shape[:2], -1)
        truth = (read(bf16[stem]).astype(np.uint32) << 16).view(np.float32)
        np.testing.assert_array_equal(found.swapaxes(1, 2), truth)
        assert f"{stem}_bias" in outputs
    assert outputs["model.layers.0.self_attn.q_proj.weight"].dtype == "BF16"


def test_gpt_oss_with_other_types_becomes_bfloat16(tmp_path: Path) -> None:
    file = quantized("gpt-oss", tmp_path, {"ffn_down_exps": _T.Q8_0, "_exps": _T.MXFP4})
    made = plan(file, repacks=True)
    config, tensors = made.config, made.tensors
    assert "quantization_config" not in config
    assert not any(tensor.name.endswith("_blocks") for tensor in tensors)


def test_the_size_of_packed_experts_is_that_of_the_file(tmp_path: Path) -> None:
    file = quantized("qwen3moe", tmp_path, {"_exps": _T.Q4_0})
    (tmp_path / "after").mkdir()
    write_model(file, tmp_path / "after", repacks=True)
    config = json.loads((tmp_path / "after" / "config.json").read_bytes())
    assert config["gguf"]["file_type"]
    tensors = plan(file, repacks=True).tensors
    packed = sum(tensor.size for tensor in tensors if ".experts." in tensor.name)
    stored = sum(tensor.blocks.nbytes for tensor in file.tensors.values() if "_exps" in tensor.name)
    assert packed == stored
