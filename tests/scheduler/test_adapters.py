"""Which adapters can be served, and the room for them with which a worker starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tiny_snapshot import make_manifest, write_snapshot

from vllama.errors import RequestError
from vllama.installed.adapter_support import AdapterSupport
from vllama.scheduler.adapters import adapter_flags, check_servable, room_for, room_given
from vllama.store.description import ModelDescription, describe
from vllama.store.manifest import Adapter, Manifest, ManifestFile
from vllama.store.peft import Layer

BASE = make_manifest("base", files=(ManifestFile("config.json", 1, "0" * 64),))
OTHER = make_manifest("other", files=(ManifestFile("config.json", 1, "1" * 64),))
Q = Layer("model.layers.0.self_attn.q_proj", 8, (16, 8), embeds=False)
HEAD = Layer("lm_head", 8, (32, 8), embeds=False)


def with_adapter(base: Manifest, rank: int) -> Manifest:
    return replace(base, adapter=Adapter(Path("/adapter"), (), rank))


class TestRoom:
    def test_where_no_model_has_an_adapter_there_is_none(self) -> None:
        assert room_for(BASE, [BASE, OTHER]) == 0
        assert adapter_flags([], 0) == ()
        assert room_given([], 0) == 0

    def test_it_is_for_the_highest_rank_on_the_same_weights(self) -> None:
        stored = [BASE, with_adapter(BASE, 8), with_adapter(BASE, 20), with_adapter(OTHER, 64)]
        assert room_for(BASE, stored) == 20
        assert room_for(with_adapter(BASE, 40), stored) == 40

    @pytest.mark.parametrize(("rank", "room"), [(1, 8), (8, 8), (9, 16), (20, 32), (257, 320), (512, 512)])
    def test_it_is_one_of_those_that_vllm_knows(self, rank: int, room: int) -> None:
        flags = adapter_flags([], rank)
        assert flags == (
            "--enable-lora",
            "--max-lora-rank",
            str(room),
            "--max-loras",
            "4",
            "--max-cpu-loras",
            "64",
        )
        assert room_given([], rank) == room

    def test_flags_of_the_user_stay_as_they_are(self) -> None:
        flags = ["--enable-lora", "--max-loras=8", "--max-lora-rank", "64"]
        assert adapter_flags(flags, 16) == ("--max-cpu-loras", "64")
        assert (room_given(flags, 16), room_given(flags, 0)) == (64, 64)

    def test_a_rank_alone_is_no_room(self) -> None:
        assert room_given(["--max-lora-rank", "64"], 0) == 0

    def test_who_wants_none_has_none(self) -> None:
        assert adapter_flags(["--no-enable-lora"], 16) == ()
        assert room_given(["--no-enable-lora"], 16) == 0


class TestServable:
    SUPPORT = AdapterSupport(takes=True, embeddings=frozenset({"embed_tokens"}))

    @pytest.fixture
    def base(self, tmp_path: Path) -> ModelDescription:
        return describe(make_manifest("base", write_snapshot(tmp_path / "base")))

    def test_an_adapter_of_a_model_that_vllm_takes_them_for_is(self, base: ModelDescription) -> None:
        check_servable([Q], 8, base, self.SUPPORT, [])
        check_servable([Q], 8, base, None, [])  # vLLM has the last word
        check_servable([HEAD], 8, base, None, [])

    @pytest.mark.parametrize(
        ("layers", "support", "flags", "message"),
        [
            ([Q], AdapterSupport(), [], "vLLM does not support LoRA adapters for LlamaForCausalLM"),
            ([Q, HEAD], SUPPORT, [], "vLLM does not support adapters for lm_head of LlamaForCausalLM"),
            ([Q], SUPPORT, ["--no-enable-lora"], "started with --no-enable-lora"),
            ([Q], SUPPORT, ["--enable-lora", "--max-lora-rank=1"], "rank 8, but the server was started with"),
        ],
    )
    def test_what_is_not_is_told_with_the_reason(
        self, base: ModelDescription, layers: list[Layer], support: AdapterSupport, flags: list[str], message: str
    ) -> None:
        with pytest.raises(RequestError, match=message):
            check_servable(layers, 8, base, support, flags)

    @pytest.mark.parametrize("capabilities", [("embedding",), ("rerank",), ("classify",)])
    def test_one_of_a_model_that_writes_no_text_is_not(
        self, base: ModelDescription, capabilities: tuple[str, ...]
    ) -> None:
        with pytest.raises(RequestError, match="generate text"):
            check_servable([Q], 8, replace(base, capabilities=capabilities), self.SUPPORT, [])
