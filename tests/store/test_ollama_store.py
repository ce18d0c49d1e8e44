"""Models of an Ollama store. The conversion is made up here; test_ollama_smollm2.py has the real one."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from ollama_layout import OllamaLayout, converts_to, gguf_bytes

from vllama.errors import StoreError
from vllama.names import ModelName
from vllama.store.blobs import Blobs
from vllama.store.garbage import collect
from vllama.store.gguf import conversion
from vllama.store.manifest import ChatMessage, Source
from vllama.store.model_store import ModelStore
from vllama.store.progress import Progress
from vllama.store.sources.ollama_store import OllamaStore, find_store, import_models

from .conftest import BuildSnapshot

MARIO = "registry.ollama.ai/library/mario/latest"
LUIGI = "registry.ollama.ai/library/luigi/latest"
TEMPLATE = "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}{{ .Prompt }}"
WEIGHTS = gguf_bytes(rest=b"weights")
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()


@pytest.fixture
def ollama(tmp_path: Path) -> OllamaLayout:
    return OllamaLayout(tmp_path / "ollama")


@pytest.fixture(autouse=True)
def conversions(monkeypatch: pytest.MonkeyPatch, build_snapshot: BuildSnapshot) -> list[bytes]:
    """What was converted; all of it becomes the same snapshot."""
    done: list[bytes] = []
    converted = build_snapshot("converted")

    def convert(source: Path, destination: Path, precision: str, *projector: Path) -> Iterator[tuple[int, int]]:
        done.extend(path.read_bytes() for path in (source, *projector))
        yield from converts_to(converted)(source, destination, precision, *projector)

    monkeypatch.setattr(conversion, "convert", convert)
    return done


def write_mario(ollama: OllamaLayout, path: str = MARIO, *, folder: str = "manifests") -> Path:
    """A model with a layer of each kind."""
    return ollama.write(
        path,
        ollama.manifest(
            ollama.layer("model", WEIGHTS),
            ollama.layer("license", b"MIT"),
            ollama.layer("license", b"and more"),
            ollama.layer("template", TEMPLATE.encode()),
            ollama.layer("system", b"You are Mario."),
            ollama.layer("params", json.dumps({"temperature": 0.5, "num_ctx": 2048, "stop": ["<|im_end|>"]}).encode()),
            ollama.layer("messages", json.dumps([{"role": "user", "content": "It's-a me"}]).encode()),
        ),
        folder=folder,
    )


def run(store: ModelStore, ollama: OllamaLayout, *names: str, force: bool = False) -> tuple[list[Progress], str]:
    """Import, and return the steps and the error at the end, "" if there is none."""
    steps: list[Progress] = []
    try:
        wanted: Sequence[ModelName] = [ModelName.parse(name) for name in names]
        steps.extend(import_models(store, OllamaStore(ollama.directory), wanted, force=force))
    except StoreError as error:
        return steps, str(error)
    return steps, ""


def refusal(store: ModelStore, ollama: OllamaLayout) -> str:
    """Why a store's only model is left out."""
    _, error = run(store, ollama)
    assert error.startswith("1 of 1 models were not imported:\n  mario:latest: ")
    assert store.list() == []
    return error.partition("mario:latest: ")[2]


def test_all_that_a_model_says_is_taken_over(store: ModelStore, ollama: OllamaLayout, conversions: list[bytes]) -> None:
    write_mario(ollama)
    steps, error = run(store, ollama)
    made = store.get(ModelName.parse("mario"))
    assert error == ""
    assert conversions == [WEIGHTS]
    assert made.source == Source("gguf", f"sha256:{SHA256}", "")
    assert made.parameters == {"temperature": 0.5, "num_ctx": 2048, "stop": ["<|im_end|>"]}
    assert (made.system, made.template, made.license) == ("You are Mario.", TEMPLATE, "MIT\nand more")
    assert made.messages == (ChatMessage("user", "It's-a me"),)
    assert made.damaged_files() == []
    told = list(dict.fromkeys(step.status.partition(" sha256:")[0] for step in steps))
    assert told == [
        "importing mario:latest",
        "parsing GGUF",
        "converting model",
        "creating new layer",
        "writing manifest",
        "success",
    ]


def test_names_keep_their_host_and_namespace(store: ModelStore, ollama: OllamaLayout) -> None:
    for path in (MARIO, "registry.ollama.ai/me/mario/8b-q4_K_M", "hf.co/org/Repo-GGUF/Q4_K_M"):
        write_mario(ollama, path)
    run(store, ollama)
    names = {manifest.name.display for manifest in store.list()}
    assert names == {"mario:latest", "me/mario:8b-q4_K_M", "hf.co/org/Repo-GGUF:Q4_K_M"}


def test_the_same_weights_are_converted_once(store: ModelStore, ollama: OllamaLayout, conversions: list[bytes]) -> None:
    write_mario(ollama)
    write_mario(ollama, "registry.ollama.ai/library/luigi/latest")
    run(store, ollama)
    run(store, ollama, force=True)
    assert len(conversions) == 1
    assert len({manifest.snapshot for manifest in store.list()}) == 1


def test_a_second_import_changes_nothing(store: ModelStore, ollama: OllamaLayout) -> None:
    write_mario(ollama)
    run(store, ollama)
    before = store.list()
    steps, error = run(store, ollama)
    assert ([step.status for step in steps], error) == (["mario:latest is already stored", "success"], "")
    assert store.list() == before


def test_a_model_that_is_here_is_replaced_by_force_only(store: ModelStore, ollama: OllamaLayout) -> None:
    write_mario(ollama)
    run(store, ollama)
    ollama.write(MARIO, ollama.manifest(ollama.layer("model", WEIGHTS), ollama.layer("system", b"You are Luigi.")))
    run(store, ollama)
    assert store.get(ModelName.parse("mario")).system == "You are Mario."
    run(store, ollama, force=True)
    assert store.get(ModelName.parse("mario")).system == "You are Luigi."


def test_only_the_models_that_are_named_are_imported(store: ModelStore, ollama: OllamaLayout) -> None:
    write_mario(ollama)
    write_mario(ollama, "registry.ollama.ai/library/luigi/latest")
    assert run(store, ollama, "LUIGI")[1] == ""
    assert [manifest.name.display for manifest in store.list()] == ["LUIGI:latest"]
    assert run(store, ollama, "peach")[1].endswith("peach:latest: model 'peach:latest' not found")


def test_newer_stores_link_manifests_to_blobs(store: ModelStore, ollama: OllamaLayout) -> None:
    write_mario(ollama, folder="manifests-v2")
    assert run(store, ollama)[1] == ""
    assert store.get(ModelName.parse("mario")).system == "You are Mario."


def test_of_a_list_of_variants_the_gguf_is_taken(store: ModelStore, ollama: OllamaLayout) -> None:
    variant = ollama.manifest(ollama.layer("model", WEIGHTS), ollama.layer("system", b"Of the list"))
    digest = ollama.blob(json.dumps(variant).encode())
    mlx = {"mediaType": variant["mediaType"], "digest": "sha256:" + "0" * 64, "runner": "mlx", "format": "safetensors"}
    ours = {"mediaType": variant["mediaType"], "digest": digest, "runner": "llamacpp", "format": "gguf"}
    ollama.write(MARIO, {"schemaVersion": 2, "manifests": [mlx, ours]})
    assert run(store, ollama)[1] == ""
    assert store.get(ModelName.parse("mario")).system == "Of the list"


def test_nothing_of_ollamas_is_changed(store: ModelStore, ollama: OllamaLayout) -> None:
    write_mario(ollama)

    def state() -> dict[Path, tuple[int, int, int]]:
        paths = sorted(ollama.directory.rglob("*"))
        return {path: (path.stat().st_mtime_ns, path.stat().st_size, path.stat().st_nlink) for path in paths}

    before = state()
    run(store, ollama)
    assert state() == before


def test_one_that_cannot_be_converted_is_told_before_the_others_are(
    store: ModelStore, ollama: OllamaLayout, conversions: list[bytes]
) -> None:
    write_mario(ollama)
    ollama.write(
        "registry.ollama.ai/library/nomic-embed-text/latest",
        ollama.manifest(ollama.layer("model", gguf_bytes("rwkv6"))),
    )
    steps, error = run(store, ollama)
    told = [step.status for step in steps]
    assert told.index(next(status for status in told if "skipped nomic" in status)) < told.index(
        "importing mario:latest"
    )
    assert error.startswith(
        "1 of 2 models were not imported:\n  nomic-embed-text:latest: cannot convert GGUF files of architecture 'rwkv6'"
    )
    assert "qwen3moe" in error
    assert [manifest.name.display for manifest in store.list()] == ["mario:latest"]
    assert "success" not in told


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("adapter", "LoRA adapter (ADAPTER) cannot be used: cannot read the GGUF file"),
        ("projector", "cannot read the GGUF file"),
        ("tensor; name=x", "not GGUF"),
    ],
)
def test_parts_that_cannot_be_served_are_refused(
    store: ModelStore, ollama: OllamaLayout, kind: str, reason: str
) -> None:
    ollama.write(MARIO, ollama.manifest(ollama.layer("model", WEIGHTS), ollama.layer(kind, b"more")))
    assert reason in refusal(store, ollama)


def test_two_adapters_are_refused(store: ModelStore, ollama: OllamaLayout) -> None:
    adapters = (ollama.layer("adapter", gguf_bytes(rest=rest)) for rest in (b"a", b"b"))
    ollama.write(MARIO, ollama.manifest(ollama.layer("model", WEIGHTS), *adapters))
    assert "2 LoRA adapters" in refusal(store, ollama)


def test_an_adapter_for_other_weights_is_refused_before_anything_is_converted(
    store: ModelStore, ollama: OllamaLayout, conversions: list[bytes]
) -> None:
    ollama.write(
        MARIO,
        ollama.manifest(ollama.layer("model", WEIGHTS), ollama.layer("adapter", gguf_bytes(architecture="qwen2"))),
    )
    assert "is for the architecture 'qwen2', its weights are 'llama'" in refusal(store, ollama)
    assert conversions == []


def test_a_projector_is_converted_with_its_weights(
    store: ModelStore, ollama: OllamaLayout, conversions: list[bytes]
) -> None:
    tower = gguf_bytes("clip")
    ollama.write(MARIO, ollama.manifest(ollama.layer("model", WEIGHTS), ollama.layer("projector", tower)))
    ollama.write(LUIGI, ollama.manifest(ollama.layer("model", WEIGHTS)))
    assert run(store, ollama)[1] == ""
    assert sorted(conversions) == sorted([WEIGHTS, WEIGHTS, tower])  # one model sees, the other does not
    made = store.get(ModelName.parse("mario"))
    assert made.source == Source("gguf", f"sha256:{SHA256}+sha256:{hashlib.sha256(tower).hexdigest()}", "")


@pytest.mark.parametrize(
    ("towers", "reason"),
    [
        ([gguf_bytes("clip", keys={"clip.projector_type": "resampler"})], "kind 'resampler' for architecture 'llama'"),
        ([gguf_bytes("clip", keys={"clip.projector_type": "gemma3"})], "kind 'gemma3' for architecture 'llama'"),
        ([gguf_bytes("llama")], "is a file of architecture 'llama'"),
        ([gguf_bytes("clip"), gguf_bytes("clip", b"more")], "2 projectors"),
    ],
)
def test_a_projector_that_cannot_be_converted_is_refused(
    store: ModelStore, ollama: OllamaLayout, towers: list[bytes], reason: str
) -> None:
    layers = (ollama.layer("projector", tower) for tower in towers)
    ollama.write(MARIO, ollama.manifest(ollama.layer("model", WEIGHTS), *layers))
    assert reason in refusal(store, ollama)


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [("gemma4", "the vision tower in GGUF files of architecture 'gemma4'"), ("mllama", "vLLM has removed")],
)
def test_a_vision_tower_within_the_weights_is_refused_unless_it_is_known(
    store: ModelStore, ollama: OllamaLayout, architecture: str, reason: str
) -> None:
    weights = gguf_bytes(architecture, keys={f"{architecture}.vision.block_count": 27})
    ollama.write(MARIO, ollama.manifest(ollama.layer("model", weights)))
    assert reason in refusal(store, ollama)


def test_a_vision_tower_within_the_weights_is_converted_with_them(store: ModelStore, ollama: OllamaLayout) -> None:
    weights = gguf_bytes("gemma3", keys={"gemma3.vision.block_count": 27})
    ollama.write(MARIO, ollama.manifest(ollama.layer("model", weights)))
    assert run(store, ollama)[1] == ""


def test_a_model_of_the_cloud_has_no_files(store: ModelStore, ollama: OllamaLayout) -> None:
    ollama.write(MARIO, ollama.manifest(remote_host="https://ollama.com", remote_model="gpt-oss:120b"))
    assert "cloud" in refusal(store, ollama)


def test_where_ollama_renders_by_itself_the_template_of_the_gguf_is_taken(
    store: ModelStore, ollama: OllamaLayout
) -> None:
    layers = ollama.layer("model", WEIGHTS), ollama.layer("template", b"{{ .Prompt }}")
    ollama.write(MARIO, ollama.manifest(*layers, renderer="qwen3-coder", parser="qwen3-coder"))
    assert run(store, ollama)[1] == ""
    assert store.get(ModelName.parse("mario")).template == ""


def test_a_template_that_cannot_be_rendered_is_refused(store: ModelStore, ollama: OllamaLayout) -> None:
    ollama.write(MARIO, ollama.manifest(ollama.layer("model", WEIGHTS), ollama.layer("template", b"{{ .Prompt")))
    assert refusal(store, ollama).startswith("template error")


@pytest.mark.parametrize("kind", ["model", "system"])
def test_a_damaged_blob_is_refused(
    store: ModelStore, ollama: OllamaLayout, conversions: list[bytes], kind: str
) -> None:
    layers = {"model": ollama.layer("model", WEIGHTS), "system": ollama.layer("system", b"You are Mario.")}
    ollama.write(MARIO, ollama.manifest(*layers.values()))
    place = ollama.directory / "blobs" / layers[kind]["digest"].replace(":", "-")
    place.write_bytes(place.read_bytes()[:-1] + b"X")
    assert "digest mismatch" in refusal(store, ollama)
    assert conversions == []


def test_a_blob_that_is_cut_or_missing_is_refused(store: ModelStore, ollama: OllamaLayout) -> None:
    layer = ollama.layer("model", WEIGHTS)
    ollama.write(MARIO, ollama.manifest(layer))
    place = ollama.directory / "blobs" / layer["digest"].replace(":", "-")
    place.write_bytes(WEIGHTS[:-1])
    assert f"has {len(WEIGHTS) - 1} bytes, not {len(WEIGHTS)}" in refusal(store, ollama)
    place.unlink()
    assert "the pull was not finished" in refusal(store, ollama)


@pytest.mark.parametrize(
    "weights", [b"", b"GGUF", b"PK\x03\x04", WEIGHTS[:40], b"GGUF" + bytes(20), WEIGHTS[:20] + b"\xff" * 30]
)
def test_what_is_no_gguf_is_refused(store: ModelStore, ollama: OllamaLayout, weights: bytes) -> None:
    ollama.write(MARIO, ollama.manifest(ollama.layer("model", weights)))
    assert "cannot read the GGUF file" in refusal(store, ollama)


@pytest.mark.parametrize(
    "manifest",
    ["{", "[]", "{}", '{"layers": [1]}', '{"layers": [{"mediaType": "application/vnd.ollama.image.model"}]}'],
)
def test_a_damaged_manifest_is_refused_and_no_path_comes_from_it(
    store: ModelStore, ollama: OllamaLayout, manifest: str
) -> None:
    ollama.write(MARIO, {}).write_text(manifest)
    assert refusal(store, ollama)


def test_a_digest_is_never_a_path(store: ModelStore, ollama: OllamaLayout) -> None:
    layer = {**ollama.layer("model", WEIGHTS), "digest": "sha256:../../etc/passwd"}
    ollama.write(MARIO, ollama.manifest(layer))
    assert "invalid digest format" in refusal(store, ollama)


def test_the_first_directory_with_models_is_taken(ollama: OllamaLayout, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=f"no Ollama models found in {ollama.directory}, .*--from"):
        find_store([ollama.directory, tmp_path])
    write_mario(ollama)
    assert [name.display for name in find_store([tmp_path, ollama.directory]).names()] == ["mario:latest"]


def test_a_directory_that_is_shared_with_ollama_keeps_its_blobs(ollama: OllamaLayout) -> None:
    write_mario(ollama)
    for path in (ollama.directory / "blobs").iterdir():
        path.touch()
        os.utime(path, (0, 0))
    before = sorted((ollama.directory / "blobs").iterdir())
    store = ModelStore(ollama.directory)
    Blobs(store.root).prune()
    assert collect(store).removed == []
    assert run(store, ollama)[1] == ""
    Blobs(store.root).remove(SHA256)
    assert sorted((ollama.directory / "blobs").iterdir()) == before
