"""`vllama key`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vllama.keys.key import digest
from vllama.keys.key_file import KeyFile

from .conftest import Vllama
from .scripted_server import TAGS, ScriptedServer, body


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KeyFile:
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "models"))
    return KeyFile(tmp_path / "models" / "keys.json")


def test_a_key_is_printed_alone_so_that_scripts_can_take_it(vllama: Vllama, file: KeyFile) -> None:
    result = vllama("key", "create", "laptop")
    assert result.exit_code == 0
    assert "not shown again" in result.stderr
    [key] = file.read() or ()
    assert key.digest == digest(result.stdout.strip().encode())


def test_rights_are_stored_and_shown_without_the_secret(vllama: Vllama, file: KeyFile) -> None:
    result = vllama(
        *("key", "create", "ci", "--models", "a:*", "--models", "b", "--requests-per-minute", "60"),
        *("--tokens-per-day", "1000", "--class", "low", "--admin", "--json"),
    )
    created = json.loads(result.stdout)
    secret = created.pop("key")
    assert json.loads(vllama("key", "list", "--json").stdout) == [created]
    assert created["models"] == ["a:*", "b"]
    assert (created["requests_per_minute"], created["tokens_per_day"]) == (60, 1000)
    assert (created["class"], created["admin"]) == ("low", True)
    listed = vllama("key", "list").stdout
    assert listed.splitlines()[1].split()[:6] == ["ci", "a:*,b", "60", "1000", "low", "yes"]
    assert secret not in listed


def test_a_revoked_key_is_gone(vllama: Vllama, file: KeyFile) -> None:
    vllama("key", "create", "a")
    vllama("key", "create", "b")
    assert vllama("key", "revoke", "a").stdout == "revoked 'a'\n"
    assert [key.name for key in file.read() or ()] == ["b"]
    assert json.loads(vllama("key", "revoke", "b", "--json").stdout) == {"revoked": ["b"]}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["create", "../x"], 2, "is not a name for a key"),
        (["create", "a", "--models", "x y"], 2, "is not a pattern for model names"),
        (["create", "a", "--requests-per-minute", "0"], 2, "0 is not in the range"),
        (["create", "a", "--class", "best"], 2, "is not one of 'high', 'normal', 'low'"),
        (["create", "taken"], 1, "a key named 'taken' exists"),
        (["revoke", "nobody"], 1, "no key named 'nobody'"),
        (["revoke"], 2, "Missing argument"),
    ],
)
def test_errors_have_a_message_and_an_exit_code(vllama: Vllama, arguments: list[str], code: int, message: str) -> None:
    vllama("key", "create", "taken")
    result = vllama("key", *arguments)
    assert result.exit_code == code
    assert message in result.stderr
    assert result.stdout == ""


def test_the_file_can_be_elsewhere(vllama: Vllama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLAMA_KEYS", str(tmp_path / "other.json"))
    vllama("key", "create", "a")
    assert len(KeyFile(tmp_path / "other.json").read() or ()) == 1


@pytest.mark.parametrize("name", ["create", "list", "revoke"])
def test_the_help_of_every_subcommand_has_an_example(vllama: Vllama, name: str) -> None:
    assert f"vllama key {name}" in vllama("key", name, "--help").stdout.split("Example")[1]


def test_commands_send_the_key_of_their_environment(
    vllama: Vllama, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_API_KEY", "secret")
    server.on("GET", "/api/tags", body(TAGS))
    assert vllama("list").exit_code == 0
    assert server.headers[0]["Authorization"] == "Bearer secret"
