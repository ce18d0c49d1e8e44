from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_snapshot import write_snapshot

from vllama.store.wheelhouse import Pin

from .conftest import Vllama


@pytest.fixture
def stored(vllama: Vllama, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A store, named by OLLAMA_MODELS, with one model; returns the model's directory."""
    snapshot = write_snapshot(tmp_path / "snapshot")
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "models"))
    assert vllama("pull", "mine", "--from", str(snapshot)).exit_code == 0
    return snapshot


def test_a_model_is_staged_loaded_and_verified_without_a_server(
    vllama: Vllama, stored: Path, no_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    staged = vllama("stage", "mine", "--to", str(tmp_path / "bundle"))
    assert (staged.exit_code, staged.stdout) == (0, "")
    assert "staging model.safetensors (" in staged.stderr
    assert staged.stderr.endswith("writing bundle.json\nsuccess\n")
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "other"))
    loaded = vllama("load", str(tmp_path / "bundle"))
    assert loaded.exit_code == 0
    assert loaded.stderr.endswith("writing manifest of mine:latest\nsuccess\n")
    verified = vllama("verify")
    assert verified.exit_code == 0
    assert verified.stdout.startswith("mine:latest: 6 files, ")


def test_the_software_comes_along_where_it_is_asked_for(
    vllama: Vllama, stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wheel").mkdir()
    (tmp_path / "wheel" / "thing-1-py3-none-any.whl").write_bytes(b"wheel")

    def pip_wheel(requirements: Path, directory: Path) -> Iterator[tuple[str, int, int]]:
        assert requirements.read_text() == "thing==1\n"
        shutil.copy(tmp_path / "wheel" / "thing-1-py3-none-any.whl", directory)
        yield "thing-1-py3-none-any.whl", 5, 5

    monkeypatch.setattr("vllama.store.wheelhouse.pip_wheel", pip_wheel)
    monkeypatch.setattr("vllama.store.stage.installed", lambda: [Pin("thing", "1")])
    result = vllama("stage", "mine", "--to", str(tmp_path / "bundle"), "--wheels")
    assert result.exit_code == 0, result.stderr
    assert "wheels: thing-1-py3-none-any.whl (5 B)" in result.stderr
    names = {path.name for path in (tmp_path / "bundle" / "wheels").iterdir()}
    assert names == {"thing-1-py3-none-any.whl", "requirements.txt"}


def test_progress_as_json_is_one_object_a_line(vllama: Vllama, stored: Path, tmp_path: Path) -> None:
    for arguments in (["stage", "mine", "--to", str(tmp_path / "bundle")], ["load", str(tmp_path / "bundle")]):
        result = vllama(*arguments, "--json")
        assert json.loads(result.stdout.splitlines()[-1]) == {"status": "success"}
        assert result.stderr == ""


def test_verify_names_the_damaged_file_and_ends_with_1(vllama: Vllama, stored: Path) -> None:
    (stored / "config.json").write_bytes(b"{}")
    result = vllama("verify", "mine")
    assert result.exit_code == 1
    assert result.stdout.startswith("mine:latest: config.json is damaged: it should have ")
    result = vllama("verify", "--json")
    assert result.exit_code == 1
    [verdict] = json.loads(result.stdout)
    assert (verdict["name"], verdict["ok"]) == ("mine:latest", False)
    assert [problem["file"] for problem in verdict["problems"]] == ["config.json"]


@pytest.mark.parametrize("arguments", [["stage", "other", "--to", "{}/bundle"], ["verify", "other"]])
def test_a_name_that_is_not_stored_ends_with_1_and_says_where_it_was_looked_for(
    vllama: Vllama, stored: Path, arguments: list[str], tmp_path: Path
) -> None:
    result = vllama(*(argument.format(tmp_path) for argument in arguments))
    assert result.exit_code == 1
    assert f"model 'other:latest' not found in {tmp_path / 'models'} (OLLAMA_MODELS)" in result.stderr


def test_what_is_no_bundle_ends_with_1(vllama: Vllama, stored: Path, tmp_path: Path) -> None:
    result = vllama("load", str(tmp_path))
    assert result.exit_code == 1
    assert "is not a complete bundle" in result.stderr


@pytest.mark.parametrize("arguments", [["stage"], ["stage", "mine"], ["load"], ["load", "no/such/place"]])
def test_wrong_usage_ends_with_2(vllama: Vllama, stored: Path, arguments: list[str]) -> None:
    assert vllama(*arguments).exit_code == 2


@pytest.mark.parametrize("arguments", [["stage", "a//b", "--to", "bundle"], ["verify", "a//b"]])
def test_what_is_no_name_ends_with_2(vllama: Vllama, stored: Path, arguments: list[str]) -> None:
    assert vllama(*arguments).exit_code == 2
