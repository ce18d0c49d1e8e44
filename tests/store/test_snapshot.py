from __future__ import annotations

import json
from pathlib import Path

import pytest

from vllama.errors import ManifestCorrupt, StoreError
from vllama.store.snapshot import INDEX, find_files, weight_files

from .conftest import BuildSnapshot


def test_the_files_that_a_worker_may_read_are_found(build_snapshot: BuildSnapshot) -> None:
    directory = build_snapshot(
        files={"LICENSE": "MIT", "1_Pooling/config.json": {}, "merges.txt": "a b", "generation_config.json": None}
    )
    assert find_files(directory) == [
        "1_Pooling/config.json",
        "LICENSE",
        "chat_template.jinja",
        "config.json",
        "merges.txt",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


@pytest.mark.parametrize(
    "path", ["modeling.py", "pytorch_model.bin", "README.md", ".git/config.json", ".hidden.json", "model.onnx"]
)
def test_code_pickles_and_litter_are_left_out(build_snapshot: BuildSnapshot, path: str) -> None:
    assert find_files(build_snapshot(files={path: "x"})) == find_files(build_snapshot("plain"))


def test_a_snapshot_of_the_hugging_face_cache_is_made_of_links(build_snapshot: BuildSnapshot, tmp_path: Path) -> None:
    real = build_snapshot()
    linked = tmp_path / "snapshots"
    linked.mkdir()
    for path in real.iterdir():
        (linked / path.name).symlink_to(path)
    assert find_files(linked) == find_files(real)


def test_a_path_that_is_no_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="nowhere is not a directory"):
        find_files(tmp_path / "nowhere")


def test_a_directory_without_config_is_refused(build_snapshot: BuildSnapshot) -> None:
    with pytest.raises(StoreError, match=r"config\.json is missing"):
        find_files(build_snapshot(files={"config.json": None}))


def test_a_directory_without_tokenizer_is_refused(build_snapshot: BuildSnapshot) -> None:
    with pytest.raises(StoreError, match="has no tokenizer"):
        find_files(build_snapshot(files={"tokenizer.json": None}))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("pytorch_model.bin", r"pickle only \(pytorch_model\.bin\).*convert them to safetensors"),
        ("weights.pt", r"pickle only \(weights\.pt\)"),
        ("model.gguf", "holds GGUF"),
        ("notes.txt", "has no weights"),
    ],
)
def test_a_directory_without_safetensors_says_what_it_holds_instead(
    build_snapshot: BuildSnapshot, path: str, message: str
) -> None:
    directory = build_snapshot(files={path: "x"})
    (directory / "model.safetensors").unlink()
    with pytest.raises(StoreError, match=message):
        find_files(directory)


def test_a_shard_that_the_index_names_must_be_there(build_snapshot: BuildSnapshot) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    directory = build_snapshot(files={INDEX: index})
    with pytest.raises(StoreError, match=r"incomplete: .* lists model-00002-of-00002\.safetensors"):
        find_files(directory)
    (directory / "model-00002-of-00002.safetensors").touch()
    assert "model-00002-of-00002.safetensors" in find_files(directory)


@pytest.mark.parametrize("index", ["{", "[]", "{}", json.dumps({"weight_map": []})])
def test_a_damaged_index_is_refused(build_snapshot: BuildSnapshot, index: str) -> None:
    with pytest.raises(ManifestCorrupt, match="is damaged"):
        find_files(build_snapshot(files={INDEX: index}))


def test_names_that_are_not_utf8_are_refused(build_snapshot: BuildSnapshot) -> None:
    directory = build_snapshot()
    (directory / "\udcff.json").touch()
    with pytest.raises(StoreError, match="not UTF-8"):
        find_files(directory)


def test_a_second_copy_of_the_weights_is_not_counted(build_snapshot: BuildSnapshot) -> None:
    directory = build_snapshot()
    (directory / "consolidated.safetensors").touch()
    assert [path.name for path in weight_files(directory)] == ["model.safetensors"]
    (directory / "model.safetensors").unlink()
    assert [path.name for path in weight_files(directory)] == ["consolidated.safetensors"]


def test_the_index_decides_which_files_are_the_weights(build_snapshot: BuildSnapshot) -> None:
    directory = build_snapshot(files={INDEX: {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}})
    assert [path.name for path in weight_files(directory)] == ["one.safetensors", "two.safetensors"]
