"""The checkpoints that the checks of GPU machines make are packed as vLLM packs its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from quantized_checkpoints import FORMATS, GROUP, write_quantized

pytestmark = pytest.mark.vllm


@pytest.mark.parametrize("form", FORMATS)
def test_weights_are_packed_in_the_layout_of_vllm_and_are_off_by_half_a_step_at_most(form: str, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file
    from vllm.model_executor.layers.quantization.utils import quant_utils

    weight = torch.randn(64, 2 * GROUP, dtype=torch.bfloat16)
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    save_file({"layer.q_proj.weight": weight, "norm.weight": torch.ones(4)}, snapshot / "model.safetensors")
    (snapshot / "config.json").write_text("{}")

    write_quantized(snapshot, tmp_path / form, form)

    found = load_file(tmp_path / form / "model.safetensors")
    scales = found["layer.q_proj.scales"].float().repeat_interleave(GROUP, dim=0)
    codes = (weight.T.float() / scales).round().clamp(-8, 7) + 8
    pack = {"gptq": quant_utils.gptq_pack, "awq": quant_utils.awq_pack}[form]
    assert torch.equal(found["layer.q_proj.qweight"], pack(codes.to(torch.int32), 4, 2 * GROUP, 64))
    assert ((codes - 8) * scales - weight.T.float()).abs().max() <= scales.max() / 2 * 1.01
    zero = {"gptq": 0x77777777, "awq": 0x88888888 - (1 << 32)}[form]
    assert found["layer.q_proj.qzeros"].unique().tolist() == [zero]
    assert found["norm.weight"].dtype == torch.float16
    assert json.loads((tmp_path / form / "config.json").read_text())["quantization_config"]["quant_method"] == form
