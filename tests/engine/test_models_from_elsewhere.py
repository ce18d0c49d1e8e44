"""SmolLM2 by other ways than the catalogue's: it is loaded by the real engine, and answers as ever."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hub_stand_in import Repository, hub_stand_in
from ollama_layout import OllamaLayout

from engine.server import Record, Server, environment
from vllama.names import ModelName
from vllama.store.manifest import Manifest
from vllama.store.model_store import ModelStore

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

BASE = "smollm2:135m"
CHATML = "{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"


def answer(server: Server, model: str) -> Record:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    options = {"temperature": 0, "seed": 42, "num_predict": 12}
    record = server.ask("/api/chat", {"model": model, "messages": messages, "options": options})
    return {key: record[key] for key in ("message", "prompt_eval_count", "eval_count", "done_reason")}


def test_a_model_of_the_hub_answers_as_it_does_where_it_came_from(
    store: ModelStore, server: Server, tmp_path: Path
) -> None:
    snapshot = store.get(ModelName.parse(BASE)).snapshot
    with hub_stand_in() as hub:
        hub.repositories["acme/SmolLM2"] = Repository({path.name: path.read_bytes() for path in snapshot.iterdir()})
        empty = Server(tmp_path, environ=hub.variables(tmp_path / "huggingface"))
        try:
            steps = empty.records("/api/pull", {"model": "hf.co/acme/SmolLM2"})
            assert steps[-1] == {"status": "success"}, steps
            asked = len(hub.requests)
            assert answer(empty, "hf.co/acme/SmolLM2") == answer(server, BASE)
            assert len(hub.requests) == asked > 0, "once it is here, nobody is asked"
        finally:
            empty.close()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_model_of_ollama_is_the_same_at_each_import_and_answers_as_the_snapshot(
    server: Server, gguf: Path, tmp_path: Path
) -> None:
    ollama = OllamaLayout(tmp_path / "ollama")
    layers = [ollama.layer("model", gguf.read_bytes()), ollama.layer("template", CHATML.encode())]
    ollama.write("registry.ollama.ai/library/smollm2/135m", ollama.manifest(*layers))
    first, second = (import_into(tmp_path / name, ollama.directory) for name in ("first", "second"))
    assert (first.files, first.digest) == (second.files, second.digest)
    assert first.snapshot != second.snapshot

    importer = Server(tmp_path / "first")
    try:
        assert answer(importer, BASE) == answer(server, BASE)
    finally:
        importer.close()


def import_into(models: Path, ollama: Path) -> Manifest:
    """Run `vllama import` and return what it made."""
    command = [sys.executable, "-m", "vllama", "import", "--ollama", "--from", str(ollama)]
    subprocess.run(command, env=environment(models, "import"), check=True, capture_output=True)
    return ModelStore(models).get(ModelName.parse(BASE))
