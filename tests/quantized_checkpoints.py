"""Checkpoints in the formats of GPTQ and AWQ, made of a bfloat16 snapshot by rounding to the nearest step.

The layouts are those that vLLM reads (`model_executor/layers/quantization/{auto_gptq,auto_awq}.py`): eight codes of 4
bits in each 32-bit integer, scales in float16 for each 128 inputs. GPTQ packs along the inputs and stores its zero
points less one; AWQ packs along the outputs, in an order of its own.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

GROUP = 128
"""Inputs that share a scale."""

_ZERO = 8
"""The code that stands for 0."""

_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_CONFIGS = {
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": True},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"},
}
FORMATS = tuple(_CONFIGS)


def write_quantized(snapshot: Path, destination: Path, form: str) -> None:
    """Write a copy of a snapshot whose linear layers have 4 bits per weight; `form` is one of FORMATS."""
    from safetensors.torch import load_file, save_file

    destination.mkdir(parents=True)
    found: dict[str, Tensor] = {}
    for file in sorted(snapshot.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            if name.endswith("_proj.weight"):
                found |= {
                    f"{name.removesuffix('weight')}{part}": packed for part, packed in _pack(tensor, form).items()
                }
            else:
                found[name] = tensor.half()
    save_file(found, destination / "model.safetensors")
    for file in snapshot.iterdir():
        if file.is_file() and ".safetensors" not in file.name:
            shutil.copyfile(file, destination / file.name)
    config = json.loads((snapshot / "config.json").read_bytes())
    config |= {"torch_dtype": "float16", "quantization_config": _CONFIGS[form]}
    (destination / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")


def _pack(weight: Tensor, form: str) -> dict[str, Tensor]:
    import torch

    outputs, inputs = weight.shape
    groups = weight.float().reshape(outputs, inputs // GROUP, GROUP)
    scales = (groups.abs().amax(dim=2) / 7).half()
    codes = (groups / scales.float()[..., None]).round().clamp(-_ZERO, 7) + _ZERO
    by_input = codes.reshape(outputs, inputs).T.to(torch.int64)
    zeros = torch.full((inputs // GROUP, outputs), _ZERO, dtype=torch.int64)
    if form == "gptq":
        where = torch.arange(inputs, dtype=torch.int32) // GROUP
        packed = {"qweight": _eight(by_input.T, range(8)).T.contiguous(), "qzeros": _eight(zeros - 1, range(8))}
        return {**packed, "scales": scales.T.contiguous(), "g_idx": where}
    packed = {"qweight": _eight(by_input, _AWQ_ORDER), "qzeros": _eight(zeros, _AWQ_ORDER)}
    return {**packed, "scales": scales.T.contiguous()}


def _eight(codes: Tensor, order: range | tuple[int, ...]) -> Tensor:
    """Join each eight codes of a row; `order` names the code for each 4 bits, the lowest first."""
    import torch

    rows = codes.reshape(codes.shape[0], -1, 8)
    joined = sum(rows[:, :, place] << 4 * shift for shift, place in enumerate(order))
    assert isinstance(joined, torch.Tensor)
    return torch.where(joined >= 1 << 31, joined - (1 << 32), joined).to(torch.int32).contiguous()
