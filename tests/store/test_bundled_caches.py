"""What engines compiled for a model, carried in its bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from vllama.errors import StoreError
from vllama.names import ModelName
from vllama.store import caches
from vllama.store.bundle import read_bundle
from vllama.store.load import load
from vllama.store.model_store import ModelStore
from vllama.store.stage import stage

from .conftest import BuildSnapshot
from .upload import upload_and_create

ONE, TWO = ModelName.parse("one"), ModelName.parse("two")
CODE = "torch_compile_cache/0a/graph.py"


@pytest.fixture(autouse=True)
def models(store: ModelStore, build_snapshot: BuildSnapshot) -> None:
    """Two models, one of them with a cache."""
    upload_and_create(store, ONE, build_snapshot("one"))
    upload_and_create(store, TWO, build_snapshot("two", config={"rope_theta": 5.0}))
    fill(store, {CODE: "graph", "modelinfos/llama.json": "{}"})


@pytest.fixture
def other(tmp_path: Path) -> ModelStore:
    """The store on the other side."""
    return ModelStore(tmp_path / "other")


@pytest.fixture
def bundle(store: ModelStore, tmp_path: Path) -> Path:
    list(stage(store, [ONE, TWO], tmp_path / "bundle", compile_cache=True))
    return tmp_path / "bundle"


def fill(store: ModelStore, files: dict[str, str], name: ModelName = ONE) -> None:
    """Leave what an engine would."""
    in_use = caches.use(store.root, caches.key_of(store.get(name)))
    assert in_use is not None
    for path, content in files.items():
        (in_use.path / path).parent.mkdir(parents=True, exist_ok=True)
        (in_use.path / path).write_text(content)
    in_use.close()


def compiled(store: ModelStore, name: ModelName = ONE) -> dict[str, str]:
    return {path: place.read_text() for path, place in caches.files(store.root, caches.key_of(store.get(name)))}


def change_index(bundle: Path, **changes: Any) -> None:
    """Change what bundle.json says of the code."""
    record = orjson.loads((bundle / "bundle.json").read_bytes())
    [entry] = [file for cache in record["caches"] for file in cache["files"] if file["path"] == CODE]
    entry |= changes
    (bundle / "bundle.json").write_bytes(orjson.dumps(record))


def test_it_comes_along_where_both_sides_ask_for_it(bundle: Path, other: ModelStore) -> None:
    list(load(other, bundle, compile_cache=True))
    assert compiled(other) == {CODE: "graph", "modelinfos/llama.json": "{}"}
    assert (other.root / "cache").stat().st_mode & 0o777 == 0o700


def test_a_model_without_any_is_told_and_staged(store: ModelStore, tmp_path: Path, other: ModelStore) -> None:
    said = [step.status for step in stage(store, [TWO], tmp_path / "bundle", compile_cache=True)]
    assert any(status.startswith("no compiled code for two:latest yet") for status in said[:-1])
    list(load(other, tmp_path / "bundle", compile_cache=True))
    assert other.get(TWO).damaged_files() == []


def test_it_is_not_staged_unless_asked_for(store: ModelStore, tmp_path: Path) -> None:
    list(stage(store, [ONE], tmp_path / "bundle"))
    assert read_bundle(tmp_path / "bundle").caches == {}


def test_it_is_code_and_not_loaded_unless_asked_for(bundle: Path, other: ModelStore) -> None:
    said = [step.status for step in load(other, bundle)]
    assert any("skipped the compiled code of one:latest" in status for status in said)
    assert compiled(other) == {}


def test_what_is_there_already_stays(bundle: Path, other: ModelStore) -> None:
    list(load(other, bundle))
    fill(other, {CODE: "newer"})
    list(load(other, bundle, compile_cache=True))
    assert compiled(other) == {CODE: "newer", "modelinfos/llama.json": "{}"}


def test_the_bundle_has_a_copy_that_no_engine_changes(bundle: Path, store: ModelStore, other: ModelStore) -> None:
    fill(store, {CODE: "later"})
    list(load(other, bundle, compile_cache=True))
    assert compiled(other)[CODE] == "graph"


def test_staging_other_names_leaves_it_and_staging_again_replaces_it(
    bundle: Path, store: ModelStore, other: ModelStore
) -> None:
    list(stage(store, [TWO], bundle))
    fill(store, {CODE: "later"})
    list(stage(store, [ONE], bundle))
    list(load(other, bundle, compile_cache=True))
    assert compiled(other)[CODE] == "graph"
    list(stage(store, [ONE], bundle, compile_cache=True))
    again = ModelStore(other.root.with_name("again"))
    list(load(again, bundle, compile_cache=True))
    assert compiled(again)[CODE] == "later"


def test_it_goes_from_the_bundle_with_its_model(bundle: Path, store: ModelStore, build_snapshot: BuildSnapshot) -> None:
    upload_and_create(store, ONE, build_snapshot("new", files={"LICENSE": "Apache"}))
    list(stage(store, [ONE], bundle))
    assert read_bundle(bundle).caches == {}
    kept = {path.name.removeprefix("sha256-") for path in bundle.glob("*/sha256-*")}
    assert kept == read_bundle(bundle).files.keys()


@pytest.mark.parametrize("path", ["../escape.py", "/etc/escape.py", "a/../../b", "", "a\0b", 7])
def test_paths_that_lead_out_are_refused(bundle: Path, other: ModelStore, path: object) -> None:
    change_index(bundle, path=path)
    with pytest.raises(StoreError, match=r"bundle\.json is damaged"):
        list(load(other, bundle, compile_cache=True))
    assert other.list() == []


def test_a_link_in_the_cache_leads_nowhere(bundle: Path, other: ModelStore, tmp_path: Path) -> None:
    list(load(other, bundle))
    fill(other, {})
    (tmp_path / "outside").mkdir()
    own = caches.directory(other.root, caches.key_of(other.get(ONE)))
    (own / "torch_compile_cache").symlink_to(tmp_path / "outside")
    with pytest.raises(StoreError, match="is outside"):
        list(load(other, bundle, compile_cache=True))
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_cache_where_others_can_write_is_left_alone(bundle: Path, other: ModelStore) -> None:
    (other.root / "cache").mkdir(parents=True)
    (other.root / "cache").chmod(0o777)
    with pytest.raises(StoreError, match=r"loaded 'one:latest', but not its compiled code: .*not a safe directory"):
        list(load(other, bundle, compile_cache=True))
    assert other.get(ONE).damaged_files() == []


def test_a_damaged_file_is_named_and_not_taken(bundle: Path, other: ModelStore) -> None:
    [cache] = read_bundle(bundle).caches.values()
    [code] = [file for file in cache if file.path == CODE]
    (bundle / "files" / f"sha256-{code.sha256}").write_text("GRAPH")
    with pytest.raises(StoreError, match=r"not its compiled code: torch_compile_cache/0a/graph\.py is damaged"):
        list(load(other, bundle, compile_cache=True))
    assert CODE not in compiled(other)
    assert other.get(ONE).damaged_files() == []


def test_a_disk_without_room_is_told(bundle: Path, other: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    list(load(other, bundle))
    usage = type("Usage", (), {"free": 5})
    monkeypatch.setattr("vllama.store.copying.shutil.disk_usage", lambda _: usage)
    with pytest.raises(StoreError, match="not enough disk space in"):
        list(load(other, bundle, compile_cache=True))
    assert compiled(other) == {}
