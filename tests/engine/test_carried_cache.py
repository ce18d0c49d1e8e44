"""What an engine compiled goes with its model to another machine, whose engine then compiles nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.server import Server, environment
from vllama.store.model_store import ModelStore

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]

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


def answer(models: Path, name: str) -> None:
    """Serve the model with compilation, and let it answer."""
    server = Server(models, "--compile", "--model", name, environ={"CXX": os.environ.get("CXX", "c++")})
    try:
        assert server.ask("/api/generate", {"model": name, "prompt": "Hi", "options": {"num_predict": 3}})["done"]
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
