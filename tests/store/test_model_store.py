from __future__ import annotations

import fcntl
import logging
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllama.errors import InvalidName, ManifestCorrupt, ModelNotFound, StoreError
from vllama.names import ModelName
from vllama.store import model_store
from vllama.store.foreign_files import read_bounded
from vllama.store.model_store import ModelStore

from .conftest import make_manifest

NAME = ModelName.parse("smollm2:135m")


def test_a_store_that_was_never_written_to_is_empty(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "never-made")
    assert store.list() == []
    with pytest.raises(ModelNotFound, match="model 'smollm2:135m' not found"):
        store.get(NAME)
    assert not (tmp_path / "never-made").exists()


def test_a_manifest_is_found_in_any_case_and_keeps_its_spelling(store: ModelStore) -> None:
    store.put(make_manifest("Me/Foo:Q4"))
    assert store.get(ModelName.parse("me/FOO:q4")).name.display == "Me/Foo:Q4"


def test_storing_again_replaces_what_was_there(store: ModelStore) -> None:
    store.put(make_manifest(system="old"))
    store.put(make_manifest("SMOLLM2:135M", system="new"))
    assert [manifest.system for manifest in store.list()] == ["new"]


def test_the_list_starts_with_the_newest(store: ModelStore) -> None:
    start = datetime(2026, 9, 1, tzinfo=UTC)
    for name, age in (("middle", 1), ("newest", 0), ("oldest", 2)):
        store.put(make_manifest(name, modified_at=start - timedelta(days=age)))
    assert [manifest.name.model for manifest in store.list()] == ["newest", "middle", "oldest"]


def test_another_process_sees_a_change_at_once(store: ModelStore) -> None:
    other = ModelStore(store.root)
    assert other.list() == []
    store.put(make_manifest())
    assert other.get(NAME) == make_manifest()
    store.remove(NAME)
    assert other.list() == []


def test_one_damaged_manifest_does_not_hide_the_others(store: ModelStore, caplog: pytest.LogCaptureFixture) -> None:
    store.put(make_manifest("good"))
    store.put(make_manifest("bad"))
    path = next(store.root.glob("names/*/*/bad/latest.json"))
    path.write_bytes(b"{")
    with caplog.at_level(logging.WARNING):
        assert [manifest.name.model for manifest in store.list()] == ["good"]
    assert str(path) in caplog.text
    with pytest.raises(ManifestCorrupt, match=r"damaged manifest .*bad/latest\.json.*pull the model again"):
        store.get(ModelName.parse("bad"))


def test_a_manifest_with_a_name_that_cannot_be_stored_does_not_hide_the_others(store: ModelStore) -> None:
    store.put(make_manifest("good"))
    hostile = make_manifest("h" * 300 + "/ns/model")
    store._path(NAME).parent.mkdir(parents=True)
    store._path(NAME).write_bytes(hostile.to_json())
    assert [manifest.name.model for manifest in store.list()] == ["good"]


def test_a_manifest_under_the_path_of_another_name_is_refused(store: ModelStore) -> None:
    store.put(make_manifest("one"))
    path = next(store.root.glob("names/*/*/one/latest.json"))
    path.rename(path.with_name("other.json"))
    with pytest.raises(ManifestCorrupt, match="it belongs to 'one:latest'"):
        store.get(ModelName.parse("one:other"))


def test_a_removed_name_is_gone_and_its_snapshot_stays(store: ModelStore) -> None:
    place = store.snapshot_directory("abc")
    place.mkdir(parents=True)
    store.put(make_manifest(snapshot=place))
    store.remove(ModelName.parse("SMOLLM2:135m"))
    with pytest.raises(ModelNotFound):
        store.get(NAME)
    with pytest.raises(ModelNotFound, match="'smollm2:135m'"):
        store.remove(NAME)
    assert place.exists()


def test_a_store_that_was_moved_finds_its_snapshots(store: ModelStore, tmp_path: Path) -> None:
    store.snapshot_directory("abc").mkdir(parents=True)
    store.put(make_manifest(snapshot=store.snapshot_directory("abc")))
    assert store.get(NAME).snapshot == store.snapshot_directory("abc")
    moved = ModelStore(store.root.rename(tmp_path / "elsewhere"))
    assert moved.get(NAME).snapshot == moved.snapshot_directory("abc")


def test_a_write_that_fails_leaves_the_old_manifest_and_no_litter(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put(make_manifest(system="old"))

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"cannot store 'smollm2:135m'.*No space left"):
        store.put(make_manifest(system="new"))
    assert store.get(NAME).system == "old"
    assert [path.name for path in store.root.rglob("*") if path.is_file()] == ["135m.json"]


def test_each_manifest_is_read_once_to_list_all(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(200):
        manifest = make_manifest(f"model:{number}")
        path = store._path(manifest.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(manifest.to_json())
    read: list[Path] = []

    def note(path: Path, most: int) -> bytes:
        read.append(path)
        return read_bounded(path, most)

    monkeypatch.setattr(model_store, "read_bounded", note)
    assert len(store.list()) == 200
    assert len(read) == len(set(read)) == 200


def test_a_name_longer_than_a_file_name_may_be_is_just_not_there(store: ModelStore) -> None:
    name = ModelName.parse("h" * 300 + "/ns/model")
    with pytest.raises(ModelNotFound):
        store.get(name)
    with pytest.raises(InvalidName):
        store.put(make_manifest(name.full))


anything = st.text(st.sampled_from("aB1._-:/\\ ~\0é"), max_size=12) | st.sampled_from(["..", ".", "", "/etc"])


@settings(deadline=None)
@given(st.builds(ModelName, anything, anything, anything, anything))
def test_no_name_leads_out_of_the_store(name: ModelName) -> None:
    store = ModelStore(Path("/store"))
    try:
        path = store._path(name)
    except InvalidName:
        return
    names = store.root / "names"
    assert Path(os.path.normpath(path)) == path
    assert path.parts[: len(names.parts)] == names.parts
    assert len(path.relative_to(names).parts) == 4


@settings(deadline=None)
@given(anything, anything)
def test_names_that_differ_in_more_than_case_have_their_own_manifests(one: str, other: str) -> None:
    store = ModelStore(Path("/store"))
    try:
        names = ModelName.parse(one), ModelName.parse(other)
    except InvalidName:
        return
    assert (store._path(names[0]) == store._path(names[1])) == (names[0].key == names[1].key)


@pytest.mark.parametrize("identity", ["", "..", "a/b", "../x", ".hidden", "x" * 200])
def test_a_snapshot_is_never_outside_the_store(store: ModelStore, identity: str) -> None:
    with pytest.raises(StoreError, match="not a valid snapshot name"):
        store.snapshot_directory(identity)
    with pytest.raises(StoreError), store.staging(identity):
        pass


def test_staging_starts_empty_and_leaves_nothing(store: ModelStore) -> None:
    leftover = store.root / "staging" / "key@of-a-killed-process"
    leftover.mkdir(parents=True)
    (leftover / "half").touch()
    with store.staging("key") as directory:
        assert list(directory.iterdir()) == []
        assert not leftover.exists()
        (directory / "file").touch()
    assert list((store.root / "staging").iterdir()) == []


def test_staging_removes_what_killed_processes_left_under_other_keys(store: ModelStore) -> None:
    parent = store.root / "staging"
    for name in ("other@of-a-killed-process", "pull@resume"):
        (parent / name).mkdir(parents=True)
        (parent / name / "half").touch()
    with store.staging("busy") as busy, store.staging("key"):
        assert busy.is_dir()
        assert {path.name for path in parent.glob("*@*")} >= {"pull@resume", busy.name}
        assert not (parent / "other@of-a-killed-process").exists()
    assert (parent / "pull@resume" / "half").exists()


def test_staging_is_lent_to_one_at_a_time(store: ModelStore) -> None:
    lock = store.root / "staging" / "key.lock"
    with store.staging("key"), store.staging("another"), lock.open() as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert not lock.exists()


def test_work_in_steps_asks_for_pauses_until_the_key_is_free(store: ModelStore) -> None:
    steps = store.turn("key")
    with store.staging("key"):
        assert [next(steps).pause > 0 for _ in range(3)] == [True, True, True]
    with pytest.raises(StopIteration) as ended:
        next(steps)
    with ended.value.value as directory:
        assert directory.is_dir()


@pytest.mark.parametrize("resume", [False, True])
def test_a_store_that_cannot_be_written_to_is_told_before_staging(store: ModelStore, *, resume: bool) -> None:
    store.root.mkdir()
    (store.root / "staging").touch()
    said = pytest.raises(StoreError, match=r"cannot write to the model store: .*staging")
    with said, store.staging("key", resume=resume):
        pytest.fail("the block ran")


@pytest.mark.parametrize("resume", [False, True])
def test_an_error_of_the_work_in_staging_is_not_blamed_on_the_store(store: ModelStore, *, resume: bool) -> None:
    with pytest.raises(BrokenPipeError), store.staging("key", resume=resume):
        raise BrokenPipeError(32, "Broken pipe")


def test_an_error_of_the_work_under_a_lock_is_not_taken_for_another_holder(store: ModelStore) -> None:
    with pytest.raises(BlockingIOError), store.alone("key"):
        raise BlockingIOError(11, "Resource temporarily unavailable")


def test_a_lock_file_keeps_its_bytes_and_is_never_a_link(store: ModelStore, tmp_path: Path) -> None:
    lock = store.lock_path("key")
    lock.parent.mkdir(parents=True)
    other = tmp_path / "other"
    other.write_text("kept")
    lock.hardlink_to(other)
    with store.staging("key"):
        pass
    assert other.read_text() == "kept"
    lock.symlink_to(other)
    with pytest.raises(StoreError, match="cannot write to the model store"), store.staging("key"):
        pytest.fail("the block ran")


def _stage(directory: Path, content: str) -> Path:
    staged = directory / "snapshot"
    (staged / "sub").mkdir(parents=True)
    (staged / "config.json").write_text(content)
    (staged / "sub" / "file.json").write_text(content)
    return staged


def test_an_adopted_directory_is_moved_to_its_place(store: ModelStore) -> None:
    with store.staging("key") as directory:
        place = store.adopt(_stage(directory, "whole"), "abc")
    assert place == store.snapshot_directory("abc")
    assert (place / "sub" / "file.json").read_text() == "whole"


def test_adopting_again_heals_a_damaged_snapshot(store: ModelStore) -> None:
    with store.staging("key") as directory:
        place = store.adopt(_stage(directory, "whole"), "abc")
    (place / "config.json").write_text("cut")
    (place / "sub" / "file.json").unlink()
    with store.staging("key") as directory:
        store.adopt(_stage(directory, "whole"), "abc")
    assert (place / "config.json").read_text() == "whole"
    assert (place / "sub" / "file.json").read_text() == "whole"
