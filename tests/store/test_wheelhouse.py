"""The wheels of vllama in a bundle. pip is the real one; what it finds is a shelf of small wheels."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import orjson
import pytest

from vllama.errors import SourceUnavailable, StoreError
from vllama.names import ModelName
from vllama.store import stage as stage_module
from vllama.store import wheelhouse
from vllama.store.bundle import read_bundle
from vllama.store.load import load
from vllama.store.manifest import ManifestFile
from vllama.store.model_store import ModelStore
from vllama.store.progress import Progress
from vllama.store.pull import pull
from vllama.store.stage import stage
from vllama.store.wheelhouse import Pin, collect, installed

from .conftest import BuildSnapshot, UsePackageIndex

ONE = ModelName.parse("one")
A, B = Pin("a-b", "1.0"), Pin("c", "2.0")

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Return a function that makes a distribution appear installed."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))

    def add(
        name: str, *requires: str, version: str = "1", extras: Iterable[str] = (), direct_url: object = None
    ) -> None:
        info = site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        lines = [
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}",
            *(f"Provides-Extra: {it}" for it in extras),
            *(f"Requires-Dist: {it}" for it in requires),
        ]
        (info / "METADATA").write_text("\n".join(lines) + "\n")
        if direct_url:
            (info / "direct_url.json").write_text(json.dumps(direct_url))

    return add


def finish(steps: Iterable[Progress]) -> Any:
    """Run to the end and return the result."""
    running = iter(steps)
    while True:
        try:
            next(running)
        except StopIteration as end:
            return end.value


class TestWhatIsInstalled:
    def test_it_is_the_distribution_and_all_that_it_needs(self, install: Install) -> None:
        install("own-root", "Own_A>=1", "own.b ; python_version >= '3'", "own-not-here")
        install("own-a", "own-c[fast] (>=2)", "own-root")
        install("own-b")
        install("own-c", "own-d; extra == 'fast'", "own-e; extra == 'slow'", version="2.1+cpu")
        for name in ("own-d", "own-e", "own-stranger"):
            install(name)
        found = {pin.name: pin for pin in installed("own-root")}
        assert set(found) == {"own-root", "own-a", "own-b", "own-c", "own-d"}
        assert (found["own-c"].requirement, found["own-c"].local) == ("own-c==2.1+cpu", "cpu")

    def test_which_engine_there_is_decides_which_comes_along(self, install: Install) -> None:
        install("own-root", "own-cpu; extra == 'cpu'", "own-cuda; extra == 'cuda'", extras=("cpu", "cuda"))
        install("own-cuda")
        assert [pin.name for pin in installed("own-root")] == ["own-cuda", "own-root"]

    def test_what_is_needed_elsewhere_only_stays_out(self, install: Install) -> None:
        elsewhere = "(sys_platform == 'win32' or python_version < '3') and extra == 'all'"
        install("own-root", f"own-a; {elsewhere}", "own-b; 'all' == extra", extras=("all",))
        install("own-a")
        install("own-b")
        assert [pin.name for pin in installed("own-root")] == ["own-b", "own-root"]

    def test_a_requirement_that_cannot_be_read_names_its_distribution(self, install: Install) -> None:
        install("own-root", "own-a ==== 1")
        with pytest.raises(StoreError, match=r"own-root has a requirement that cannot be read, 'own-a ==== 1'"):
            installed("own-root")

    @pytest.mark.parametrize(
        ("direct_url", "requirement"),
        [
            ({"url": "file:///src/own", "dir_info": {"editable": True}}, "own-root @ file:///src/own"),
            (
                {"url": "https://example.org/own", "vcs_info": {"vcs": "git", "commit_id": "abc"}},
                "own-root @ git+https://example.org/own@abc",
            ),
        ],
    )
    def test_what_was_not_installed_from_an_index_is_built_again(
        self, install: Install, direct_url: object, requirement: str
    ) -> None:
        install("own-root", direct_url=direct_url)
        assert [pin.requirement for pin in installed("own-root")] == [requirement]

    def test_without_it_there_is_nothing_to_collect(self) -> None:
        with pytest.raises(StoreError, match="own-gone is not installed"):
            installed("own-gone")

    def test_of_vllama_it_has_what_pyproject_toml_names(self) -> None:
        names = {pin.name for pin in installed()}
        assert {"vllama-server", "aiohttp", "click", "orjson"} <= names


@pytest.fixture
def shelf(package_index_with: UsePackageIndex) -> UsePackageIndex:
    for name, version in (("a_b", "1.0"), ("a_b", "1.1"), ("c", "2.0"), ("stranger", "1")):
        package_index_with(name, version, {f"{name}/__init__.py": version.encode()})
    return package_index_with


@pytest.fixture
def house(tmp_path: Path) -> Path:
    return tmp_path / "wheels"


def names_in(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def forbid_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheelhouse, "pip_wheel", lambda *_: pytest.fail("pip was called"))


class TestCollect:
    def test_there_is_a_wheel_of_each_and_what_pip_needs_to_check_them(
        self, shelf: UsePackageIndex, house: Path
    ) -> None:
        files: tuple[ManifestFile, ...] = finish(collect(house, [A, B]))
        assert [file.path for file in files] == [
            "a_b-1.0-py3-none-any.whl",
            "c-2.0-py3-none-any.whl",
            "requirements.txt",
        ]
        assert names_in(house) == {file.path for file in files}
        _, *lines = (house / "requirements.txt").read_text().splitlines()
        assert lines == [f"a-b==1.0 --hash=sha256:{files[0].sha256}", f"c==2.0 --hash=sha256:{files[1].sha256}"]

    def test_pip_takes_them_and_refuses_one_that_was_changed(
        self, shelf: UsePackageIndex, house: Path, tmp_path: Path
    ) -> None:
        finish(collect(house, [A, B]))
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index", "--find-links", str(house)]
        command += ["--no-deps", "--ignore-installed", "-r", str(house / "requirements.txt")]
        environ = {key: value for key, value in os.environ.items() if key != "PIP_FIND_LINKS"}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environ)
        assert "Would install a_b-1.0 c-2.0" in done.stdout.replace("a-b", "a_b")
        shutil.copy(house / "a_b-1.0-py3-none-any.whl", house / "c-2.0-py3-none-any.whl")
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
        assert done.returncode != 0
        assert "DO NOT MATCH THE HASHES" in done.stderr

    def test_wheels_that_are_there_are_not_fetched_again(
        self, shelf: UsePackageIndex, house: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = finish(collect(house, [A, B]))
        forbid_pip(monkeypatch)
        assert finish(collect(house, [A, B])) == before

    def test_another_version_takes_the_place_of_the_old(self, shelf: UsePackageIndex, house: Path) -> None:
        finish(collect(house, [A, B]))
        files = finish(collect(house, [Pin("a-b", "1.1")]))
        assert [file.path for file in files] == ["a_b-1.1-py3-none-any.whl", "requirements.txt"]
        assert "a_b-1.0-py3-none-any.whl" not in names_in(house)

    def test_what_was_installed_from_a_directory_is_built(
        self, shelf: UsePackageIndex, house: Path, tmp_path: Path
    ) -> None:
        place = f"file://{tmp_path / 'shelf'}/stranger-1-py3-none-any.whl"
        files = finish(collect(house, [Pin("stranger", "0.9.dev1", place)]))
        assert files[0].path == "stranger-1-py3-none-any.whl"

    def test_what_needs_more_than_is_installed_is_told(
        self, package_index_with: UsePackageIndex, house: Path, tmp_path: Path
    ) -> None:
        needs = (
            b"Metadata-Version: 2.1\nName: own\nVersion: 2\nRequires-Dist: new_one>=1\nRequires-Dist: x; extra == 'y'\n"
        )
        package_index_with("own", "1", {})
        place = tmp_path / "shelf" / "own-2-py3-none-any.whl"
        with zipfile.ZipFile(place, "w") as wheel:
            wheel.writestr("own-2.dist-info/METADATA", needs)
            wheel.writestr("own-2.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr("own-2.dist-info/RECORD", "")
        with pytest.raises(StoreError, match=r"own-2-py3-none-any\.whl requires new-one, which is not installed here"):
            finish(collect(house, [Pin("own", "1", f"file://{place}")]))

    def test_a_wheel_that_cannot_be_had_is_told_in_the_words_of_pip(self, shelf: UsePackageIndex, house: Path) -> None:
        with pytest.raises(SourceUnavailable, match=r"(?s)cannot collect wheels with pip:.*c==9"):
            finish(collect(house, [A, Pin("c", "9")]))
        assert names_in(house) == set()

    def test_builds_that_the_index_lacks_are_asked_for_at_pytorch_s_own(
        self, house: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = []

        def pip_wheel(requirements: Path, directory: Path, *options: str) -> Iterable[tuple[str, int, int]]:
            asked.append((requirements.read_text(), options))
            if not options:
                raise SourceUnavailable("no such version")
            (directory / "torch-2.1+cpu-cp311-cp311-linux_x86_64.whl").write_bytes(b"wheel")
            yield "torch", 5, 5

        monkeypatch.setattr(wheelhouse, "pip_wheel", pip_wheel)
        files = finish(collect(house, [Pin("torch", "2.1+cpu")]))
        assert files[0].path == "torch-2.1+cpu-cp311-cp311-linux_x86_64.whl"
        assert asked == [
            ("torch==2.1+cpu\n", ()),
            ("torch==2.1+cpu\n", ("--index-url", "https://download.pytorch.org/whl/cpu")),
        ]


class TestInABundle:
    @pytest.fixture
    def bundle(
        self,
        store: ModelStore,
        build_snapshot: BuildSnapshot,
        shelf: UsePackageIndex,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> Path:
        list(pull(store, ONE, from_path=build_snapshot("one")))
        monkeypatch.setattr(stage_module, "installed", lambda: [A, B])
        list(stage(store, [ONE], tmp_path / "bundle", wheels=True))
        return tmp_path / "bundle"

    @pytest.fixture
    def other(self, tmp_path: Path) -> ModelStore:
        return ModelStore(tmp_path / "other")

    def test_they_are_listed_and_checked(self, bundle: Path, other: ModelStore) -> None:
        listed = {wheel.path for wheel in read_bundle(bundle).wheels}
        assert (
            listed
            == names_in(bundle / "wheels")
            == {
                "a_b-1.0-py3-none-any.whl",
                "c-2.0-py3-none-any.whl",
                "requirements.txt",
            }
        )
        said = {step.status for step in load(other, bundle)}
        assert {f"checking wheels/{name}" for name in listed} <= said

    @pytest.mark.parametrize("damage", ["change", "remove", "link"])
    def test_a_damaged_one_is_told_after_the_models_are_there(
        self, bundle: Path, other: ModelStore, damage: str, tmp_path: Path
    ) -> None:
        wheel = bundle / "wheels" / "c-2.0-py3-none-any.whl"
        content = wheel.read_bytes()
        wheel.unlink()
        if damage == "change":
            wheel.write_bytes(bytes(len(content)))
        elif damage == "link":
            (tmp_path / "elsewhere").write_bytes(content)
            wheel.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(StoreError, match=r"wheels/c-2\.0-py3-none-any\.whl"):
            list(load(other, bundle))
        assert other.get(ONE).damaged_files() == []

    @pytest.mark.parametrize("name", ["../evil.whl", "/etc/evil.whl", "evil.py", ".whl", "a/b.whl", "a b.whl", 7])
    def test_names_that_lead_elsewhere_are_refused(self, bundle: Path, other: ModelStore, name: object) -> None:
        record = orjson.loads((bundle / "bundle.json").read_bytes())
        record["wheels"][0]["path"] = name
        (bundle / "bundle.json").write_bytes(orjson.dumps(record))
        with pytest.raises(StoreError, match=r"bundle\.json is damaged"):
            list(load(other, bundle))
        assert other.list() == []

    def test_they_stay_when_models_are_added(
        self, store: ModelStore, bundle: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = read_bundle(bundle).wheels
        forbid_pip(monkeypatch)
        store.copy(ONE, ModelName.parse("two"))
        list(stage(store, [ModelName.parse("two")], bundle))
        assert read_bundle(bundle).wheels == before
        assert len(read_bundle(bundle).models) == 2

    def test_what_is_not_needed_any_more_goes_and_what_a_kill_left(
        self, store: ModelStore, bundle: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (bundle / "wheels" / ".fetched-abc").mkdir()
        monkeypatch.setattr(stage_module, "installed", lambda: [B])
        list(stage(store, [ONE], bundle, wheels=True))
        assert names_in(bundle / "wheels") == {"c-2.0-py3-none-any.whl", "requirements.txt"}
