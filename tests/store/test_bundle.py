from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import sys
import traceback
from collections import namedtuple
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import orjson
import pytest

from vllama.errors import ModelNotFound, StoreError
from vllama.names import ModelName
from vllama.store import copying
from vllama.store.bundle import FORMAT_VERSION, read_bundle
from vllama.store.hashing import hash_files
from vllama.store.load import load
from vllama.store.manifest import ChatMessage, Manifest, ManifestFile, Source, content_digest
from vllama.store.model_import import plain_manifest
from vllama.store.model_store import ModelStore
from vllama.store.progress import Progress
from vllama.store.snapshot import find_files
from vllama.store.stage import stage
from vllama.store.verify import verify

from .conftest import BuildSnapshot

ONE, TWO = ModelName.parse("one"), ModelName.parse("two:8b")
Change = Callable[[dict[str, Any]], None]


def run(steps: Iterable[Progress]) -> list[Progress]:
    return list(steps)


def hashed(directory: Path) -> tuple[ManifestFile, ...]:
    steps = hash_files(directory, find_files(directory))
    while True:
        try:
            next(steps)
        except StopIteration as end:
            files: tuple[ManifestFile, ...] = end.value
            return files


def keep(store: ModelStore, name: ModelName, snapshot: Path, **changes: Any) -> Manifest:
    """Store a snapshot as a pull does: its files are the store's own."""
    files = hashed(snapshot)
    place = store.adopt(snapshot, content_digest(files))
    manifest = replace(plain_manifest(name, place, files, Source("hub", "a/b", "c"), datetime.now(UTC)), **changes)
    store.put(manifest)
    return manifest


@pytest.fixture
def one(store: ModelStore, build_snapshot: BuildSnapshot) -> Manifest:
    changes = {"system": "Be brief.", "parameters": {"temperature": 0.5}, "messages": (ChatMessage("user", "Hi"),)}
    return keep(store, ONE, build_snapshot("one"), **changes)


@pytest.fixture
def two(store: ModelStore, build_snapshot: BuildSnapshot) -> Manifest:
    """Another model; all but one of its files are those of `one`."""
    return keep(store, TWO, build_snapshot("two", files={"LICENSE": "MIT"}))


@pytest.fixture
def bundle(store: ModelStore, one: Manifest, two: Manifest, tmp_path: Path) -> Path:
    run(stage(store, [ONE, TWO], tmp_path / "bundle"))
    return tmp_path / "bundle"


@pytest.fixture
def other(tmp_path: Path) -> ModelStore:
    """The store on the other side."""
    return ModelStore(tmp_path / "other")


def contents(manifest: Manifest) -> dict[str, bytes]:
    return {file.path: (manifest.snapshot / file.path).read_bytes() for file in manifest.files}


def place_of(bundle: Path, manifest: Manifest, path: str = "model.safetensors") -> Path:
    [sha256] = [file.sha256 for file in manifest.files if file.path == path]
    return bundle / "files" / f"sha256-{sha256}"


def unlinked(path: Path) -> Path:
    """Make the file one of its own: the bundle shares its files with the store."""
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)
    return path


def assert_untouched(store: ModelStore) -> None:
    assert store.list() == []
    assert store.unreadable() == {}


class TestStage:
    def test_a_bundle_loaded_elsewhere_is_the_same_model(self, bundle: Path, one: Manifest, other: ModelStore) -> None:
        assert run(load(other, bundle))[-1] == Progress("success")
        loaded = other.get(ONE)
        assert (loaded.digest, loaded.source, loaded.system) == (one.digest, one.source, "Be brief.")
        assert contents(loaded) == contents(one)
        assert loaded.snapshot.is_relative_to(other.root)
        assert other.get(TWO).files != loaded.files

    def test_the_store_on_the_other_side_needs_the_bundle_no_more(self, bundle: Path, other: ModelStore) -> None:
        run(load(other, bundle))
        shutil.rmtree(bundle)
        assert [manifest.damaged_files() for manifest in other.list()] == [[], []]

    def test_files_that_names_share_are_there_once(self, bundle: Path, one: Manifest, two: Manifest) -> None:
        sums = {file.sha256 for manifest in (one, two) for file in manifest.files}
        assert len(sums) == len(two.files)
        assert {path.name for path in (bundle / "files").iterdir()} == {f"sha256-{sha256}" for sha256 in sums}

    def test_the_index_tells_names_sizes_and_checksums_of_all_files(self, bundle: Path, one: Manifest) -> None:
        index = orjson.loads((bundle / "bundle.json").read_bytes())
        assert index["format_version"] == FORMAT_VERSION
        assert index["vllama_version"]
        assert [model["name"] for model in index["models"]] == [ONE.full, TWO.full]
        assert index["models"][0]["size"] == one.size
        for entry in index["files"]:
            [path] = bundle.glob(f"*/sha256-{entry['sha256']}")
            assert path.stat().st_size == entry["size"]
            assert hashlib.sha256(path.read_bytes()).hexdigest() == entry["sha256"]

    def test_a_store_on_the_same_disk_shares_its_files(self, bundle: Path, two: Manifest) -> None:
        assert place_of(bundle, two, "LICENSE").samefile(two.snapshot / "LICENSE")

    def test_files_of_a_users_own_directory_are_copied_also_behind_links(
        self, store: ModelStore, build_snapshot: BuildSnapshot, tmp_path: Path, other: ModelStore
    ) -> None:
        snapshot = build_snapshot("mine")
        (snapshot / "model.safetensors").rename(tmp_path / "blob")
        (snapshot / "model.safetensors").symlink_to(tmp_path / "blob")
        manifest = plain_manifest(ONE, snapshot, hashed(snapshot), Source("local", "", ""), datetime.now(UTC))
        store.put(manifest)
        run(stage(store, [ONE], tmp_path / "bundle"))
        place = place_of(tmp_path / "bundle", manifest)
        assert not place.is_symlink()
        assert not place.samefile(tmp_path / "blob")
        run(load(other, tmp_path / "bundle"))
        assert contents(other.get(ONE)) == contents(manifest)

    def test_where_links_cannot_be_had_files_are_copied(
        self, store: ModelStore, one: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "link", _refused)
        run(stage(store, [ONE], tmp_path / "bundle"))
        place = place_of(tmp_path / "bundle", one)
        assert place.stat().st_nlink == 1
        assert place.read_bytes() == (one.snapshot / "model.safetensors").read_bytes()

    def test_a_copy_after_a_killed_link_leaves_the_stores_file_alone(
        self, store: ModelStore, one: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = contents(one)
        (tmp_path / "bundle" / "files").mkdir(parents=True)
        for file in one.files:
            (tmp_path / "bundle" / "files" / f"sha256-{file.sha256}.part").hardlink_to(one.snapshot / file.path)
        monkeypatch.setattr(os, "link", _refused)
        run(stage(store, [ONE], tmp_path / "bundle"))
        assert contents(one) == before
        assert place_of(tmp_path / "bundle", one).stat().st_ino != (one.snapshot / "model.safetensors").stat().st_ino

    def test_staging_again_writes_no_file_again(self, store: ModelStore, bundle: Path) -> None:
        before = {path.name: path.stat().st_ino for path in (bundle / "files").iterdir()}
        index = (bundle / "bundle.json").read_bytes()
        run(stage(store, [ONE, TWO], bundle))
        assert {path.name: path.stat().st_ino for path in (bundle / "files").iterdir()} == before
        assert (bundle / "bundle.json").read_bytes() == index

    def test_staging_again_heals_a_damaged_file(
        self, store: ModelStore, bundle: Path, one: Manifest, other: ModelStore
    ) -> None:
        place = unlinked(place_of(bundle, one))
        place.write_bytes(bytes(place.stat().st_size))
        run(stage(store, [ONE], bundle))
        run(load(other, bundle))
        assert contents(other.get(ONE)) == contents(one)

    def test_names_are_added_and_replaced_and_what_none_needs_goes(
        self, store: ModelStore, bundle: Path, build_snapshot: BuildSnapshot, other: ModelStore
    ) -> None:
        new = keep(store, TWO, build_snapshot("new", files={"LICENSE": "Apache"}))
        run(stage(store, [TWO], bundle))
        run(load(other, bundle))
        assert other.get(ONE).system == "Be brief."
        assert contents(other.get(TWO)) == contents(new)
        assert {path.name for path in (bundle / "files").iterdir()} == {f"sha256-{file.sha256}" for file in new.files}

    def test_nothing_is_added_to_a_bundle_whose_other_names_are_damaged(
        self, store: ModelStore, bundle: Path, one: Manifest
    ) -> None:
        place_of(bundle, one).unlink()
        with pytest.raises(StoreError, match=r"model\.safetensors of 'two:8b' in the bundle .* is damaged or missing"):
            run(stage(store, [ONE], bundle))

    def test_a_damaged_file_of_the_store_is_not_staged(self, store: ModelStore, one: Manifest, tmp_path: Path) -> None:
        path = one.snapshot / "config.json"
        path.write_bytes(bytes(path.stat().st_size))
        with pytest.raises(StoreError, match=r"cannot stage 'one:latest': config\.json is damaged: its sha256"):
            run(stage(store, [ONE], tmp_path / "bundle"))
        with pytest.raises(StoreError, match="is not a complete bundle"):
            read_bundle(tmp_path / "bundle")

    def test_a_missing_file_of_the_store_is_named(self, store: ModelStore, one: Manifest, tmp_path: Path) -> None:
        (one.snapshot / "config.json").unlink()
        with pytest.raises(StoreError, match=r"cannot stage 'one:latest': .*config\.json"):
            run(stage(store, [ONE], tmp_path / "bundle"))

    def test_an_unknown_name_writes_nothing(self, store: ModelStore, one: Manifest, tmp_path: Path) -> None:
        with pytest.raises(ModelNotFound):
            run(stage(store, [ONE, TWO], tmp_path / "bundle"))
        assert not (tmp_path / "bundle").exists()

    def test_a_model_that_passes_flags_to_vllm_is_refused(
        self, store: ModelStore, one: Manifest, tmp_path: Path
    ) -> None:
        store.put(replace(one, engine_flags=("--trust-remote-code", "--seed=1")))
        with pytest.raises(StoreError, match=r"has flags for vLLM .--seed=1"):
            run(stage(store, [ONE], tmp_path / "bundle"))

    def test_a_disk_without_room_is_told_before_anything_is_copied(
        self, store: ModelStore, one: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        no_room(monkeypatch)
        snapshot = tmp_path / "elsewhere"
        shutil.copytree(one.snapshot, snapshot)
        store.put(replace(one, snapshot=snapshot))
        with pytest.raises(StoreError, match=rf"not enough disk space in .*bundle: {one.size:,} bytes needed, 5 free"):
            run(stage(store, [ONE], tmp_path / "bundle"))
        assert list((tmp_path / "bundle" / "files").iterdir()) == []

    def test_two_writers_of_one_bundle_are_told_apart(self, store: ModelStore, one: Manifest, tmp_path: Path) -> None:
        first = stage(store, [ONE], tmp_path / "bundle")
        while next(first).status == "reading manifests":
            pass
        with pytest.raises(StoreError, match="another `vllama stage` is writing to"):
            run(stage(store, [ONE], tmp_path / "bundle"))
        assert run(first)[-1] == Progress("success")

    def test_progress_tells_each_file_with_its_bytes(self, store: ModelStore, one: Manifest, tmp_path: Path) -> None:
        steps = run(stage(store, [ONE], tmp_path / "bundle"))
        done = {step.digest for step in steps if step.digest and step.total == step.completed}
        assert done == {f"sha256:{file.sha256}" for file in one.files}


class TestLoad:
    def test_only_the_names_that_are_asked_for_are_loaded(self, bundle: Path, other: ModelStore) -> None:
        run(load(other, bundle, [ModelName.parse("ONE")]))
        assert [manifest.name for manifest in other.list()] == [ONE]

    def test_a_name_that_the_bundle_has_not_is_told_with_those_it_has(self, bundle: Path, other: ModelStore) -> None:
        with pytest.raises(
            StoreError, match=r"the bundle does not contain 'three:latest'; it contains one:latest, two:8b"
        ):
            run(load(other, bundle, [ONE, ModelName.parse("three")]))
        assert_untouched(other)

    def test_loading_again_changes_nothing(self, bundle: Path, other: ModelStore) -> None:
        run(load(other, bundle))
        before = [(path, path.stat().st_mtime_ns) for path in sorted(other.root.rglob("*.json"))]
        run(load(other, bundle))
        assert [(path, path.stat().st_mtime_ns) for path in sorted(other.root.rglob("*.json"))] == before

    def test_loading_again_heals_a_damaged_file(self, bundle: Path, one: Manifest, other: ModelStore) -> None:
        run(load(other, bundle))
        (other.get(ONE).snapshot / "config.json").write_bytes(b"{")
        (other.get(ONE).snapshot / "model.safetensors").unlink()
        run(load(other, bundle, [ONE]))
        assert contents(other.get(ONE)) == contents(one)

    def test_links_share_the_files_with_the_bundle(self, bundle: Path, one: Manifest, other: ModelStore) -> None:
        run(load(other, bundle, link=True))
        assert place_of(bundle, one).samefile(other.get(ONE).snapshot / "model.safetensors")

    def test_links_that_cannot_be_had_are_refused_with_what_to_do(
        self, bundle: Path, other: ModelStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "link", _refused)
        with pytest.raises(StoreError, match="on another file system; load without --link"):
            run(load(other, bundle, link=True))

    @pytest.mark.parametrize("link", [False, True])
    @pytest.mark.parametrize("grown", [b"", b"\0", b"\0" * 100])
    def test_a_wrong_byte_or_size_is_named_and_the_old_model_stays(
        self, bundle: Path, one: Manifest, other: ModelStore, grown: bytes, *, link: bool
    ) -> None:
        old = keep(other, ONE, _copy(one.snapshot, bundle.parent / "old"), system="Old.")
        for path in ("model.safetensors", "tokenizer.json"):
            (old.snapshot / path).write_bytes(b"damaged, so that it is read from the bundle")
        place = unlinked(place_of(bundle, one, "tokenizer.json"))
        data = bytearray(place.read_bytes())
        data[7] ^= 1
        place.write_bytes(data + grown)
        with pytest.raises(StoreError, match=r"cannot load .* from the bundle: tokenizer\.json is damaged"):
            run(load(other, bundle, [ONE], link=link))
        assert [(manifest.name, manifest.system) for manifest in other.list()] == [(ONE, "Old.")]

    def test_a_missing_file_is_named_and_no_name_appears(self, bundle: Path, one: Manifest, other: ModelStore) -> None:
        place_of(bundle, one, "config.json").unlink()
        with pytest.raises(StoreError, match=r"cannot load 'one:latest': config\.json: No such file"):
            run(load(other, bundle, [ONE]))
        assert_untouched(other)

    def test_a_link_out_of_the_bundle_is_not_followed(self, bundle: Path, one: Manifest, other: ModelStore) -> None:
        place = place_of(bundle, one, "config.json")
        place.rename(bundle.parent / "elsewhere")
        place.symlink_to(bundle.parent / "elsewhere")
        with pytest.raises(StoreError, match="is a symbolic link"):
            run(load(other, bundle, [ONE]))
        assert_untouched(other)

    @pytest.mark.parametrize("folder", ["files", "manifests"])
    def test_a_folder_that_is_a_link_is_not_followed(self, bundle: Path, other: ModelStore, folder: str) -> None:
        (bundle / folder).rename(bundle.parent / "elsewhere")
        (bundle / folder).symlink_to(bundle.parent / "elsewhere")
        with pytest.raises(StoreError, match=f"{folder} is a symbolic link"):
            run(load(other, bundle))
        assert_untouched(other)

    def test_what_is_no_regular_file_is_refused_without_waiting(
        self, bundle: Path, one: Manifest, other: ModelStore
    ) -> None:
        place = place_of(bundle, one, "config.json")
        place.unlink()
        os.mkfifo(place)
        with pytest.raises(StoreError, match="is not a regular file"):
            run(load(other, bundle))
        assert_untouched(other)

    def test_a_directory_without_an_index_is_no_whole_bundle(self, bundle: Path, other: ModelStore) -> None:
        (bundle / "bundle.json").unlink()
        with pytest.raises(
            StoreError, match=r"is not a complete bundle: bundle\.json is missing.*Run `vllama stage` again"
        ):
            run(load(other, bundle))

    def test_a_newer_format_says_to_update(self, bundle: Path, other: ModelStore) -> None:
        edit(bundle, lambda index: index.update(format_version=FORMAT_VERSION + 1))
        with pytest.raises(StoreError, match=r"format version 2; .* reads version 1: update vllama"):
            run(load(other, bundle))

    @pytest.mark.parametrize(
        "change",
        [
            lambda index: index.pop("files"),
            lambda index: index.pop("models"),
            lambda index: index.pop("format_version"),
            lambda index: index["files"][0].update(sha256="../../../etc/passwd"),
            lambda index: index["files"][0].update(size=-1),
            lambda index: index["files"][0].update(size="1"),
            lambda index: index["models"][0].update(name="../../x"),
            lambda index: index["models"][0].update(manifest="../" * 20 + "etc/passwd"),
            lambda index: index["models"][0].update(manifest="0" * 64),
            lambda index: index.update(models=[1]),
        ],
        ids=count(),
    )
    def test_a_damaged_index_is_refused(self, bundle: Path, other: ModelStore, change: Change) -> None:
        edit(bundle, change)
        with pytest.raises(StoreError, match=r"bundle\.json is damaged"):
            run(load(other, bundle))
        assert_untouched(other)

    @pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff"])
    def test_an_index_that_is_no_json_object_is_refused(self, bundle: Path, other: ModelStore, data: bytes) -> None:
        (bundle / "bundle.json").write_bytes(data)
        with pytest.raises(StoreError, match=r"bundle\.json is damaged"):
            run(load(other, bundle))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda it: it["files"][0].update(path="../../escape.json"), "is outside the snapshot"),
            (lambda it: it["files"][0].update(path="/etc/passwd.json"), "is outside the snapshot"),
            (lambda it: it["files"][0].update(path="pytorch_model.bin"), "files that do not belong to a model"),
            (lambda it: it["files"][0].update(path="modeling.py"), "files that do not belong to a model"),
            (lambda it: it["files"][0].update(path="./" + it["files"][1]["path"]), "lists a file twice"),
            (lambda it: it["files"][0].update(size=1), "lists no such file of that size"),
            (lambda it: it["files"][0].update(sha256="0" * 64), "lists no such file of that size"),
            (lambda it: it.update(engine_flags=["--seed=1"]), "has flags for vLLM"),
            (lambda it: it.update(engine_flags=["--trust-remote-code"]), "has its own code"),
            (lambda it: it.update(name="other:latest"), "belongs to 'other:latest'"),
            (lambda it: it.update(format_version=99), "format version 99"),
        ],
        ids=count(),
    )
    def test_a_manifest_that_cannot_be_trusted_is_refused(
        self, bundle: Path, other: ModelStore, change: Change, message: str
    ) -> None:
        forge(bundle, change)
        with pytest.raises(StoreError, match=message):
            run(load(other, bundle, [ONE]))
        assert_untouched(other)
        assert not (bundle.parent / "escape.json").exists()

    def test_a_manifest_that_was_changed_on_the_way_is_refused(self, bundle: Path, other: ModelStore) -> None:
        for path in (bundle / "manifests").iterdir():
            path.write_bytes(path.read_bytes().replace(b"Be brief.", b"Be  long."))
        with pytest.raises(StoreError, match="manifest of 'one:latest' in the bundle is damaged"):
            run(load(other, bundle))
        assert_untouched(other)

    def test_the_snapshots_place_is_ours_whatever_the_manifest_says(self, bundle: Path, other: ModelStore) -> None:
        forge(bundle, lambda manifest: manifest.update(snapshot="/etc"))
        run(load(other, bundle, [ONE]))
        assert other.get(ONE).snapshot.is_relative_to(other.root)

    def test_files_that_are_no_model_are_refused(self, bundle: Path, other: ModelStore) -> None:
        forge(bundle, lambda it: it.update(files=[file for file in it["files"] if file["path"] != "config.json"]))
        with pytest.raises(StoreError, match=r"config\.json"):
            run(load(other, bundle, [ONE]))
        assert_untouched(other)

    def test_a_disk_without_room_is_told_before_anything_is_copied(
        self, bundle: Path, one: Manifest, other: ModelStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        no_room(monkeypatch)
        with pytest.raises(StoreError, match=rf"not enough disk space in .*other: {one.size:,} bytes needed, 5 free"):
            run(load(other, bundle, [ONE]))
        assert not other.root.exists()
        run(load(other, bundle, link=True))

    def test_an_interrupted_load_goes_on_where_it_was(self, bundle: Path, one: Manifest, other: ModelStore) -> None:
        steps = load(other, bundle, [ONE])
        loaded = [step for step in iter(steps.__next__, None) if step.digest and step.completed == step.total]
        assert [step.digest for step in loaded] == [f"sha256:{file.sha256}" for file in one.files]
        shutil.rmtree(other.root)
        steps = load(other, bundle, [ONE])
        while next(steps).digest != f"sha256:{one.files[2].sha256}":
            pass
        steps.close()
        assert_untouched(other)
        again = [step.digest for step in load(other, bundle, [ONE]) if step.digest]
        assert again
        assert f"sha256:{one.files[0].sha256}" not in again
        assert contents(other.get(ONE)) == contents(one)


class TestVerify:
    def test_what_is_whole_has_no_problems(self, store: ModelStore, one: Manifest, two: Manifest) -> None:
        verdicts = verdict_on(store)
        assert [(verdict["name"], verdict["ok"], verdict["files"], verdict["size"]) for verdict in verdicts] == [
            ("one:latest", True, len(one.files), one.size),
            ("two:8b", True, len(two.files), two.size),
        ]

    def test_damaged_and_missing_files_are_named(self, store: ModelStore, one: Manifest, two: Manifest) -> None:
        data = bytearray((one.snapshot / "model.safetensors").read_bytes())
        data[-1] ^= 1
        (one.snapshot / "model.safetensors").write_bytes(data)
        (one.snapshot / "config.json").write_bytes(b"{}")
        (one.snapshot / "tokenizer.json").unlink()
        first, second = verdict_on(store)
        problems = {entry["file"]: entry["problem"] for entry in first["problems"]}
        assert problems.keys() == {"model.safetensors", "config.json", "tokenizer.json"}
        assert "its sha256 should be" in problems["model.safetensors"]
        assert problems["config.json"].endswith("bytes, not 2")
        assert problems["tokenizer.json"] == "tokenizer.json is missing"
        assert second["ok"]

    def test_a_damaged_manifest_is_a_problem_with_a_name_or_without(self, store: ModelStore, one: Manifest) -> None:
        [path] = store.root.glob("names/*/*/one/latest.json")
        path.write_bytes(b"{")
        [verdict] = verdict_on(store)
        assert verdict["name"] == "names/registry.ollama.ai/library/one/latest.json"
        assert "damaged manifest" in verdict["problems"][0]["problem"]
        assert [entry["ok"] for entry in verdict_on(store, ONE)] == [False]

    def test_a_name_that_is_not_there_is_an_error(self, store: ModelStore, one: Manifest) -> None:
        with pytest.raises(ModelNotFound):
            verdict_on(store, TWO)

    def test_only_the_names_that_are_asked_for_are_read(self, store: ModelStore, one: Manifest, two: Manifest) -> None:
        (two.snapshot / "config.json").unlink()
        assert [verdict["ok"] for verdict in verdict_on(store, ONE)] == [True]


KILLS = 20


@pytest.mark.parametrize("seed", range(KILLS))
def test_a_killed_stage_leaves_the_old_bundle_or_the_new_or_one_that_load_refuses(
    store: ModelStore, one: Manifest, two: Manifest, tmp_path: Path, other: ModelStore, seed: int
) -> None:
    directory = tmp_path / "bundle"
    begun = seed % 2 == 0
    if begun:
        run(stage(store, [ONE], directory))
    killed_at_random(lambda: run(stage(store, [TWO], directory)), seed, most=34)
    try:
        run(load(other, directory))
    except StoreError as error:
        assert not begun, "what was there was a bundle"
        assert "not a complete bundle" in str(error) or "is not a directory" in str(error)  # noqa: PT017
    names = {manifest.name for manifest in other.list()}
    assert names in ([{ONE}, {ONE, TWO}] if begun else [set(), {TWO}])
    assert all(verdict["ok"] for verdict in verdict_on(other))
    run(stage(store, [TWO], directory))
    run(load(other, directory))
    assert contents(other.get(TWO)) == contents(two)
    left = {path.name.removeprefix("sha256-") for path in directory.glob("*/*")}
    assert left == set(read_bundle(directory).files)
    assert {path.name for path in directory.iterdir()} == {"bundle.json", "files", "manifests", ".stage.lock"}
    assert verdict_on(store) == verdict_on(store, ONE, TWO)
    assert all(verdict["ok"] for verdict in verdict_on(store))


@pytest.mark.parametrize("seed", range(KILLS))
def test_a_killed_load_leaves_the_old_model_or_the_new(
    bundle: Path, one: Manifest, two: Manifest, other: ModelStore, tmp_path: Path, seed: int
) -> None:
    had = seed % 2 == 0
    if had:
        old = _copy(two.snapshot, tmp_path / "old")
        (old / "LICENSE").write_text("Old")
        keep(other, TWO, old, system="Old.")
    killed_at_random(lambda: run(load(other, bundle, link=seed % 4 > 1)), seed, most=180)
    names = {manifest.name: manifest for manifest in other.list()}
    assert other.unreadable() == {}
    assert not had or names[TWO].system in {"Old.", ""}
    assert all(verdict["ok"] for verdict in verdict_on(other))
    run(load(other, bundle))
    assert {manifest.name for manifest in other.list()} == {ONE, TWO}
    assert contents(other.get(TWO)) == contents(two)
    assert list((other.root / "staging").iterdir()) == []
    assert all(verdict["ok"] for verdict in verdict_on(other))


def killed_at_random(work: Callable[[], object], seed: int, most: int) -> None:
    """Do the work in a process that is killed before one of its first `most` system calls, if it has as many."""
    left = random.Random(seed).randrange(1, most)
    child = os.fork()
    if not child:
        touches = {"open", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.scandir", "fcntl.flock"}

        def die(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal left
            left -= event in touches
            if not left:
                left = -1  # the kill is such an event itself
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(die)
        try:
            work()
            os._exit(0)
        except BaseException:  # noqa: BLE001 - pytest must not go on in two processes
            traceback.print_exc()
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in {0, -signal.SIGKILL}


def verdict_on(store: ModelStore, *names: ModelName) -> list[dict[str, Any]]:
    steps = verify(store, names)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return [verdict.to_record() for verdict in end.value]


def edit(bundle: Path, change: Change) -> None:
    index = orjson.loads((bundle / "bundle.json").read_bytes())
    change(index)
    (bundle / "bundle.json").write_bytes(orjson.dumps(index))


def forge(bundle: Path, change: Change) -> None:
    """Change the manifest of the first model, with checksums that are right."""

    def point_at(index: dict[str, Any]) -> None:
        entry = index["models"][0]
        manifest = orjson.loads((bundle / "manifests" / f"sha256-{entry['manifest']}").read_bytes())
        change(manifest)
        data = orjson.dumps(manifest)
        entry["manifest"] = hashlib.sha256(data).hexdigest()
        (bundle / "manifests" / f"sha256-{entry['manifest']}").write_bytes(data)
        index["files"].append({"sha256": entry["manifest"], "size": len(data)})

    edit(bundle, point_at)


def no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")  # noqa: PYI024
    monkeypatch.setattr(copying.shutil, "disk_usage", lambda path: usage(10, 5, 5))  # type: ignore[attr-defined]


def _refused(*arguments: object, **more: object) -> None:
    raise PermissionError(1, "Operation not permitted")


def _copy(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target
