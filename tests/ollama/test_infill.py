"""Which models fill gaps, and how they are asked."""

from __future__ import annotations

import pytest

from vllama.ollama.infill import Infill, infill_of

QWEN = {"<|im_start|>", "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|fim_pad|>"}
STARCODER = {"<fim_prefix>", "<fim_suffix>", "<fim_middle>"}
DEEPSEEK = {"<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"}
CODE_LLAMA = {"▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"}
MISTRAL = {"[PREFIX]", "[SUFFIX]", "[MIDDLE]"}


def asked(tokens: set[str], model_type: str, origin: str) -> str:
    infill = infill_of(tokens, model_type, origin)
    assert infill is not None
    return infill.prompt("BEFORE", "AFTER")


@pytest.mark.parametrize(
    ("tokens", "model_type", "origin", "prompt"),
    [
        (QWEN, "qwen2", "Qwen/Qwen2.5-Coder-7B", "<|fim_prefix|>BEFORE<|fim_suffix|>AFTER<|fim_middle|>"),
        (STARCODER, "starcoder2", "bigcode/starcoder2-3b", "<fim_prefix>BEFORE<fim_suffix>AFTER<fim_middle>"),
        (DEEPSEEK, "llama", "deepseek-coder:6.7b", "<｜fim▁begin｜>BEFORE<｜fim▁hole｜>AFTER<｜fim▁end｜>"),
        (CODE_LLAMA, "llama", "codellama:7b", "▁<PRE>BEFORE▁<SUF>AFTER▁<MID>"),
        (MISTRAL, "mistral", "mistralai/Codestral-22B-v0.1", "[SUFFIX]AFTER[PREFIX]BEFORE"),
        (QWEN, "granitemoehybrid", "granite4", "<|fim_prefix|>BEFORE<|fim_suffix|>AFTER<|fim_middle|>"),
    ],
)
def test_each_family_is_asked_with_its_own_tokens(tokens: set[str], model_type: str, origin: str, prompt: str) -> None:
    assert asked(tokens, model_type, origin) == prompt


def test_a_general_model_with_the_tokens_of_its_family_fills_no_gaps() -> None:
    assert infill_of(QWEN, "qwen2", "Qwen/Qwen2.5-7B-Instruct qwen2.5") is None
    assert infill_of(MISTRAL, "mistral", "mistralai/Mistral-Nemo-Instruct-2407") is None


def test_a_model_for_code_without_the_tokens_fills_no_gaps() -> None:
    assert infill_of({"<|im_start|>"}, "llama", "some-code-model") is None
    assert infill_of(QWEN - {"<|fim_middle|>"}, "qwen2", "Qwen2.5-Coder") is None


def test_the_texts_stand_in_the_prompt_as_they_are() -> None:
    assert Infill("<A>", "<B>", "<C>").prompt("{x}\n", "<B>") == "<A>{x}\n<B><B><C>"
