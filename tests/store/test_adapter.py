"""LoRA adapters in the store: how they come in, what is refused, and that they are a part of their model everywhere."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from tiny_adapter import Extents, write_adapter
from tiny_snapshot import Tensors

from vllama.errors import ManifestCorrupt, RequestError, StoreError
from vllama.names import ModelName
from vllama.ollama.creation import Changes
from vllama.store.blobs import Blobs
from vllama.store.create import create
from vllama.store.description import describe
from vllama.store.garbage import collect, delete
from vllama.store.layers import layers
from vllama.store.load import load
from vllama.store.manifest import FORMAT_VERSION, Manifest
from vllama.store.model_import import has_content, held_file
from vllama.store.model_store import ModelStore
from vllama.store.progress import Progress
from vllama.store.stage import stage
from vllama.store.usage import measure
from vllama.store.verify import verify

from .conftest import BuildSnapshot, make_manifest
from .upload import upload_and_create

BASE, TUNED = ModelName.parse("base"), ModelName.parse("tuned")
Q = "model.layers.0.self_attn.q_proj"
WEIGHTS: Tensors = {
    "model.embed_tokens.weight": ("BF16", [32, 8]),
    f"{Q}.weight": ("BF16", [16, 8]),
    "model.layers.0.mlp.down_proj.weight": ("BF16", [8, 24]),
}
LAYERS: Extents = {Q: (16, 8), "model.layers.0.mlp.down_proj": (8, 24)}

T = TypeVar("T")


@pytest.fixture
def base(store: ModelStore, build_snapshot: BuildSnapshot) -> Manifest:
    """A model with files in the store."""
    upload_and_create(store, BASE, build_snapshot(tensors=WEIGHTS))
    return store.get(BASE)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter", LAYERS, rank=4)


@pytest.fixture
def tuned(store: ModelStore, base: Manifest, adapter: Path) -> Manifest:
    """A model of the base with the adapter."""
    list(create(store, TUNED, Changes(), base=base.name.display, adapter_path=adapter))
    return store.get(TUNED)


def upload(store: ModelStore, directory: Path) -> dict[str, str]:
    digests = {}
    for path in directory.iterdir():
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        with Blobs(store.root).receive(sha256, sha256) as receiving:
            receiving.write(path.read_bytes())
            receiving.finish()
        digests[path.name] = f"sha256:{sha256}"
    return digests


def returned(steps: Generator[Progress, None, T]) -> T:
    """Do all steps."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            value: T = end.value
            return value


def refusal(store: ModelStore, **of: Any) -> str:
    with pytest.raises((RequestError, StoreError)) as caught:
        list(create(store, TUNED, Changes(), base=BASE.display, **of))
    assert [manifest.name.model for manifest in store.list()] == ["base"]
    return str(caught.value)


class TestComingIn:
    def test_a_directory_is_copied_and_the_base_s_files_are_shared(
        self, store: ModelStore, base: Manifest, tuned: Manifest, adapter: Path
    ) -> None:
        assert tuned.adapter is not None
        assert (tuned.files, tuned.snapshot, tuned.weights_digest) == (base.files, base.snapshot, base.weights_digest)
        assert tuned.adapter.snapshot.is_relative_to(store.root)
        assert tuned.adapter_rank == 4
        for file in adapter.iterdir():
            copied = tuned.adapter.snapshot / file.name
            assert copied.read_bytes() == file.read_bytes()
            assert copied.stat().st_ino != file.stat().st_ino
        assert tuned.digest != base.digest
        assert tuned.size == base.size + sum(file.stat().st_size for file in adapter.iterdir())

    def test_uploads_make_the_same_model_and_are_removed(
        self, store: ModelStore, tuned: Manifest, adapter: Path
    ) -> None:
        digests = upload(store, adapter)
        steps = [step.status for step in create(store, TUNED, Changes(), base=BASE.display, adapters=digests)]
        assert steps[0] == "parsing adapter"
        assert store.get(TUNED).digest == tuned.digest
        assert list((store.root / "blobs").glob("sha256-*")) == []
        assert all(has_content(store, digest.removeprefix("sha256:")) for digest in digests.values())

    def test_other_files_of_its_directory_stay_outside(self, store: ModelStore, base: Manifest, adapter: Path) -> None:
        (adapter / "training_args.bin").write_bytes(b"pickle")
        (adapter / "README.md").write_text("mine")
        list(create(store, TUNED, Changes(), base=BASE.display, adapter_path=adapter / "adapter_model.safetensors"))
        made = store.get(TUNED).adapter
        assert made is not None
        assert sorted(path.name for path in made.snapshot.iterdir()) == [
            "adapter_config.json",
            "adapter_model.safetensors",
        ]

    def test_it_is_inherited_and_another_one_takes_its_place(
        self, store: ModelStore, tuned: Manifest, tmp_path: Path
    ) -> None:
        list(create(store, ModelName.parse("third"), Changes(system="S"), base=TUNED.display))
        assert store.get(ModelName.parse("third")).adapter == tuned.adapter
        other = write_adapter(tmp_path / "other", LAYERS, rank=4, seed=1)
        list(create(store, ModelName.parse("third"), Changes(), base=TUNED.display, adapter_path=other))
        assert store.get(ModelName.parse("third")).adapter != tuned.adapter

    def test_whoever_serves_it_may_refuse_it(self, store: ModelStore, base: Manifest, adapter: Path) -> None:
        def check(manifest: Manifest) -> None:
            assert manifest.adapter is not None
            raise RequestError("not with this vLLM")

        assert refusal(store, adapter_path=adapter, check=check) == "not with this vLLM"
        assert collect(store).freed > 0

    def test_an_upload_that_never_came_is_told(self, store: ModelStore, base: Manifest, adapter: Path) -> None:
        digests = upload(store, adapter)
        digests["adapter_config.json"] = f"sha256:{'0' * 64}"
        assert "no such file or directory" in refusal(store, adapters=digests)


class TestRefused:
    @pytest.mark.parametrize(
        ("names", "message"),
        [
            (["adapter_config.json", "adapter_model.bin"], "pickle only (adapter_model.bin)"),
            (["lora.gguf"], "cannot convert the GGUF adapter"),
            (["a.gguf", "b.gguf"], "only one adapter is currently supported"),
            (["adapter_config.json", "adapters.safetensors"], "an adapter of MLX"),
            (["adapter_model.safetensors"], "the adapter has no adapter_config.json"),
            (["notes.txt"], "the adapter has no adapter_model.safetensors"),
        ],
    )
    def test_what_is_no_adapter_of_peft_s_is_told_with_what_is_needed(
        self, store: ModelStore, base: Manifest, tmp_path: Path, names: list[str], message: str
    ) -> None:
        directory = tmp_path / "wrong"
        directory.mkdir()
        for name in names:
            (directory / name).write_bytes(name.encode())
        assert message in refusal(store, adapter_path=directory)
        assert message in refusal(store, adapters=upload(store, directory))

    def test_two_adapters_at_once_are_too_many(self, store: ModelStore, base: Manifest, adapter: Path) -> None:
        digests = upload(store, adapter)
        both = {f"{folder}/{name}": digest for folder in "ab" for name, digest in digests.items()}
        assert refusal(store, adapters=both) == "only one adapter is currently supported"

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ({"peft_type": "IA3"}, "only LoRA adapters are supported; adapter_config.json has peft_type 'IA3'"),
            ({"use_dora": True}, "vLLM does not support DoRA (use_dora) of this adapter; merge the adapter"),
            ({"bias": "all", "modules_to_save": ["lm_head"]}, "whole layers beside it (modules_to_save), biases"),
            ({"rank_pattern": {"q_proj": 2}}, "ranks of single layers (rank_pattern)"),
            ({"init_lora_weights": "pissa"}, "changed weights of the base (init_lora_weights: pissa)"),
            ({"r": 0}, "r is 0"),
            ({"r": True}, "r is True"),
            ({"r": 1024}, "rank 1024, but vLLM supports at most 512"),
            ({"r": 8}, f"{Q} has rank 4, but adapter_config.json has 8"),
            ({"lora_alpha": None}, "lora_alpha is None"),
            ({"target_modules": []}, "no target_modules"),
        ],
    )
    def test_what_vllm_would_serve_wrongly_is_refused(
        self, store: ModelStore, base: Manifest, tmp_path: Path, config: dict[str, Any], message: str
    ) -> None:
        adapter = write_adapter(tmp_path / "adapter", LAYERS, rank=4, **config)
        assert message in refusal(store, adapter_path=adapter)

    @pytest.mark.parametrize(
        ("layers", "message"),
        [
            (
                {Q: (16, 4096)},
                f"{Q} is 16 × 8 in the base model, but the adapter is for 16 × 4096 (it was made for a/b)",
            ),
            (
                {"model.layers.7.self_attn.q_proj": (16, 8)},
                "the base model has no model.layers.7.self_attn.q_proj (it was",
            ),
            ({"lm_head": (99, 8)}, "lm_head is 32 × 8 in the base"),
            ({}, "contains no LoRA matrices"),
        ],
    )
    def test_one_for_another_base_is_refused_with_both_shapes(
        self, store: ModelStore, base: Manifest, tmp_path: Path, layers: Extents, message: str
    ) -> None:
        adapter = write_adapter(
            tmp_path / "adapter", layers, base_model_name_or_path="a/b", target_modules=["q_proj"], rank=2
        )
        assert message in refusal(store, adapter_path=adapter)

    def test_weights_that_are_no_pair_of_matrices_are_refused(
        self, store: ModelStore, base: Manifest, adapter: Path
    ) -> None:
        weights = adapter / "adapter_model.safetensors"
        whole = weights.read_bytes()
        weights.write_bytes(whole.replace(b"q_proj.lora_B", b"q_proj.lora_Z"))
        assert "q_proj.lora_Z.weight is not a LoRA matrix" in refusal(store, adapter_path=adapter)
        weights.write_bytes(whole.replace(b"q_proj.lora_B", b"k_proj.lora_B"))
        assert f"one of the two matrices of {Q} is missing" in refusal(store, adapter_path=adapter)
        weights.write_bytes(whole[:-1])
        assert refusal(store, adapter_path=adapter).startswith("adapter_model.safetensors is incomplete")
        (adapter / "adapter_config.json").write_text("[")
        assert "cannot read the adapter's adapter_config.json" in refusal(store, adapter_path=adapter)


@pytest.mark.parametrize(
    ("tensors", "quantization", "layer", "fits"),
    [
        ({f"{Q}.weight": ("BF16", [16, 8])}, {}, (16, 8), True),
        ({"layers.0.self_attn.q_proj.weight": ("BF16", [16, 8])}, {}, (16, 8), True),
        ({f"{Q}.weight": ("U8", [64, 1])}, {"quant_method": "bitsandbytes", "load_in_4bit": True}, (16, 8), True),
        ({f"{Q}.qweight": ("I32", [8, 2])}, {"quant_method": "awq", "bits": 4}, (16, 8), True),
        ({f"{Q}.qweight": ("I32", [8, 2])}, {"quant_method": "awq", "bits": 4}, (16, 9), False),
        ({f"{Q}.qweight": ("I32", [1, 16])}, {"quant_method": "gptq", "bits": 4}, (16, 8), True),
        ({f"{Q}.qweight": ("I32", [1, 16])}, {"quant_method": "gptq", "bits": 4}, (17, 8), False),
        ({f"{Q}.weight_packed": ("I32", [16, 1])}, {"quant_method": "compressed-tensors"}, (16, 8), True),
        ({f"{Q}.weight_packed": ("I32", [16, 1])}, {"quant_method": "compressed-tensors"}, (15, 8), False),
    ],
)
def test_shapes_are_compared_as_far_as_the_base_s_format_tells(
    store: ModelStore,
    build_snapshot: BuildSnapshot,
    tmp_path: Path,
    tensors: Tensors,
    quantization: dict[str, Any],
    layer: tuple[int, int],
    fits: bool,
) -> None:
    config = {"quantization_config": quantization} if quantization else {}
    upload_and_create(store, BASE, build_snapshot(config=config, tensors=tensors))
    adapter = write_adapter(tmp_path / "adapter", {Q: layer}, rank=1)
    if fits:
        list(create(store, TUNED, Changes(), base="base", adapter_path=adapter))
        assert store.get(TUNED).adapter_rank == 1
    else:
        assert f"{Q} is " in refusal(store, adapter_path=adapter)


class TestPartOfItsModel:
    def test_the_manifest_is_read_back_and_older_readers_are_warned(self, tuned: Manifest, base: Manifest) -> None:
        assert Manifest.from_json(tuned.to_json()) == tuned
        assert json.loads(tuned.to_json())["format_version"] == FORMAT_VERSION == 2
        assert json.loads(base.to_json())["format_version"] == 1

    @pytest.mark.parametrize("rank", [0, 513, "8", True])
    def test_a_rank_that_cannot_be_is_a_damaged_manifest(self, tuned: Manifest, rank: object) -> None:
        record = json.loads(tuned.to_json())
        record["adapter"]["rank"] = rank
        with pytest.raises(ManifestCorrupt, match="rank"):
            Manifest.from_json(json.dumps(record).encode())

    def test_it_goes_with_the_last_name_that_needs_it_and_the_base_stays(
        self, store: ModelStore, base: Manifest, tuned: Manifest
    ) -> None:
        assert tuned.adapter is not None
        store.copy(TUNED, ModelName.parse("copy"))
        delete(store, TUNED)
        assert store.get(ModelName.parse("copy")).damaged_files() == []
        assert collect(store).removed == []
        delete(store, ModelName.parse("copy"))
        assert not tuned.adapter.snapshot.exists()
        assert base.damaged_files() == []

    def test_it_keeps_the_base_s_files_when_that_is_deleted(self, store: ModelStore, tuned: Manifest) -> None:
        delete(store, BASE)
        assert collect(store).removed == []
        assert store.get(TUNED).damaged_files() == []

    def test_its_bytes_are_its_model_s_own(self, store: ModelStore, base: Manifest, tuned: Manifest) -> None:
        usage = measure(store)
        assert tuned.adapter is not None
        (found,) = [model for model in usage.models if model.name == TUNED]
        assert (found.own, found.shared) == (tuned.adapter.size, base.size)
        assert usage.unused == 0

    def test_over_a_base_that_is_served_where_it_is_it_is_part_of_the_store_still(
        self, store: ModelStore, build_snapshot: BuildSnapshot, adapter: Path
    ) -> None:
        store.put(make_manifest("base", build_snapshot("elsewhere", tensors=WEIGHTS)))
        list(create(store, TUNED, Changes(), base="base", adapter_path=adapter))
        tuned = store.get(TUNED)
        assert tuned.adapter is not None
        (found,) = [model for model in measure(store).models if model.name == TUNED]
        assert (found.own, found.outside) == (tuned.adapter.size, tuned.size - tuned.adapter.size)
        assert held_file(store, tuned.adapter.files[0].sha256) is not None
        assert collect(store).removed == []

    def test_it_is_verified(self, store: ModelStore, tuned: Manifest) -> None:
        assert tuned.adapter is not None
        (tuned.adapter.snapshot / "adapter_config.json").write_text("{}")
        (verdict,) = returned(verify(store, [TUNED]))
        assert list(verdict.problems) == ["adapter_config.json"]
        assert verdict.files == len(tuned.files) + 2

    def test_a_model_whose_adapter_is_missing_is_damaged(self, tuned: Manifest) -> None:
        assert tuned.adapter is not None
        (tuned.adapter.snapshot / "adapter_config.json").unlink()
        assert tuned.damaged_files() == ["adapter_config.json"]
        with pytest.raises(ManifestCorrupt, match=r"adapter_config\.json is missing"):
            describe(tuned)

    def test_it_is_a_layer_behind_the_model_s(self, base: Manifest, tuned: Manifest) -> None:
        assert tuned.adapter is not None
        assert layers(tuned) == [layers(base)[0], f"sha256:{tuned.adapter.digest}", *layers(base)[1:]]


class TestBundles:
    @pytest.fixture
    def other(self, tmp_path: Path) -> ModelStore:
        """The store on the other side."""
        return ModelStore(tmp_path / "other")

    def test_a_bundle_brings_it(self, store: ModelStore, tuned: Manifest, other: ModelStore, tmp_path: Path) -> None:
        list(stage(store, [BASE, TUNED], tmp_path / "bundle"))
        list(load(other, tmp_path / "bundle"))
        brought = other.get(TUNED)
        assert brought.adapter is not None
        assert (brought.digest, brought.damaged_files(), brought.adapter.rank) == (tuned.digest, [], 4)
        assert all(place.is_relative_to(other.root) for place in brought.snapshots)
        assert other.get(BASE).snapshot == brought.snapshot
        assert collect(other).removed == []

    def test_one_that_is_not_what_its_manifest_says_is_refused(
        self, store: ModelStore, tuned: Manifest, other: ModelStore, tmp_path: Path
    ) -> None:
        assert tuned.adapter is not None
        store.put(replace(tuned, adapter=replace(tuned.adapter, rank=2)))
        list(stage(store, [TUNED], tmp_path / "bundle"))
        with pytest.raises(StoreError, match="differs from its manifest"):
            list(load(other, tmp_path / "bundle"))
        assert other.list() == []

    def test_one_of_other_files_is_not_staged(self, store: ModelStore, tuned: Manifest, tmp_path: Path) -> None:
        assert tuned.adapter is not None
        store.put(replace(tuned, adapter=replace(tuned.adapter, files=tuned.adapter.files[:1])))
        with pytest.raises(StoreError, match="an adapter with files other than"):
            list(stage(store, [TUNED], tmp_path / "bundle"))
