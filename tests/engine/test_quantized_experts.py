"""Mixtures of experts with quantized experts, served by the real vLLM: the tokens of the same weights in 32 bits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gguf")

from gguf import GGMLQuantizationType
from k_quants import requantize
from store.test_gguf_experts import quantized

from vllama.store.gguf.conversion import write_model
from vllama.store.gguf.reading import GgufFile

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

_T = GGMLQuantizationType
_SCRIPT = Path(__file__).parents[1] / "greedy_tokens.py"

_MLA = {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128}
"""The only sizes of DeepSeek's attention that vLLM computes on a CPU."""

SERVED: dict[str, dict[str, Any]] = {
    "mixtral": {},
    "qwen2moe": {},
    "qwen3moe": {},
    "olmoe": {},
    "glm4moe": {},
    "lfm2moe": {},
    "deepseek-2": _MLA,
    "deepseek-3": _MLA,
}
"""Models and their settings. vLLM serves no MiniMax M2 on CPUs, and no MXFP4 without AMX."""


def both(name: str, folder: Path, settings: dict[str, Any]) -> list[Path]:
    """Write a model's snapshot with quantized experts, and one with the 32-bit floats that they stand for."""
    folder.mkdir()
    file = quantized(name, folder, {"ffn_down_exps": _T.Q8_0, "_exps": _T.Q4_1, ".weight": _T.Q4_0}, **settings)
    requantize(folder / "model.gguf", folder / "decoded.gguf", lambda *_: None)
    packed, decoded = folder / "packed", folder / "decoded"
    for snapshot, source in ((packed, file), (decoded, GgufFile(folder / "decoded.gguf"))):
        snapshot.mkdir()
        write_model(source, snapshot, repacks=True)
    assert "quantization_config" in json.loads((packed / "config.json").read_bytes())
    assert "quantization_config" not in json.loads((decoded / "config.json").read_bytes())
    return [packed, decoded]


def tokens(directories: list[Path], *options: str) -> dict[Path, Any]:
    """Return vLLM's greedy tokens, or its error, for each snapshot."""
    command = [sys.executable, str(_SCRIPT), "--vllm", *options, *map(str, directories)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    records = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {Path(record["directory"]): record.get("vllm", record.get("error")) for record in records}


@pytest.mark.parametrize(
    "name", [name if name == "mixtral" else pytest.param(name, marks=pytest.mark.slow) for name in SERVED]
)
def test_quantized_experts_write_the_tokens_of_the_weights_that_they_stand_for(name: str, tmp_path: Path) -> None:
    packed, decoded = both(name, tmp_path / name, SERVED[name])
    # Packed weights come last: they import llvmlite, and then vLLM 0.32 cannot start another engine in the process.
    found = tokens([decoded, packed])
    assert isinstance(found[decoded], list), found[decoded]
    assert found[packed] == found[decoded]


def test_experts_beside_linear_attention_do_so_too(tmp_path: Path) -> None:
    """vLLM computes linear attention on CPUs in bfloat16 only, to which it rounds both snapshots alike."""
    heads = {"linear_key_head_dim": 128, "linear_value_head_dim": 128}
    packed, decoded = both("qwen3next", tmp_path / "qwen3next", heads)
    found = tokens([decoded, packed], "--dtype", "bfloat16")
    assert isinstance(found[decoded], list), found[decoded]
    assert found[packed] == found[decoded]
