"""What an engine compiled goes with its model to another machine, whose engine then compiles nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from engine.server import Server, environment
from vllama.store.model_store import ModelStore

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]

COMPILED, LOADED = "saved AOT compiled function to", "Directly load AOT compilation from path"
"""What vLLM 0.26 and 0.32 log of the model's compiled code."""


def test_a_carried_cache_spares_the_other_side_the_compilation(store: ModelStore, tiny: str, tmp_path: Path) -> None:
    """Both sides have their store at one path: on that, too, depends whether vLLM takes what was compiled."""
    models = tmp_path / "models"
    vllama(store.root, "stage", tiny, "--to", tmp_path / "first")
    vllama(models, "load", tmp_path / "first")
    said = log_of_a_load(models, tiny)
    assert (COMPILED in said, LOADED in said) == (True, False)
    vllama(models, "stage", tiny, "--to", tmp_path / "second", "--compile-cache")
    models.rename(tmp_path / "here")

    vllama(models, "load", tmp_path / "second", "--compile-cache")
    said = log_of_a_load(models, tiny)
    assert (COMPILED in said, LOADED in said) == (False, True)


def log_of_a_load(models: Path, name: str) -> str:
    """Serve the model with compilation, let it answer, and return what its worker logged."""
    server = Server(models, "--compile", "--model", name)
    try:
        assert server.ask("/api/generate", {"model": name, "prompt": "Hi", "options": {"num_predict": 3}})["done"]
    finally:
        server.close()
    [log] = (models / "logs").glob(f"{name.partition(':')[0]}*.log")
    return log.read_text(errors="replace")


def vllama(models: Path, *arguments: str | Path) -> None:
    command = [sys.executable, "-m", "vllama", *map(str, arguments)]
    subprocess.run(command, env=environment(models, "cache"), check=True, capture_output=True)
