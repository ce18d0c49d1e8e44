"""The models under test: random ones of a few megabytes, so that every kind of route has one that answers it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from engine.tiny import user_store

from vllama.errors import ModelNotFound
from vllama.names import ModelName
from vllama.store.model_store import ModelStore
from vllama.store.pull import pull

_TESTS = Path(__file__).parents[1]
_BUILT = {
    "tiny": ("tiny_decider.py", "smollm2:135m"),  # generates, embeds and decides
    "ranker": ("tiny_cross_encoder.py", "all-minilm"),  # ranks, scores and classifies
}
"""The models by name: the script of the tests that writes the snapshot, and the model whose tokenizer it takes."""


def stock(store: ModelStore, directory: Path) -> list[str]:
    """Store the models and return their names; those whose tokenizer is missing in the user's store are left out.

    Snapshots that the directory has are used again.
    """
    return list(_stocked(store, directory))


def _stocked(store: ModelStore, directory: Path) -> Iterator[str]:
    for name, (script, tokenizer_from) in _BUILT.items():
        snapshot = directory / name
        if not snapshot.exists():
            try:
                tokenizer = user_store().get(ModelName.parse(tokenizer_from)).snapshot
            except ModelNotFound:
                continue
            subprocess.run([sys.executable, _TESTS / script, tokenizer, snapshot], check=True, capture_output=True)
        for _ in pull(store, ModelName.parse(name), from_path=snapshot):
            pass
        yield f"{name}:latest"
