"""Files of models that hold anything: the lists stay, and nothing but our own errors is raised."""

from __future__ import annotations

import json
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sampling import count
from tiny_snapshot import LLAMA_CONFIG, make_manifest, write_snapshot

from vllama.errors import ManifestCorrupt, RequestError, VllamaError
from vllama.ollama.modelfile import decode, parse
from vllama.scheduler.serving import Serving
from vllama.store import listing
from vllama.store.description import describe, read_config
from vllama.store.foreign_files import open_regular
from vllama.store.kv_shape import kv_shape
from vllama.store.manifest import Manifest
from vllama.store.model_store import ModelStore
from vllama.store.peft import read_layers
from vllama.store.weights import read_tensors

relaxed = settings(
    max_examples=count(60, 2000),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

numbers = st.one_of(
    st.sampled_from([0, -1, 1, 2**31, 2**53, 2**63, 2**64, 10**30, -(10**30), 1e300, -0.0, 0.5]), st.integers(0, 99)
)
leaves = st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=9), st.sampled_from(["a\0b", "é", "../x", "{{"]))
values = st.recursive(
    leaves,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)

CONFIG = (
    *LLAMA_CONFIG, "architectures", "quantization_config", "compression_config", "text_config", "vision_config",
    "rope_parameters", "id2label", "num_labels", "model_type", "head_dim", "gguf", "sliding_window", "layer_types",
    "auto_map", "n_positions", "num_experts", "kv_lora_rank", "layer_norm_eps", "rope_theta", "torch_dtype",
    "max_window_layers", "use_sliding_window", "sliding_window_pattern", "hybrid_override_pattern", "attn_layer_period",
)  # fmt: skip
OF_QUANTIZATION = ("quant_method", "bits", "w_bit", "config_groups", "format", "quant_algo", "load_in_4bit")
GGUF = ("precision", "file_type", "parameter_count", "general_file_type", "tensors")
OTHERS = {
    "generation_config.json": ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "eos_token_id"),
    "tokenizer_config.json": (
        "chat_template",
        "added_tokens_decoder",
        "model_max_length",
        "bos_token",
        "tokenizer_class",
    ),
    "tokenizer.json": ("added_tokens", "model"),
    "preprocessor_config.json": ("image_processor_type",),
    "processor_config.json": ("image_processor",),
    "sentence_bert_config.json": ("max_seq_length",),
    "chat_template.json": ("chat_template",),
    "tekken.json": ("special_tokens",),
}


def objects(names: tuple[str, ...]) -> st.SearchStrategy[Any]:
    return st.dictionaries(st.sampled_from(names), values, max_size=4)


configs = st.one_of(
    objects(CONFIG),
    st.fixed_dictionaries({"quantization_config": objects(OF_QUANTIZATION)}),
    st.fixed_dictionaries({"gguf": objects(GGUF)}),
    st.fixed_dictionaries({"text_config": objects(CONFIG), "vision_config": objects(CONFIG)}),
    values,
)


def store_with(directory: Path, damaged: Path) -> ModelStore:
    """A store with a whole model, and the damaged one."""
    store = ModelStore(directory / "models")
    if not (directory / "whole").exists():
        store.put(make_manifest("whole", write_snapshot(directory / "whole")))
    store.put(make_manifest("damaged", damaged))
    return store


def check_lists(store: ModelStore) -> None:
    """All that the gateway says of models, as JSON."""
    serving = Serving()
    reply = orjson.loads(orjson.dumps(listing.tags_reply(store, serving.describe)))
    assert "whole:latest" in [model["name"] for model in reply["models"]]
    damaged = next(manifest for manifest in store.list() if manifest.name.model == "damaged")
    with suppress(ManifestCorrupt):
        orjson.dumps(listing.show_reply(damaged, serving.describe(damaged), verbose=True))
    with suppress(ManifestCorrupt):
        kv_shape(read_config(damaged.snapshot))


@relaxed
@given(config=configs)
@example(config={"max_position_embeddings": 10**30})
@example(config={"quantization_config": [1]})
@example(config={"architectures": [1]})
@example(config={"architectures": "x", "model_type": ["y"]})
@example(config={"quantization_config": {"bits": 10**30, "config_groups": {"a": {"weights": 5}}}})
@example(config={"gguf": {"tensors": 5, "file_type": [], "parameter_count": 10**30}})
@example(config={"hidden_size": 1e300, "num_attention_heads": 1e-300, "rope_theta": 1})
def test_no_config_hides_other_models(config: Any, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    if not damaged.exists():
        write_snapshot(damaged)
    whole = {**LLAMA_CONFIG, **config} if isinstance(config, dict) else config
    (damaged / "config.json").write_text(json.dumps(whole))
    check_lists(store_with(tmp_path, damaged))


@relaxed
@given(data=st.data(), name=st.sampled_from(sorted(OTHERS)))
def test_no_other_file_of_settings_hides_other_models(data: st.DataObject, name: str, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    if not damaged.exists():
        write_snapshot(damaged)
    content = data.draw(st.one_of(objects(OTHERS[name]), values))
    (damaged / name).write_text(json.dumps(content))
    check_lists(store_with(tmp_path, damaged))


@relaxed
@given(entries=st.dictionaries(st.text(max_size=8), st.one_of(values, objects(("dtype", "shape", "data_offsets")))))
@example(entries={"x": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 0]}})
@example(entries={"x": {"dtype": ["F32"], "shape": [1e300], "data_offsets": [0, 1e300]}})
@example(entries={"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, -9]}})
def test_no_header_of_safetensors_hides_other_models(entries: Any, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    if not damaged.exists():
        write_snapshot(damaged)
    header = json.dumps(entries).encode()
    (damaged / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    check_lists(store_with(tmp_path, damaged))


@relaxed
@given(data=st.binary(max_size=64))
def test_any_bytes_as_a_header_of_safetensors_are_refused_or_read(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with suppress(ManifestCorrupt):
        read_tensors([path])


MANIFEST = json.loads(make_manifest("whole").to_json())


@relaxed
@given(changes=st.dictionaries(st.sampled_from([*MANIFEST, "adapter"]), values, max_size=2))
@example(changes={"asked": "a b/c"})
@example(changes={"parent": "!"})
@example(changes={"modified_at": "0001-01-01T00:00:00+14:00"})
@example(changes={"modified_at": "9999-12-31T23:59:59-14:00"})
@example(changes={"snapshot": "a\0b"})
@example(changes={"parameters": {"num_ctx": 10**30, "stop": [[]]}})
@example(changes={"files": [{"path": "config.json", "size": 10**30, "sha256": "0" * 64}]})
@example(changes={"adapter": {"snapshot": "a\0b", "files": [], "rank": 1}})
def test_no_manifest_hides_other_models(changes: dict[str, Any], tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    if not damaged.exists():
        write_snapshot(damaged)
    store = store_with(tmp_path, damaged)
    (place,) = (tmp_path / "models" / "names").glob("*/*/damaged/latest.json")
    place.write_text(json.dumps({**json.loads(place.read_bytes()), **changes}))
    reply = orjson.dumps(listing.tags_reply(store, Serving().describe))
    assert b"whole:latest" in reply


@relaxed
@given(data=st.binary(max_size=200))
def test_any_bytes_as_a_manifest_are_refused(data: bytes) -> None:
    with pytest.raises(ManifestCorrupt):
        Manifest.from_json(data)


words = st.sampled_from(
    ["FROM x", "PARAMETER", "temperature", "NaN", "1e999", "num_ctx", "9" * 400, '"""', "MESSAGE", "#"]
)


@relaxed
@given(parts=st.lists(st.one_of(words, st.text(max_size=5), st.sampled_from([" ", "\n", "\r\n"])), max_size=12))
def test_any_text_as_a_modelfile_is_read_or_refused(parts: list[str]) -> None:
    with suppress(RequestError):
        orjson.dumps(dict(parse(decode("".join(parts).encode(errors="replace"))).changes.parameters))


@pytest.mark.parametrize("number", ["NaN", "nan", "inf", "-Infinity", "1e999"])
def test_a_parameter_that_is_no_number_is_refused(number: str) -> None:
    with pytest.raises(RequestError, match=rf"\(line 2\): invalid float value \[{number}\]"):
        parse(f"FROM x\nPARAMETER temperature {number}\n")


@relaxed
@given(
    config=st.one_of(
        objects(("r", "target_modules", "rank_pattern", "alpha_pattern", "peft_type", "bias", "use_dora")), values
    )
)
def test_any_settings_of_an_adapter_are_read_or_refused(config: Any, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    if not (folder / "adapter_model.safetensors").exists():
        write_snapshot(tmp_path / "base")
        os.link(tmp_path / "base" / "model.safetensors", folder / "adapter_model.safetensors")
    with suppress(VllamaError):
        read_layers(folder)


def test_a_pipe_or_device_instead_of_a_file_does_not_block(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    damaged = write_snapshot(tmp_path / "damaged")
    store = store_with(tmp_path, damaged)
    (damaged / "config.json").unlink()
    os.mkfifo(damaged / "config.json")
    (place,) = (tmp_path / "models" / "names").glob("*/*/damaged/latest.json")
    with caplog.at_level(logging.WARNING):
        assert [model["name"] for model in listing.tags_reply(store)["models"]] == ["whole:latest"]
    assert "not a regular file" in caplog.text
    place.unlink()
    os.mkfifo(place)
    assert [model.name.model for model in store.list()] == ["whole"]
    with pytest.raises(OSError, match="not a regular file"):
        open_regular(Path("/dev/zero"))


def test_a_model_that_cannot_be_understood_says_why(tmp_path: Path) -> None:
    manifest = make_manifest("x", write_snapshot(tmp_path / "x"))
    (tmp_path / "x" / "config.json").write_text('{"max_position_embeddings": 1e400, "num_labels": {}}')
    with suppress(ManifestCorrupt):
        describe(manifest)
