"""Fixtures of the store's tests; the snapshots themselves are those of tests/tiny_snapshot.py."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from replay.recording import exchanges
from tiny_snapshot import CHATML, make_manifest, write_safetensors, write_snapshot

from vllama.store.model_store import ModelStore

__all__ = ["CHATML", "BuildSnapshot", "UsePackageIndex", "make_manifest", "write_safetensors"]

BuildSnapshot = Callable[..., Path]


@pytest.fixture
def build_snapshot(tmp_path: Path) -> BuildSnapshot:
    """Return `write_snapshot` for this test's directory."""
    return lambda name="snapshot", **changes: write_snapshot(tmp_path / name, **changes)


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


@pytest.fixture
def recorded() -> Callable[[str], Any]:
    """Return a function that loads a reply of Ollama 0.24.0, recorded with the same GGUF of SmolLM2."""
    return lambda name: json.loads(exchanges()[name].response.body)


UsePackageIndex = Callable[[str, str, Mapping[str, bytes]], None]


@pytest.fixture
def package_index_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> UsePackageIndex:
    """Return a function that makes one wheel all that pip can find; pip itself is the real one."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))

    def offer(package: str, version: str, members: Mapping[str, bytes]) -> None:
        info = f"{package}-{version}.dist-info"
        with zipfile.ZipFile(shelf / f"{package}-{version}-py3-none-any.whl", "w") as archive:
            archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
            archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            archive.writestr(f"{info}/RECORD", "")
            for path, content in members.items():
                archive.writestr(path, content)

    return offer
