"""What an engine compiled serves other models of the same configuration, and goes with a model to another machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.server import Server, environment
from vllama.names import ModelName
from vllama.store.model_store import ModelStore
from vllama.store.pull import pull

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]

KNOWN_TEXT_MODEL = Path(__file__).parents[1] / "known_text_model.py"
KERNELS = {".so", ".cubin"}
"""How files end that were compiled for a CPU, and for a GPU."""


def test_a_carried_cache_spares_the_other_side_the_compilation(store: ModelStore, tiny: str, tmp_path: Path) -> None:
    """Both sides have their store at one path: on that, too, depends whether vLLM takes what was compiled."""
    models = tmp_path / "models"
    vllama(store.root, "stage", tiny, "--to", tmp_path / "first")
    vllama(models, "load", tmp_path / "first")
    answer(models, tiny)
    compiled = kernels(models)
    assert compiled
    vllama(models, "stage", tiny, "--to", tmp_path / "second", "--compile-cache")
    models.rename(tmp_path / "here")

    vllama(models, "load", tmp_path / "second", "--compile-cache")
    carried = kernels(models)
    assert carried.keys() == compiled.keys()
    answer(models, tiny)
    assert kernels(models) == carried, "nothing was compiled, neither anew nor again"


def test_a_second_model_of_the_same_configuration_compiles_nothing_and_writes_its_own_text(
    store: ModelStore, tmp_path: Path
) -> None:
    models = ModelStore(tmp_path / "models")
    tokenizer = store.get(ModelName.parse("smollm2:135m")).snapshot
    words: dict[str, list[str]] = {}
    for seed, name in enumerate(("alpha", "beta")):
        snapshot = tmp_path / name
        command = [sys.executable, str(KNOWN_TEXT_MODEL), str(tokenizer), str(snapshot), f"--seed={seed}"]
        subprocess.run(command, check=True, capture_output=True)
        for _ in pull(models, ModelName.parse(name), from_path=snapshot):
            pass
        words[name] = json.loads((snapshot / "known_text.json").read_bytes())

    texts = [answer(models.root, "alpha", f"Once {words['alpha'][0]}")]
    compiled = kernels(models.root)
    assert compiled
    texts.append(answer(models.root, "beta", f"Once {words['beta'][0]}"))
    assert kernels(models.root) == compiled
    assert texts == [" " + " ".join(found[1:4]) for found in words.values()]


def answer(models: Path, name: str, prompt: str = "Hi") -> str:
    """Serve the model with compilation, and return what it answers."""
    server = Server(models, "--compile", "--model", name, environ={"CXX": os.environ.get("CXX", "c++")})
    body = {"model": name, "prompt": prompt, "raw": True, "options": {"num_predict": 3, "temperature": 0}}
    try:
        return str(server.ask("/api/generate", body)["response"])
    finally:
        server.close()


def kernels(models: Path) -> dict[str, int]:
    """What is compiled, and when each was written."""
    cache = models / "cache"
    found = (path for path in cache.rglob("*") if path.suffix in KERNELS)
    return {str(path.relative_to(cache)): path.stat().st_mtime_ns for path in found}


def vllama(models: Path, *arguments: str | Path) -> None:
    command = [sys.executable, "-m", "vllama", *map(str, arguments)]
    subprocess.run(command, env=environment(models, "cache"), check=True, capture_output=True)
