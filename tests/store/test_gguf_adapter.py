"""LoRA adapters in GGUF, written here as llama.cpp's `convert_lora_to_gguf.py` does, become what they were made of."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ollama_layout import OllamaLayout, converts_to, gguf_bytes
from sampling import count
from tiny_snapshot import Tensors

from vllama.errors import RequestError
from vllama.names import ModelName
from vllama.ollama.creation import Changes
from vllama.store.create import create
from vllama.store.gguf import adapter as gguf_adapter
from vllama.store.gguf import conversion
from vllama.store.gguf.conversion import run_as_converter
from vllama.store.manifest import Adapter
from vllama.store.model_store import ModelStore
from vllama.store.sources.ollama_store import OllamaStore, import_models

from .conftest import BuildSnapshot
from .upload import upload_and_create

gguf = pytest.importorskip("gguf")
np = pytest.importorskip("numpy")
save_file = pytest.importorskip("safetensors.numpy").save_file
load_file = pytest.importorskip("safetensors.numpy").load_file

HEADS, KV_HEADS, RANK = 4, 2, 2
ATTENTION = "model.layers.0.self_attn."
WEIGHTS: Tensors = {
    "model.embed_tokens.weight": ("BF16", [32, 8]),
    f"{ATTENTION}q_proj.weight": ("BF16", [16, 8]),
    f"{ATTENTION}k_proj.weight": ("BF16", [8, 8]),
    "model.layers.0.mlp.down_proj.weight": ("BF16", [8, 24]),
}
NAMES = {
    f"{ATTENTION}q_proj": "blk.0.attn_q",
    f"{ATTENTION}k_proj": "blk.0.attn_k",
    "model.layers.0.mlp.down_proj": "blk.0.ffn_down",
}


def permuted(values: Any, heads: int) -> Any:
    """As `LlamaModel.permute` of llama.cpp's convert_hf_to_gguf.py."""
    shape = values.shape
    return values.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


@pytest.fixture
def matrices() -> dict[str, Any]:
    """An adapter as PEFT has it."""
    values = np.random.default_rng(0)
    found = {}
    for name in NAMES:
        outputs, inputs = WEIGHTS[f"{name}.weight"][1]
        found[f"base_model.model.{name}.lora_A.weight"] = values.normal(size=(RANK, inputs)).astype("float32")
        found[f"base_model.model.{name}.lora_B.weight"] = values.normal(size=(outputs, RANK)).astype("float32")
    return found


def write(
    path: Path,
    matrices: dict[str, Any],
    *,
    architecture: str = "llama",
    alpha: float = 4.0,
    kind: str = "adapter",
    adapter: str = "lora",
) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_string("general.type", kind)
    writer.add_string("adapter.type", adapter)
    writer.add_float32("adapter.lora.alpha", alpha)
    for name, other in NAMES.items():
        for half in "AB":
            values = matrices[f"base_model.model.{name}.lora_{half}.weight"]
            if half == "B" and architecture == "llama" and other.endswith(("_q", "_k")):
                values = permuted(values, HEADS if other.endswith("_q") else KV_HEADS)
            writer.add_tensor(f"{other}.weight.lora_{half.lower()}", np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def base(store: ModelStore, build_snapshot: BuildSnapshot) -> str:
    upload_and_create(store, ModelName.parse("base"), build_snapshot(tensors=WEIGHTS))
    return "base"


def adapter_of(store: ModelStore, base: str, path: Path) -> Adapter:
    """What a model of the base and the file has."""
    name = ModelName.parse("tuned")
    list(create(store, name, Changes(), base=base, adapter_path=path))
    made = store.get(name).adapter
    assert made is not None
    return made


def test_it_becomes_the_adapter_that_it_was_made_of(
    store: ModelStore, base: str, matrices: dict[str, Any], tmp_path: Path
) -> None:
    made = adapter_of(store, base, write(tmp_path / "lora.gguf", matrices))
    found = load_file(made.snapshot / "adapter_model.safetensors")
    assert found.keys() == matrices.keys()
    for name, values in matrices.items():
        assert np.array_equal(found[name], values), name
    config = json.loads((made.snapshot / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], made.rank) == (RANK, 4, RANK)
    assert config["target_modules"] == ["down_proj", "k_proj", "q_proj"]
    assert adapter_of(store, base, write(tmp_path / "again.gguf", matrices)) == made


def test_without_a_scale_it_counts_as_it_is(
    store: ModelStore, base: str, matrices: dict[str, Any], tmp_path: Path
) -> None:
    made = adapter_of(store, base, write(tmp_path / "lora.gguf", matrices, alpha=0))
    assert json.loads((made.snapshot / "adapter_config.json").read_text())["lora_alpha"] == RANK


def test_a_model_of_ollamas_with_an_adapter_brings_it(
    store: ModelStore,
    build_snapshot: BuildSnapshot,
    matrices: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    converted = build_snapshot("converted", tensors=WEIGHTS)
    monkeypatch.setattr(conversion, "convert", converts_to(converted))
    ollama = OllamaLayout(tmp_path / "ollama")
    adapter = ollama.layer("adapter", write(tmp_path / "lora.gguf", matrices).read_bytes())
    ollama.write(
        "registry.ollama.ai/library/tuned/latest",
        ollama.manifest(ollama.layer("model", gguf_bytes()), adapter, ollama.layer("system", b"You are tuned.")),
    )
    list(import_models(store, OllamaStore(ollama.directory), []))
    made = store.get(ModelName.parse("tuned"))
    assert (made.system, made.adapter_rank, made.damaged_files()) == ("You are tuned.", RANK, [])
    assert made.adapter is not None
    found = load_file(made.adapter.snapshot / "adapter_model.safetensors")
    assert {name: values.tolist() for name, values in found.items()} == {
        name: values.tolist() for name, values in matrices.items()
    }


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"architecture": "qwen2"}, "it is for architecture 'qwen2', but the base model is 'llama'"),
        ({"kind": "model"}, "it is not a LoRA adapter"),
        ({"adapter": "control_vector"}, "it is not a LoRA adapter"),
    ],
)
def test_what_cannot_be_converted_is_refused_with_the_reason(
    store: ModelStore, base: str, matrices: dict[str, Any], tmp_path: Path, written: dict[str, str], message: str
) -> None:
    path = write(tmp_path / "lora.gguf", matrices, **written)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match=message):
        adapter_of(store, base, path)


def test_one_for_layers_that_the_base_lacks_is_refused(
    store: ModelStore, build_snapshot: BuildSnapshot, matrices: dict[str, Any], tmp_path: Path
) -> None:
    fewer = {name: shape for name, shape in WEIGHTS.items() if "k_proj" not in name}
    upload_and_create(store, ModelName.parse("base"), build_snapshot(tensors=fewer))
    with pytest.raises(
        RequestError, match=r"it changes blk\.0\.attn_k\.weight\.lora_a, which is missing in the base model"
    ):
        adapter_of(store, "base", write(tmp_path / "lora.gguf", matrices))


@settings(max_examples=count(40, 2000), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 1500), st.integers(0, 255)), min_size=1, max_size=4))
def test_any_damage_of_an_adapter_is_converted_or_told_in_one_line(
    store: ModelStore, base: str, matrices: dict[str, Any], tmp_path: Path, changes: list[tuple[int, int]]
) -> None:
    source, destination = tmp_path / "lora.gguf", tmp_path / "made"
    data = bytearray(write(source, matrices).read_bytes())
    for place, byte in changes:
        data[place % len(data)] = byte
    source.write_bytes(data)
    snapshot = store.get(ModelName.parse(base)).snapshot
    tracemalloc.start()
    with suppress(SystemExit):
        run_as_converter(lambda: gguf_adapter._convert(source, destination, snapshot, gguf.GGUFReader, save_file))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    shutil.rmtree(destination, ignore_errors=True)
    assert peak < 16 << 20, peak
