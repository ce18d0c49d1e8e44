"""What `rm` and `gc` remove, and what they must not, beside real processes that bring models in or are killed."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hub_stand_in import Repository, hub_stand_in
from sampling import count

from vllama.errors import ModelNotFound, StoreError
from vllama.names import ModelName
from vllama.ollama.creation import Changes
from vllama.store.blobs import Blobs
from vllama.store.create import create
from vllama.store.garbage import Report, collect, delete
from vllama.store.manifest import Manifest
from vllama.store.model_store import ModelStore
from vllama.store.usage import ModelUsage, measure

from .conftest import BuildSnapshot, make_manifest
from .killed_at_random import KILLS
from .upload import upload_and_create

HERE = Path(__file__).parent
ONE, TWO = ModelName.parse("one"), ModelName.parse("two")


@pytest.fixture
def one(store: ModelStore, build_snapshot: BuildSnapshot) -> Manifest:
    """A model with files in the store."""
    upload_and_create(store, ONE, build_snapshot())
    return store.get(ONE)


def kinds(report: Report) -> list[str]:
    assert not report.failed
    return [item.kind for item in report.removed]


def test_a_store_in_use_has_nothing_to_remove(store: ModelStore, one: Manifest) -> None:
    assert collect(store) == Report()
    assert one.damaged_files() == []


def test_a_store_that_was_never_made_has_nothing_to_remove(tmp_path: Path) -> None:
    assert collect(ModelStore(tmp_path / "never")) == Report()
    assert not (tmp_path / "never").exists()


def test_the_files_go_with_the_last_name_that_needs_them(store: ModelStore, one: Manifest) -> None:
    store.copy(ONE, TWO)
    delete(store, ONE)
    assert store.get(TWO).damaged_files() == []
    delete(store, TWO)
    assert not one.snapshot.exists()
    assert collect(store) == Report()


def test_a_created_model_keeps_the_files_of_its_base(store: ModelStore, one: Manifest) -> None:
    list(create(store, TWO, Changes(system="S"), base="one"))
    delete(store, ONE)
    assert store.get(TWO).damaged_files() == []


def test_a_directory_of_the_user_is_never_removed(store: ModelStore, build_snapshot: BuildSnapshot) -> None:
    manifest = make_manifest("one", build_snapshot())
    store.put(manifest)
    delete(store, ONE)
    collect(store)
    assert manifest.damaged_files() == []


def test_a_store_under_a_linked_directory_keeps_what_is_named_by_its_real_path(
    store: ModelStore, one: Manifest, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(store.root)
    linked = ModelStore(tmp_path / "link")
    linked.put(make_manifest("two", one.snapshot))
    delete(linked, ONE)
    assert kinds(collect(linked)) == []
    assert one.snapshot.exists()


def test_a_name_that_is_not_there_removes_nothing(store: ModelStore, one: Manifest) -> None:
    with pytest.raises(ModelNotFound):
        delete(store, TWO)
    assert one.damaged_files() == []


def test_an_open_file_stays_readable(store: ModelStore, one: Manifest) -> None:
    with (one.snapshot / "config.json").open() as file:
        delete(store, ONE)
        assert json.load(file)["model_type"] == "llama"


def test_snapshots_without_a_name_are_removed_and_told(store: ModelStore, one: Manifest) -> None:
    store.remove(ONE)
    told = collect(store, dry_run=True)
    assert one.snapshot.exists()
    assert told == collect(store)
    assert (kinds(told), told.freed) == (["snapshot"], one.size)
    assert not one.snapshot.exists()


def test_bytes_that_another_link_keeps_are_not_freed(store: ModelStore, one: Manifest, tmp_path: Path) -> None:
    (tmp_path / "kept").hardlink_to(one.snapshot / "model.safetensors")
    store.remove(ONE)
    weights = (tmp_path / "kept").stat().st_size
    assert collect(store, dry_run=True).freed == collect(store).freed == one.size - weights


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"snapshot": 1}', b"{}"])
def test_no_snapshot_is_taken_for_unused_beside_a_manifest_that_does_not_tell(
    store: ModelStore, one: Manifest, content: bytes
) -> None:
    path = next(store.root.glob("names/*/*/one/latest.json"))
    path.write_bytes(content)
    report = collect(store)
    assert one.snapshot.exists()
    assert str(path) in report.failed[0]
    delete(store, ONE)
    assert kinds(collect(store)) == ["snapshot"]


def test_a_manifest_of_a_newer_format_keeps_its_files(store: ModelStore, one: Manifest) -> None:
    path = next(store.root.glob("names/*/*/one/latest.json"))
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 99'))
    assert kinds(collect(store)) == []
    assert one.snapshot.exists()


def test_a_manifest_is_never_stored_for_a_snapshot_that_was_removed(store: ModelStore, one: Manifest) -> None:
    delete(store, ONE)
    with pytest.raises(StoreError, match=r"cannot store 'one:latest'.*its files were removed"):
        store.put(one)


def test_uploads_go_after_an_hour(store: ModelStore) -> None:
    blobs = Blobs(store.root)
    sha256 = hashlib.sha256(b"x").hexdigest()
    with blobs.receive(sha256, sha256) as upload:
        upload.write(b"x")
        upload.finish()
    assert kinds(collect(store)) == []
    os.utime(blobs.path(sha256), (0, 0))
    assert kinds(collect(store)) == ["blob"]
    assert not blobs.path(sha256).exists()


@contextmanager
def process(store: ModelStore, code: str) -> Iterator[subprocess.Popen[str]]:
    """Run code that says a line, waits for one, and goes on; what is left of it is killed."""
    prelude = (
        "import sys; from pathlib import Path; from vllama.store.model_store import *; "
        "from vllama.store.blobs import Blobs; from vllama.names import ModelName; "
        "store = ModelStore(Path(sys.argv[1]))\n"
        "def pause():\n  print('ready', flush=True); sys.stdin.readline()\n"
    )
    command = [sys.executable, "-c", prelude + code, str(store.root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout
            assert running.stdout.readline() == "ready\n"
            yield running
        finally:
            running.kill()


def go_on(running: subprocess.Popen[str]) -> None:
    running.communicate("\n", timeout=60)
    assert running.returncode == 0


ADOPT = """
with store.session() as session:
    with session.staging("key") as staging:
        (staging / "new").mkdir()
        (staging / "new" / "config.json").write_text("{}")
        place = session.adopt(staging / "new", "abc")
    pause()
    from dataclasses import replace
    session.put(replace(store.get(ModelName.parse("one")), name=ModelName.parse("two"), snapshot=place))
"""


def test_a_snapshot_that_has_no_manifest_yet_stays(store: ModelStore, one: Manifest) -> None:
    with process(store, ADOPT) as running:
        report = collect(store, partial=True)
        assert [(item.kind, item.path.name) for item, _ in report.kept] == [("snapshot", "abc")]
        go_on(running)
    assert store.get(TWO).snapshot.is_dir()
    assert collect(store) == Report()
    assert one.damaged_files() == []


def test_a_snapshot_whose_process_was_killed_goes(store: ModelStore, one: Manifest) -> None:
    with process(store, ADOPT):
        pass
    report = collect(store)
    assert [item.path.name for item in report.removed] == ["abc"]
    assert list((store.root / "staging").iterdir()) == []


COPY = """
with store.session() as session:
    manifest = store.get(ModelName.parse("one"))
    assert session.hold(manifest.snapshot)
    pause()
    from dataclasses import replace
    session.put(replace(manifest, name=ModelName.parse("two")))
"""


def test_files_that_another_process_is_just_giving_a_name_stay(store: ModelStore, one: Manifest) -> None:
    with process(store, COPY) as running:
        delete(store, ONE)
        assert one.damaged_files() == []
        go_on(running)
    assert store.get(TWO).damaged_files() == []


STAGE = """
with store.staging("key") as staging:
    (staging / "half").write_text("12345")
    pause()
"""


def test_a_directory_that_is_being_filled_stays(store: ModelStore) -> None:
    with process(store, STAGE) as running:
        assert [item.kind for item, _ in collect(store, partial=True).kept] == ["staging"]
        go_on(running)
    with process(store, STAGE):
        pass
    report = collect(store)
    assert (kinds(report), report.freed) == (["staging"], 5)
    assert list((store.root / "staging").iterdir()) == []


def test_what_a_stopped_pull_fetched_is_removed_on_demand_only(store: ModelStore) -> None:
    with process(store, STAGE.replace('"key"', '"key", resume=True')):
        pass
    ((item, why),) = collect(store).kept
    assert (item.kind, item.size) == ("staging", 5)
    assert "interrupted pull" in why
    assert collect(store, partial=True).freed == 5
    assert list((store.root / "staging").iterdir()) == []


UPLOAD = """
with Blobs(store.root).receive("0" * 64, "") as upload:
    upload.write(b"1")
    pause()
"""
HALF_A_MANIFEST = """
directory = store.root / "names" / "h" / "n" / "m"
directory.mkdir(parents=True)
path, file = new_locked_file(directory, ".t.json.", ".tmp")
pause()
path.unlink()
"""


@pytest.mark.parametrize(("code", "kind"), [(UPLOAD, "upload"), (HALF_A_MANIFEST, "manifest")])
def test_a_file_that_is_being_written_stays_until_its_process_is_gone(store: ModelStore, code: str, kind: str) -> None:
    with process(store, code) as running:
        assert [item.kind for item, _ in collect(store).kept] == [kind]
        go_on(running)
    assert collect(store) == Report()


@pytest.mark.parametrize(("code", "kind"), [(UPLOAD, "upload"), (HALF_A_MANIFEST, "manifest")])
def test_a_file_that_was_being_written_goes_with_its_process(store: ModelStore, code: str, kind: str) -> None:
    with process(store, code):
        pass
    assert kinds(collect(store, dry_run=True)) == kinds(collect(store)) == [kind]
    assert collect(store) == Report()


def test_kills_at_any_instant_leave_whole_names_and_nothing_after_a_collection(
    store: ModelStore, build_snapshot: BuildSnapshot, one: Manifest
) -> None:
    """One is never removed; others with the same and with other files come and go, in three processes at a time."""
    snapshots = [build_snapshot(f"s{i}", config={"vocab_size": 32 + i}) for i in range(3)]
    remote = build_snapshot("remote", tensors={"model.embed_tokens.weight": ("BF16", [1500, 1000])})
    assert count(50, 200) <= KILLS
    with hub_stand_in() as hub:
        hub.repositories["acme/tiny"] = Repository({path.name: path.read_bytes() for path in remote.iterdir()})
        done = subprocess.run(
            [sys.executable, HERE / "killed_at_random.py", store.root, "hf.co/acme/tiny", *snapshots],
            capture_output=True,
            text=True,
            check=True,
            timeout=250,
            env={**os.environ, **hub.variables(store.root.parent / "huggingface")},
        )
        whole = len(hub.repositories["acme/tiny"].files)
        assert hub.bytes_requests() > whole, "not only the first pull from the Hub came as far as the bytes"
    assert json.loads(done.stdout)["kills"] == KILLS
    report = collect(store, partial=True)
    assert report.failed == []
    assert report.kept == []
    assert store.get(ONE).damaged_files() == []
    assert all(manifest.damaged_files() == [] for manifest in store.list())
    named = {manifest.snapshot for manifest in store.list()}
    assert set((store.root / "snapshots").iterdir()) <= named
    assert list((store.root / "staging").iterdir()) == []
    assert all(path.suffix == ".json" for path in (store.root / "names").rglob("*") if path.is_file())
    assert all(path.name.startswith("sha256-") for path in (store.root / "blobs").iterdir())


def test_usage_tells_own_and_shared_bytes_and_counts_links_once(
    store: ModelStore, one: Manifest, build_snapshot: BuildSnapshot
) -> None:
    store.copy(ONE, TWO)
    other = store.snapshot_directory("other")
    other.mkdir()
    (other / "model.safetensors").hardlink_to(one.snapshot / "model.safetensors")
    (other / "config.json").write_text("{}")
    store.put(make_manifest("three", other))
    user = make_manifest("four", build_snapshot("elsewhere"))
    store.put(user)
    orphan = store.snapshot_directory("orphan")
    orphan.mkdir()
    (orphan / "config.json").write_text("12345")

    usage = measure(store)
    weights = (other / "model.safetensors").stat().st_size
    assert {model.name.model: model for model in usage.models} == {
        "one": ModelUsage(ONE, 0, one.size, 0),
        "two": ModelUsage(TWO, 0, one.size, 0),
        "three": ModelUsage(ModelName.parse("three"), 2, weights, 0),
        "four": ModelUsage(user.name, 0, 0, user.size),
    }
    manifests = sum(path.stat().st_size for path in (store.root / "names").rglob("*.json"))
    assert (usage.unused, usage.total) == (5, one.size + 2 + 5 + manifests)
