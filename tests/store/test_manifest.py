from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllama.errors import ManifestCorrupt
from vllama.names import ModelName
from vllama.store.manifest import ChatMessage, Manifest, ManifestFile, Source, content_digest

from .conftest import BuildSnapshot, make_manifest

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
part = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,20}", fullmatch=True)
scalars = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.booleans() | text
_FIRST, _LAST = datetime(1990, 1, 1), datetime(2200, 1, 1)  # noqa: DTZ001 - hypothesis adds the time zones
files = st.builds(
    ManifestFile,
    path=st.lists(part, min_size=1, max_size=3).map("/".join),
    size=st.integers(0, 2**50),
    sha256=st.from_regex(r"[0-9a-f]{64}", fullmatch=True),
)
manifests = st.builds(
    Manifest,
    name=st.builds(ModelName, part, part, part, part),
    snapshot=st.lists(part, min_size=1, max_size=4).map(lambda parts: Path("/", *parts)),
    files=st.lists(files, max_size=4).map(tuple),
    source=st.builds(Source, text, text, text),
    parameters=st.dictionaries(text, scalars | st.lists(scalars, max_size=3), max_size=4),
    system=text,
    template=text,
    license=text,
    messages=st.lists(st.builds(ChatMessage, text, text), max_size=3).map(tuple),
    engine_flags=st.lists(text, max_size=3).map(tuple),
    parent=st.just("") | st.builds(ModelName, part, part, part, part).map(lambda name: name.display),
    modified_at=st.datetimes(
        _FIRST,
        _LAST,
        timezones=st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30))]),
    ),
)


@settings(deadline=None)
@given(manifests)
def test_a_manifest_comes_back_from_its_json_unchanged(manifest: Manifest) -> None:
    assert Manifest.from_json(manifest.to_json()) == manifest


@settings(deadline=None)
@given(manifests)
def test_the_digest_is_that_of_the_copy_read_back(manifest: Manifest) -> None:
    assert Manifest.from_json(manifest.to_json()).digest == manifest.digest


def test_a_manifest_from_before_models_were_made_of_others_has_no_parent() -> None:
    record = orjson.loads(make_manifest().to_json())
    older = {key: value for key, value in record.items() if key not in {"parent", "asked"}}
    assert Manifest.from_json(orjson.dumps(older)) == make_manifest()


FILES = (ManifestFile("config.json", 2, "a" * 64), ManifestFile("model.safetensors", 40, "b" * 64))


@pytest.mark.parametrize(
    "change",
    [
        {"name": ModelName.parse("other:latest")},
        {"snapshot": Path("/elsewhere")},
        {"modified_at": datetime(2020, 1, 1, tzinfo=UTC)},
        {"source": Source("package-index", "some-package", "1.0")},
        {"files": FILES[::-1]},
        {"parent": "smollm2:135m", "asked": "smollm2:135m"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_digest_ignores_what_does_not_decide_the_answers(change: dict[str, Any]) -> None:
    manifest = make_manifest(files=FILES)
    assert replace(manifest, **change).digest == manifest.digest


@pytest.mark.parametrize(
    "change",
    [
        {"files": (FILES[0], replace(FILES[1], sha256="c" * 64))},
        pytest.param({"files": FILES[:1]}, id="fewer files"),
        {"parameters": {"stop": ["\n"]}},
        {"system": "Be brief."},
        {"template": "{{ messages }}"},
        {"license": "MIT"},
        {"messages": (ChatMessage("user", "hi"),)},
        {"engine_flags": ("--enforce-eager",)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_digest_changes_with_everything_that_is_served(change: dict[str, Any]) -> None:
    manifest = make_manifest(files=FILES)
    digest = replace(manifest, **change).digest
    assert digest != manifest.digest
    assert len(digest) == 64


def test_the_size_is_the_sum_of_the_files() -> None:
    assert make_manifest(files=FILES).size == 42


def test_a_content_digest_ignores_the_order_of_the_files() -> None:
    assert content_digest(FILES) == content_digest(reversed(FILES))
    assert content_digest(FILES) != content_digest(FILES[:1])


def test_missing_and_cut_files_are_named_as_damaged(build_snapshot: BuildSnapshot) -> None:
    manifest = make_manifest(snapshot=build_snapshot())
    assert manifest.damaged_files() == []
    (manifest.snapshot / "config.json").unlink()
    (manifest.snapshot / "model.safetensors").write_bytes(b"cut")
    assert manifest.damaged_files() == ["config.json", "model.safetensors"]


def _drop(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda record: record.pop(key)


def _set(key: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda record: record.update({key: value})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_drop("files"), "'files' is None"),
        (_drop("format_version"), "format version None"),
        (_set("format_version", 99), "format version 99.*update vllama"),
        (_set("name", "a b"), "not a model name"),
        (_set("parameters", []), "'parameters' is .*not an object"),
        (_set("system", 1), "'system' is 1, which is not a string"),
        (_set("source", {"kind": "local", "locator": "x"}), "'revision'"),
        (_set("messages", ["hi"]), "'messages' holds 'hi'"),
        (_set("engine_flags", [1]), "'engine_flags'"),
        (_set("modified_at", "yesterday"), "not a time"),
        (_set("modified_at", "2026-09-01T12:00:00"), "no time zone"),
        (_set("files", [{"path": "x", "size": True, "sha256": "0" * 64}]), "'size'"),
        (_set("files", [{"path": "x", "size": -1, "sha256": "0" * 64}]), "no valid size"),
        (_set("files", [{"path": "x", "size": 1, "sha256": "0" * 63}]), "no valid size and sha256"),
    ],
)
def test_a_damaged_manifest_says_what_is_wrong_with_it(damage: Callable[[dict[str, Any]], None], message: str) -> None:
    record = json.loads(make_manifest(files=FILES).to_json())
    damage(record)
    with pytest.raises(ManifestCorrupt, match=message):
        Manifest.from_json(json.dumps(record).encode())


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff"])
def test_what_is_no_json_object_is_no_manifest(data: bytes) -> None:
    with pytest.raises(ManifestCorrupt):
        Manifest.from_json(data)


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "a/../../b", "", "..", "a\0b"])
def test_no_file_of_a_manifest_lies_outside_its_snapshot(path: str) -> None:
    record = json.loads(make_manifest(files=FILES).to_json())
    record["files"][0]["path"] = path
    with pytest.raises(ManifestCorrupt, match="outside the snapshot"):
        Manifest.from_json(json.dumps(record).encode())
