from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from ollama_layout import OllamaLayout, converts_to, gguf_bytes
from tiny_snapshot import write_snapshot

from vllama.store.gguf import conversion
from vllama.store.gguf.forecast import Forecast
from vllama.store.model_store import ModelStore
from vllama.store.sources import ollama_store

from .conftest import Vllama


@pytest.fixture
def ollama(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> OllamaLayout:
    """The store of Ollama in this user's home, with a model that can be converted and one that cannot."""
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "store"))
    converted = write_snapshot(tmp_path / "converted")
    monkeypatch.setattr(conversion, "convert", converts_to(converted))
    layout = OllamaLayout(tmp_path / ".ollama" / "models")
    layout.write("registry.ollama.ai/library/mario/latest", layout.manifest(layout.layer("model", gguf_bytes())))
    layout.write("registry.ollama.ai/library/bert/latest", layout.manifest(layout.layer("model", gguf_bytes("rwkv6"))))
    return layout


def names(tmp_path: Path) -> list[str]:
    return [manifest.name.display for manifest in ModelStore(tmp_path / "store").list()]


def test_import_finds_ollamas_store_and_says_what_it_left_out(
    vllama: Vllama, ollama: OllamaLayout, tmp_path: Path
) -> None:
    result = vllama("import", "--ollama")
    assert result.exit_code == 1
    assert (
        "Error: 1 of 2 models were not imported:\n  bert:latest: cannot convert GGUF files of architecture 'rwkv6'"
        in result.stderr
    )
    assert names(tmp_path) == ["mario:latest"]


def test_import_of_a_name_ends_with_0_and_tells_its_steps_as_json(
    vllama: Vllama, ollama: OllamaLayout, tmp_path: Path
) -> None:
    result = vllama("import", "--ollama", "mario", "--from", str(ollama.directory), "--json")
    steps = [json.loads(line)["status"] for line in result.stdout.splitlines()]
    assert (result.exit_code, steps[0], steps[-1]) == (0, "importing mario:latest", "success")
    assert names(tmp_path) == ["mario:latest"]


def test_a_dry_run_says_what_would_become_of_each_model_and_imports_nothing(
    vllama: Vllama, ollama: OllamaLayout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def foresee(source: Path, precision: str) -> Forecast:
        asked.append(precision)
        return Forecast("Q4_0", "Q4_0: INT4, exact", 5_000_000_000)

    monkeypatch.setattr(ollama_store, "forecast", foresee)
    result = vllama("import", "--ollama", "--dry-run")

    header, refused, mario = result.stdout.splitlines()
    assert header.split() == ["NAME", "TYPE", "FILE", "MEMORY", "WEIGHTS"]
    assert re.fullmatch(r"mario:latest +Q4_0 +\d+ B +5 GB +Q4_0: INT4, exact", mario)
    assert "refused: cannot convert GGUF files of architecture 'rwkv6'" in refused
    assert (result.exit_code, names(tmp_path), asked) == (1, [], ["exact"])


def test_a_dry_run_as_json_has_an_object_for_each_model(
    vllama: Vllama, ollama: OllamaLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ollama_store, "forecast", lambda *_: Forecast("Q8_0", "Q8_0: BF16, rounded", 16))
    result = vllama("import", "--ollama", "--dry-run", "--json", "--precision", "bf16", "mario")

    found = json.loads(result.stdout)
    assert found.pop("size") > 0
    assert found == {
        "name": "mario:latest",
        "quantization_level": "Q8_0",
        "weights": "Q8_0: BF16, rounded",
        "memory": 16,
        "refused": "",
    }
    assert result.exit_code == 0


def test_a_directory_without_models_is_not_taken_for_success(
    vllama: Vllama, ollama: OllamaLayout, tmp_path: Path
) -> None:
    assert vllama("import", "--ollama", "mario", "--from", str(tmp_path / ".ollama")).exit_code == 0
    (tmp_path / "empty" / "manifests").mkdir(parents=True)
    for directory in ("empty", "converted"):
        result = vllama("import", "--ollama", "--from", str(tmp_path / directory))
        assert result.exit_code == 1
        assert "Ollama" in result.stderr


def test_import_must_be_told_from_what(vllama: Vllama, ollama: OllamaLayout) -> None:
    result = vllama("import", "mario")
    assert result.exit_code == 2
    assert "--ollama" in result.stderr


def test_import_without_a_store_of_ollamas_names_the_places_it_looked_at(
    vllama: Vllama, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("vllama.store.sources.ollama_store.PLACES", (str(tmp_path / "nothing"),))
    result = vllama("import", "--ollama")
    assert result.exit_code == 1
    assert f"no Ollama models found in {tmp_path}/nothing, " in result.stderr
    assert "--from" in result.stderr
