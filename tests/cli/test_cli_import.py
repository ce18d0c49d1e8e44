from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import Vllama
from ollama_layout import OllamaLayout, gguf_bytes
from tiny_snapshot import write_snapshot

from vllama.store import gguf
from vllama.store.model_store import ModelStore


@pytest.fixture
def ollama(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> OllamaLayout:
    """The store of Ollama in this user's home, with a model that can be converted and one that cannot."""
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "store"))
    converted = write_snapshot(tmp_path / "converted")
    monkeypatch.setattr(gguf, "convert", lambda source, destination: shutil.copytree(converted, destination))
    layout = OllamaLayout(tmp_path / ".ollama" / "models")
    layout.write("registry.ollama.ai/library/mario/latest", layout.manifest(layout.layer("model", gguf_bytes())))
    layout.write("registry.ollama.ai/library/bert/latest", layout.manifest(layout.layer("model", gguf_bytes("bert"))))
    return layout


def names(tmp_path: Path) -> list[str]:
    return [manifest.name.display for manifest in ModelStore(tmp_path / "store").list()]


def test_import_finds_ollamas_store_and_says_what_it_left_out(
    vllama: Vllama, ollama: OllamaLayout, tmp_path: Path
) -> None:
    result = vllama("import", "--ollama")
    assert result.exit_code == 1
    assert "Error: 1 of 2 models were not imported:\n  bert:latest: GGUF files of architecture 'bert'" in result.stderr
    assert names(tmp_path) == ["mario:latest"]


def test_import_of_a_name_ends_with_0_and_tells_its_steps_as_json(
    vllama: Vllama, ollama: OllamaLayout, tmp_path: Path
) -> None:
    result = vllama("import", "--ollama", "mario", "--from", str(ollama.directory), "--json")
    steps = [json.loads(line)["status"] for line in result.stdout.splitlines()]
    assert (result.exit_code, steps[0], steps[-1]) == (0, "importing mario:latest", "success")
    assert names(tmp_path) == ["mario:latest"]


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
    assert f"there are no models of Ollama's in {tmp_path}/nothing, " in result.stderr
    assert "--from" in result.stderr
