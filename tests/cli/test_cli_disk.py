"""`rm`, `du` and `gc` on a store; what may be removed is the subject of tests/store."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tiny_snapshot import make_manifest, write_snapshot

from vllama.names import ModelName
from vllama.store.manifest import Manifest
from vllama.store.model_store import ModelStore

from .conftest import Vllama


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModelStore:
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "store"))
    return ModelStore(tmp_path / "store")


@pytest.fixture
def mario(store: ModelStore) -> Manifest:
    place = store.snapshot_directory("abc")
    manifest = make_manifest("mario", write_snapshot(place))
    store.put(manifest)
    return manifest


def test_rm_deletes_the_files_with_the_last_name(
    vllama: Vllama, store: ModelStore, mario: Manifest, no_server: str
) -> None:
    store.copy(mario.name, ModelName.parse("luigi"))
    assert vllama("rm", "mario").stdout == "deleted 'mario'\n"
    assert mario.snapshot.exists()
    assert vllama("rm", "luigi").exit_code == 0
    assert not mario.snapshot.exists()


def test_rm_takes_a_damaged_manifest_away(vllama: Vllama, store: ModelStore, mario: Manifest, no_server: str) -> None:
    path = next(store.root.glob("names/*/*/mario/latest.json"))
    path.write_text("{")
    assert vllama("rm", "mario").exit_code == 0
    assert not path.exists()


def test_du_shows_each_name_and_the_sum(vllama: Vllama, store: ModelStore, mario: Manifest) -> None:
    shutil.copytree(mario.snapshot, store.snapshot_directory("unused"))
    header, row, _, total = vllama("du").stdout.splitlines()
    size = f"{mario.size / 1000:.1f} KB"
    assert header.split() == ["NAME", "OWN", "SHARED", "OUTSIDE"]
    assert row.split("  ")[0] == "mario:latest"
    assert f"{store.root}, of which {size} unused (free it with vllama gc)" in total
    told = json.loads(vllama("du", "--json").stdout)
    assert told["models"] == [{"name": "mario:latest", "own": mario.size, "shared": 0, "outside": 0}]
    assert told["unused"] == mario.size
    assert told["total"] > 2 * mario.size


def test_du_of_a_store_without_models_is_a_header_and_a_sum(vllama: Vllama, store: ModelStore) -> None:
    assert vllama("du").stdout == f"NAME    OWN    SHARED    OUTSIDE\n\n0 B in {store.root}\n"


def test_gc_tells_what_it_would_remove_and_then_removes_it(vllama: Vllama, store: ModelStore, mario: Manifest) -> None:
    size = f"{mario.size / 1000:.1f} KB"
    store.remove(mario.name)
    assert vllama("gc", "--dry-run").stdout == f"would remove snapshot abc ({size})\nwould free {size}\n"
    assert mario.snapshot.exists()
    told = json.loads(vllama("gc", "--json").stdout)
    item = {"kind": "snapshot", "path": str(mario.snapshot), "size": mario.size}
    assert told == {"removed": [item], "kept": [], "failed": [], "freed": mario.size}
    assert not mario.snapshot.exists()
    assert vllama("gc").stdout == "freed 0 B\n"


def test_gc_says_what_it_keeps(vllama: Vllama, store: ModelStore) -> None:
    (store.root / "staging" / "hub-x@resume").mkdir(parents=True)
    kept, freed = vllama("gc").stdout.splitlines()
    assert kept.startswith("kept staging hub-x@resume (0 B): interrupted pull")
    assert freed == "freed 0 B"
    assert vllama("gc", "--partial").stdout == "removed staging hub-x@resume (0 B)\nfreed 0 B\n"


def test_gc_ends_with_1_where_a_damaged_manifest_hides_what_is_needed(
    vllama: Vllama, store: ModelStore, mario: Manifest
) -> None:
    next(store.root.glob("names/*/*/mario/latest.json")).write_text("{")
    result = vllama("gc")
    assert result.exit_code == 1
    assert "Error: damaged manifest" in result.stderr
    assert mario.snapshot.exists()
