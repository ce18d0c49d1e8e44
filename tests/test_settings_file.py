"""The file of settings: what it may say, and what wins over it."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllama import settings_file
from vllama.durations import from_seconds
from vllama.errors import SettingsError
from vllama.settings import Settings

SECOND = 1_000_000_000


def load(tmp_path: Path, text: str, **environ: str) -> Settings:
    path = tmp_path / "settings.toml"
    path.write_text(text, encoding="utf-8")
    return settings_file.load({"VLLAMA_SETTINGS": str(path), **environ})


def test_a_file_says_settings_by_their_names(tmp_path: Path) -> None:
    text = 'keep_alive = "10m"\nmax_loaded_models = 2\ndebug = true\npin = ["a", "b:7b"]\nsleep_timeout = 90.5\n'
    found = load(tmp_path, text)
    assert (found.keep_alive, found.max_loaded_models, found.debug) == (600 * SECOND, 2, True)
    assert (found.pin, found.sleep_timeout) == (("a", "b:7b"), from_seconds(90.5))


def test_a_variable_wins_over_the_file_unless_it_is_empty(tmp_path: Path) -> None:
    text = 'keep_alive = "10m"\nmax_queue = 3\n'
    found = load(tmp_path, text, OLLAMA_KEEP_ALIVE="1m", OLLAMA_MAX_QUEUE=" ")
    assert (found.keep_alive, found.max_queue) == (60 * SECOND, 3)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("keep_alive = ", "Invalid value"),
        ("colour = 1", "unknown setting 'colour'; the settings are host, "),
        ('keep_alive = "soon"', "keep_alive = 'soon': time: invalid duration"),
        ("max_queue = -1", "max_queue = -1: must not be negative"),
        ("pin = [1]", "pin = [1]: must be a string, a number, true or false, or a list of strings"),
        ("[pin]", "pin = {}: must be a string"),
    ],
)
def test_what_a_file_must_not_say_is_told_with_its_place(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path / 'settings.toml'}: ")
    assert reason in str(caught.value)


def test_a_file_that_was_named_has_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="VLLAMA_SETTINGS: no such file"):
        settings_file.load({"VLLAMA_SETTINGS": str(tmp_path / "none.toml")})


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot read"):
        settings_file.load({"VLLAMA_SETTINGS": str(tmp_path)})


def test_without_a_name_the_file_of_the_home_directory_counts_if_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert settings_file.load({}) == Settings.from_environment({})
    (tmp_path / ".vllama").mkdir()
    (tmp_path / ".vllama/settings.toml").write_text("max_queue = 7")
    assert settings_file.load({}).max_queue == 7
