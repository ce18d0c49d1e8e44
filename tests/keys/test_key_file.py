"""Keys as they are stored."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllama.errors import KeysError
from vllama.keys.key import Key, digest, new_key
from vllama.keys.key_file import KeyFile
from vllama.names import ModelName


@pytest.fixture
def file(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "keys.json")


def test_a_missing_file_is_not_an_empty_one(file: KeyFile) -> None:
    assert file.read() is None
    assert file.version() is None
    _, key = new_key("a")
    file.add(key)
    file.remove(["a"])
    assert file.read() == ()


def test_a_key_is_read_as_it_was_added(file: KeyFile) -> None:
    _, plain = new_key("plain")
    _, limited = new_key(
        "limited", models=("a*",), requests_per_minute=3, tokens_per_day=9, priority="low", is_admin=True
    )
    file.add(plain)
    file.add(limited)
    assert file.read() == (plain, limited)


def test_only_the_digest_of_a_secret_is_stored(file: KeyFile) -> None:
    secret, key = new_key("a")
    file.add(key)
    text = file.path.read_text()
    assert secret not in text
    assert secret.removeprefix("vllama-") not in text
    assert digest(secret.encode()) in text


def test_secrets_have_256_random_bits_and_differ() -> None:
    secrets = {new_key("a")[0] for _ in range(100)}
    assert len(secrets) == 100
    assert {len(secret.removeprefix("vllama-")) for secret in secrets} == {43}  # 43 characters of 6 bits


def test_only_its_owner_can_read_the_file(file: KeyFile) -> None:
    previous = os.umask(0)
    try:
        file.add(new_key("a")[1])
    finally:
        os.umask(previous)
    assert file.path.stat().st_mode & 0o777 == 0o600
    assert list(file.path.parent.iterdir()) == [file.path]


def test_a_file_that_every_user_can_write_is_refused(file: KeyFile) -> None:
    file.add(new_key("a")[1])
    file.path.chmod(0o666)
    with pytest.raises(KeysError, match="every user can write"):
        file.read()


def test_every_change_gives_the_file_another_version(file: KeyFile) -> None:
    versions = {file.version()}
    for name in "abc":
        file.add(new_key(name)[1])
        versions.add(file.version())
    file.remove(["b"])
    versions.add(file.version())
    assert len(versions) == 5


def test_two_keys_cannot_have_one_name(file: KeyFile) -> None:
    file.add(new_key("a")[1])
    with pytest.raises(KeysError, match="a key named 'a' exists"):
        file.add(new_key("a")[1])


def test_revoking_a_key_that_does_not_exist_revokes_none(file: KeyFile) -> None:
    file.add(new_key("a")[1])
    with pytest.raises(KeysError, match="no key named 'b'"):
        file.remove(["a", "b"])
    assert [key.name for key in file.read() or ()] == ["a"]


def test_keys_that_are_added_at_once_are_all_there(file: KeyFile) -> None:
    names = [f"k{number}" for number in range(12)]
    threads = [threading.Thread(target=file.add, args=(new_key(name)[1],)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(key.name for key in file.read() or ()) == sorted(names)


RECORD: dict[str, Any] = new_key("a")[1].to_record()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{",
        b"\xff",
        b'{"version":2,"keys":[]}',
        b'{"version":1}',
        b'{"version":1,"keys":{}}',
        b'{"version":1,"keys":[1]}',
        b"[" * 100_000,
        json.dumps({"version": 1, "keys": [RECORD, RECORD]}).encode(),
        *(
            json.dumps({"version": 1, "keys": [{**RECORD, name: value}]}).encode()
            for name, value in [
                ("name", "../x"),
                ("name", ""),
                ("name", 7),
                ("sha256", "0"),
                ("models", "a"),
                ("models", [1]),
                ("models", ["a b"]),
                ("models", ["a"] * 257),
                ("requests_per_minute", -1),
                ("requests_per_minute", True),
                ("requests_per_minute", 1.5),
                ("tokens_per_day", 2**70),
                ("class", "best"),
                ("class", []),
                ("admin", 1),
                ("created", 5),
                ("colour", "red"),
            ]
        ),
        json.dumps({"version": 1, "keys": [{"name": "a"}]}).encode(),
    ],
)
def test_an_invalid_file_is_refused_with_its_path(file: KeyFile, text: bytes) -> None:
    file.path.write_bytes(text)
    file.path.chmod(0o600)
    with pytest.raises(KeysError, match=r"keys\.json is not a valid key file"):
        file.read()


def test_a_file_that_is_too_large_is_refused(file: KeyFile) -> None:
    file.path.write_bytes(b" " * (9 << 20))
    file.path.chmod(0o600)
    with pytest.raises(KeysError, match="larger than 8 MiB"):
        file.read()


@pytest.mark.parametrize(
    ("patterns", "name", "is_allowed"),
    [
        ([], "anything", True),
        (["smollm2"], "smollm2", True),
        (["smollm2"], "smollm2:135m", False),
        (["smollm2:*"], "smollm2", True),
        (["smollm2*"], "SmolLM2:135m", True),
        (["SmolLM2:135M"], "smollm2:135m", True),
        (["smollm2:*"], "me/smollm2:135m", False),
        (["me/*"], "me/smollm2:135m", True),
        (["hf.co/*"], "hf.co/me/model:q4", True),
        (["registry.ollama.ai/library/*"], "smollm2", True),
        (["a", "b*"], "bc", True),
        (["a", "b*"], "c", False),
        (["model-[ab]"], "model-a", True),
    ],
)
def test_a_key_permits_the_models_that_its_patterns_match(patterns: list[str], name: str, is_allowed: bool) -> None:
    key = new_key("k", models=tuple(patterns))[1]
    assert key.permits(ModelName.parse(name)) is is_allowed


@given(st.text())
def test_any_text_is_a_valid_pattern_or_refused(pattern: str) -> None:
    try:
        key = new_key("k", models=(pattern,))[1]
    except KeysError:
        return
    assert Key.from_record(key.to_record()) == key
    key.permits(ModelName.parse("smollm2:135m"))
