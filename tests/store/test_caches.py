"""The caches of engines in the store: where they are, who may write there, and when they go."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from vllama.names import ModelName
from vllama.store import caches
from vllama.store.garbage import Item, collect, delete
from vllama.store.manifest import Manifest
from vllama.store.model_store import ModelStore
from vllama.store.usage import measure

from .conftest import BuildSnapshot
from .upload import upload_and_create

ONE = ModelName.parse("one")
DIGEST = "ab" * 32


@pytest.fixture
def one(store: ModelStore, build_snapshot: BuildSnapshot) -> Manifest:
    """A model with files in the store."""
    upload_and_create(store, ONE, build_snapshot())
    return store.get(ONE)


def compile_something(root: Path, digest: str) -> Path:
    """What an engine would leave: 5 bytes of code, and 2 about the architecture."""
    in_use = caches.use(root, digest)
    assert in_use is not None
    places = {name: Path(place) for name, place in caches.variables(root, digest, {}).items()}
    code = places["VLLM_CACHE_ROOT"] / "torch_compile_cache" / "0a" / "graph.py"
    code.parent.mkdir(parents=True)
    code.write_text("graph")
    (places["VLLM_CACHE_ROOT"] / "modelinfos" / "llama.json").write_text("{}")
    in_use.close()
    return code


def test_what_is_compiled_for_one_model_lies_apart_from_that_of_others(tmp_path: Path) -> None:
    code = compile_something(tmp_path, DIGEST)
    assert code.is_relative_to(caches.directory(tmp_path, DIGEST))
    compile_something(tmp_path, "cd" * 32)
    assert sorted(caches.all_of(tmp_path)) == [DIGEST, "cd" * 32]


def test_what_is_known_of_architectures_is_shared(tmp_path: Path) -> None:
    compile_something(tmp_path, DIGEST)
    caches.use(tmp_path, "cd" * 32)
    assert (caches.directory(tmp_path, "cd" * 32) / "modelinfos" / "llama.json").read_text() == "{}"


def test_a_model_is_carried_elsewhere_with_all_of_its_cache(tmp_path: Path) -> None:
    compile_something(tmp_path / "here", DIGEST)
    listed = dict(caches.files(tmp_path / "here", DIGEST))
    assert sorted(listed) == ["modelinfos/llama.json", "torch_compile_cache/0a/graph.py"]
    for path, source in listed.items():
        there = caches.directory(tmp_path / "there", DIGEST) / path
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_bytes(source.read_bytes())
    caches.directory(tmp_path / "there", DIGEST).parent.chmod(0o700)
    assert caches.use(tmp_path / "there", DIGEST) is not None
    assert sorted(path for path, _ in caches.files(tmp_path / "there", DIGEST)) == sorted(listed)
    assert caches.use(tmp_path / "there", "cd" * 32) is not None
    assert [path for path, _ in caches.files(tmp_path / "there", "cd" * 32)] == ["modelinfos/llama.json"]


def test_a_model_without_a_cache_has_no_files(tmp_path: Path) -> None:
    assert list(caches.files(tmp_path, DIGEST)) == []
    assert caches.all_of(tmp_path) == {}


def test_links_in_a_cache_lead_nowhere(tmp_path: Path) -> None:
    compile_something(tmp_path, DIGEST)
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_text("x")
    (caches.directory(tmp_path, DIGEST) / "folder").symlink_to(tmp_path / "secret")
    (caches.directory(tmp_path, DIGEST) / "file").symlink_to(tmp_path / "secret" / "key")
    assert sorted(path for path, _ in caches.files(tmp_path, DIGEST)) == [
        "modelinfos/llama.json",
        "torch_compile_cache/0a/graph.py",
    ]


def test_only_the_owner_may_read_or_write_them(tmp_path: Path) -> None:
    compile_something(tmp_path, DIGEST)
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_a_place_where_others_can_write_is_not_used(
    tmp_path: Path, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(mode)
    assert caches.use(tmp_path, DIGEST) is None
    assert "users other than its owner can write there" in caplog.text


def test_a_link_in_its_place_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "cache").symlink_to(tmp_path / "elsewhere")
    assert caches.use(tmp_path, DIGEST) is None


def test_a_store_that_cannot_be_written_is_served_without(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "cache").write_text("a file")
    assert caches.use(tmp_path, DIGEST) is None
    assert "not caching compiled code" in caplog.text


def test_a_cache_of_the_users_own_stays(tmp_path: Path) -> None:
    assert caches.variables(tmp_path, DIGEST, {"VLLM_CACHE_ROOT": "/mine"}) == {}
    assert "TRITON_CACHE_DIR" not in caches.variables(tmp_path, DIGEST, {"TRITON_CACHE_DIR": "/mine"})
    assert caches.shared_variables(tmp_path, {"FLASHINFER_WORKSPACE_BASE": "/mine"}) == {}


def test_models_whose_configurations_differ_in_their_origin_alone_share_a_cache(
    store: ModelStore, build_snapshot: BuildSnapshot
) -> None:
    def key(name: str, **fields: object) -> str:
        upload_and_create(store, ModelName.parse(name), build_snapshot(name, config=fields))
        return caches.key_of(store.get(ModelName.parse(name)))

    assert key("a", _name_or_path="here") == key("b", _name_or_path="there", transformers_version="5.0")
    assert key("c", rope_theta=5.0) != key("d", rope_theta=6.0)


@pytest.mark.parametrize("config", ["", "[]", "[" * 100_000])
def test_a_model_without_a_configuration_has_a_cache_of_its_own(one: Manifest, config: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config)
    assert caches.key_of(replace(one, snapshot=tmp_path)) == one.weights_digest


def test_a_number_of_any_size_hurts_neither_a_load_nor_a_collection(one: Manifest, tmp_path: Path) -> None:
    keys = set()
    for number in ("1" + "0" * 30, "2" + "0" * 30, "1e400"):
        (tmp_path / "config.json").write_text(f'{{"max_position_embeddings": {number}}}')
        keys.add(caches.key_of(replace(one, snapshot=tmp_path)))
    assert len(keys) == 3


def test_gc_removes_what_was_compiled_for_files_that_are_gone(store: ModelStore, one: Manifest) -> None:
    compile_something(store.root, caches.key_of(one))
    own = caches.directory(store.root, caches.key_of(one))
    assert collect(store).removed == []
    delete(store, ONE)
    assert collect(store, dry_run=True).removed == [Item("cache", own, 5)]
    assert own.exists()
    assert collect(store).removed == [Item("cache", own, 5)]
    assert not own.exists()


def test_gc_removes_all_caches_on_demand_and_the_next_use_begins_anew(store: ModelStore, one: Manifest) -> None:
    compile_something(store.root, caches.key_of(one))
    assert [item.kind for item in collect(store, caches=True).removed] == ["cache"]
    assert caches.all_of(store.root) == {}
    assert store.get(ONE).damaged_files() == []
    compile_something(store.root, caches.key_of(one))


def test_gc_leaves_a_cache_that_an_engine_uses(store: ModelStore, one: Manifest) -> None:
    compile_something(store.root, caches.key_of(one))
    in_use = caches.use(store.root, caches.key_of(one))
    assert in_use is not None
    report = collect(store, caches=True)
    assert report.removed == []
    assert [(item.size, why) for item, why in report.kept] == [(5, "in use by a loaded model")]
    in_use.close()
    in_use.close()
    assert len(collect(store, caches=True).removed) == 1


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the open files of a process are listed by Linux")
def test_a_removal_leaves_no_directory_open_whether_or_not_it_succeeds(store: ModelStore, one: Manifest) -> None:
    compile_something(store.root, caches.key_of(one))
    own = caches.directory(store.root, caches.key_of(one))
    in_use = caches.use(store.root, caches.key_of(one))
    assert in_use is not None
    assert not caches.remove(own)
    in_use.close()
    assert open_files_in(own) == []
    assert caches.remove(own)
    assert open_files_in(own) == []


def open_files_in(directory: Path) -> list[str]:
    """Return the files that this process has open in a directory, or had when it was removed."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # it was the listing's own
            found.append(str(link.readlink()))
    return [path for path in found if path.startswith(str(directory))]


def test_du_counts_caches_apart(store: ModelStore, one: Manifest) -> None:
    before = measure(store)
    compile_something(store.root, caches.key_of(one))
    after = measure(store)
    assert (before.caches, after.caches) == (0, 5)
    assert after.models == before.models
    assert after.unused - before.unused == 2  # modelinfos, of no model
