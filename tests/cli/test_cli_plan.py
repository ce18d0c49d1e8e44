"""`vllama plan`; the rule itself is the subject of tests/scheduler/test_placing.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_snapshot import make_manifest, write_snapshot

from vllama.scheduler import engine_flags, planner
from vllama.scheduler.devices import Machine
from vllama.scheduler.memory import GIB, MIB, Device
from vllama.store.model_store import ModelStore

from .conftest import Vllama

GPU = Machine((Device(0, "NVIDIA L4", 24 * GIB, 23 * GIB, id="0"),))
CPU = Machine((Device(0, "Xeon", 16 * GIB, 12 * GIB, kind="cpu", cores=8),), "no driver")

SHAPE = {
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> list[Machine]:
    """The machine that commands see: the last in the list."""
    seen = [CPU]
    monkeypatch.setattr(planner, "read_machine", lambda: seen[-1])
    monkeypatch.setattr(engine_flags, "has_gpu", lambda: seen[-1].has_gpu)
    monkeypatch.setattr(engine_flags, "computes_half_precision_fast", lambda: True)
    return seen


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModelStore:
    """A store with models whose weights are sparse files: `small` of 3 GiB, `large` of 30 GiB."""
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "store"))
    store = ModelStore(tmp_path / "store")
    for name, size in (("small", 3), ("large", 30)):
        snapshot = write_snapshot(store.snapshot_directory(name), config=SHAPE, tensors={})
        with_weights(snapshot / "model.safetensors", size * GIB)
        store.put(make_manifest(name, snapshot))
    return store


def with_weights(path: Path, size: int) -> None:
    """Write a header and a hole of so many bytes."""
    entry = {"weight": {"dtype": "BF16", "shape": [size // 2], "data_offsets": [0, size]}}
    header = json.dumps(entry).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)


def planned(vllama: Vllama, *arguments: str, exit_code: int = 0) -> list[dict[str, Any]]:
    result = vllama("plan", "--json", *arguments)
    assert result.exit_code == exit_code, result.output
    models: list[dict[str, Any]] = json.loads(result.stdout)["models"]
    return models


@pytest.mark.usefixtures("store", "no_server")
def test_the_table_explains_where_a_model_goes_and_what_it_gets(vllama: Vllama, machine: list[Machine]) -> None:
    machine.append(GPU)
    device, _, header, row, *rest = vllama("plan", "small").stdout.splitlines()
    assert device == "GPU 0 (NVIDIA L4): 23.0 GiB of 24.0 GiB free"
    assert header.split()[:4] == ["NAME", "ON", "WEIGHTS", "OVERHEAD"]
    cells = [cell.strip() for cell in row.split("    ") if cell.strip()]
    assert cells[:3] == ["small:latest", "0", "3.0 GiB"]
    assert cells[3].startswith("~")
    assert cells[4] == "28.0 KiB"
    assert cells[6] == "32768"
    assert cells[-1] == "fits"
    assert rest == ["", "~ marks an estimate, which the first load of the model replaces with a measurement."]


@pytest.mark.usefixtures("store", "no_server")
def test_several_names_are_planned_together_in_their_order(vllama: Vllama, machine: list[Machine]) -> None:
    machine.append(GPU)
    alone, beside = planned(vllama, "small", "small")
    assert alone["verdict"] == beside["verdict"] == "fits"
    assert beside["kv_cache"] < alone["kv_cache"]
    assert alone["takes"] + beside["takes"] < GPU.devices[0].free
    assert alone["flags"][:2] == ["--kv-cache-memory-bytes", str(alone["kv_cache"])]
    assert alone["environment"]["CUDA_VISIBLE_DEVICES"] == "0"


@pytest.mark.usefixtures("store", "no_server")
def test_a_model_for_which_others_would_have_to_go_is_no_failure(vllama: Vllama, machine: list[Machine]) -> None:
    machine.append(GPU)
    *_, last = planned(vllama, "small", "small", "small", "small", "small")
    assert last["verdict"] == "fits when others sleep or stop"
    assert "without the models that are loaded now" in last["message"]


@pytest.mark.usefixtures("store", "no_server")
def test_a_model_that_cannot_fit_ends_with_1_and_says_what_would_fit(vllama: Vllama, machine: list[Machine]) -> None:
    machine.append(GPU)
    (found,) = planned(vllama, "large", exit_code=1)
    assert found["verdict"] == "does not fit"
    assert found["would_fit"] == {"context": 0, "gpus": 2, "bits": 8}
    result = vllama("plan", "large")
    assert result.exit_code == 1
    assert "large:latest: model requires more GPU memory (" in result.stdout
    assert "it would fit on 2 GPUs of this kind or quantized to 8 bits" in result.stdout


@pytest.mark.usefixtures("store", "no_server")
def test_without_a_gpu_the_ram_is_planned(vllama: Vllama, machine: list[Machine]) -> None:
    (found,) = planned(vllama, "small")
    assert found["kv_cache"] == 12 * GIB // 8
    assert found["environment"] == {}
    assert "CPU (Xeon, 8 cores): 12.0 GiB of 16.0 GiB free" in vllama("plan", "small").stdout


@pytest.mark.usefixtures("store", "no_server")
def test_settings_and_vllm_s_flags_count(
    vllama: Vllama, machine: list[Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_CONTEXT_LENGTH", "4096")
    assert planned(vllama, "small")[0]["context"] == 4096
    (found,) = planned(vllama, "small", "--", "--kv-cache-memory-bytes", "128M", "--max-model-len", "2048")
    assert (found["context"], found["kv_cache"]) == (2048, 128 * MIB)
    refused = vllama("plan", "small", "--", "--port", "1")
    assert refused.exit_code == 2
    assert "--port is set by vllama" in refused.stderr


@pytest.mark.usefixtures("store", "machine", "no_server")
def test_a_name_that_is_not_stored_is_an_error(vllama: Vllama) -> None:
    result = vllama("plan", "nothing")
    assert result.exit_code == 1
    assert "model 'nothing:latest' not found in" in result.stderr


@pytest.mark.usefixtures("store", "no_server")
def test_gpus_of_which_nvml_says_nothing_cannot_be_planned(
    vllama: Vllama, machine: list[Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_flags, "has_gpu", lambda: True)
    result = vllama("plan", "small")
    assert result.exit_code == 1
    assert result.stderr == "Error: cannot read the memory of this machine's GPUs: no driver\n"
