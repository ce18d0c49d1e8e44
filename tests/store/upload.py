"""A model from uploads, as `ollama create` sends them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from vllama.names import ModelName
from vllama.ollama.creation import Changes
from vllama.store.blobs import Blobs
from vllama.store.create import create
from vllama.store.model_store import ModelStore


def upload_and_create(store: ModelStore, name: ModelName, directory: Path) -> None:
    """Upload all files of a directory and make a model of them."""
    files = {}
    for path in directory.rglob("*"):
        if path.is_file():
            sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
            files[str(path.relative_to(directory))] = f"sha256:{sha256}"
            with Blobs(store.root).receive(sha256, sha256) as upload:
                upload.write(path.read_bytes())
                upload.finish()
    list(create(store, name, Changes(), files=files))
