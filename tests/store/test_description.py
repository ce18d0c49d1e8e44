from __future__ import annotations

import json
from typing import Any

import pytest

from vllama.errors import ManifestCorrupt
from vllama.store.description import capabilities, describe, gguf_precision

from .conftest import CHATML, BuildSnapshot, make_manifest, write_safetensors


def test_a_llama_is_described_from_its_own_files(build_snapshot: BuildSnapshot) -> None:
    found = describe(make_manifest("Tiny:latest", build_snapshot(files={"LICENSE": "Apache-2.0 …"})))
    assert (found.family, found.families, found.format) == ("llama", ("llama",), "safetensors")
    assert (found.parameter_count, found.parameter_size, found.quantization_level) == (264, "264", "BF16")
    assert (found.context_length, found.embedding_length) == (8192, 8)
    assert found.capabilities == ("completion",)
    assert (found.template, found.license) == (CHATML, "Apache-2.0 …")
    assert dict(found.model_info) == {
        "general.architecture": "llama",
        "general.basename": "Tiny",
        "general.file_type": 32,
        "general.parameter_count": 264,
        "general.type": "model",
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.layer_norm_rms_epsilon": 1e-05,
        "llama.block_count": 1,
        "llama.context_length": 8192,
        "llama.embedding_length": 8,
        "llama.feed_forward_length": 16,
        "llama.rope.dimension_count": 2,
        "llama.rope.freq_base": 100000,
        "llama.vocab_size": 32,
    }


def test_whole_numbers_stay_whole_in_model_info(build_snapshot: BuildSnapshot) -> None:
    info = describe(make_manifest(snapshot=build_snapshot())).model_info
    assert json.dumps(info["llama.rope.freq_base"]) == "100000"


@pytest.mark.parametrize(
    ("config", "key", "value"),
    [
        ({"rope_parameters": None, "rope_theta": 10000.0}, "rope.freq_base", 10000),
        ({"rope_parameters": {"full_attention": {"rope_theta": 5e5}, "sliding": {}}}, "rope.freq_base", 500000),
        ({"head_dim": 64}, "rope.dimension_count", 64),
        ({"num_key_value_heads": None}, "attention.head_count_kv", 4),
        ({"num_local_experts": 8, "num_experts_per_tok": 2}, "expert_count", 8),
        ({"max_position_embeddings": None, "n_positions": 1024}, "context_length", 1024),
    ],
)
def test_facts_are_found_under_their_other_spellings(
    build_snapshot: BuildSnapshot, config: dict[str, Any], key: str, value: int
) -> None:
    assert describe(make_manifest(snapshot=build_snapshot(config=config))).model_info[f"llama.{key}"] == value


def test_the_language_model_of_a_multimodal_one_gives_the_lengths(build_snapshot: BuildSnapshot) -> None:
    config = {
        "model_type": "gemma3",
        "architectures": ["Gemma3ForConditionalGeneration"],
        "text_config": {"model_type": "gemma3_text", "hidden_size": 2560, "max_position_embeddings": 131072},
    }
    found = describe(make_manifest(snapshot=build_snapshot(config=config)))
    assert (found.family, found.context_length, found.embedding_length) == ("gemma3", 131072, 2560)
    assert found.model_info["gemma3.context_length"] == 131072
    assert found.capabilities == ("completion",)


VISION: dict[str, Any] = {
    "model_type": "llava",
    "architectures": ["LlavaForConditionalGeneration"],
    "vision_config": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 336},
    "text_config": {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 4096,
        "num_attention_heads": 32,
    },
}


def test_a_vision_tower_is_described_beside_the_language_model(build_snapshot: BuildSnapshot) -> None:
    found = describe(make_manifest(snapshot=build_snapshot(config=VISION)))
    assert (found.has_vision, found.architecture) == (True, "LlavaForConditionalGeneration")
    assert found.capabilities == ("completion",)  # what the installed vLLM makes of it is not known here
    assert found.embedding_length == found.model_info["llava.embedding_length"] == 4096
    told = {key: found.model_info[f"llava.vision.{key}"] for key in ("embedding_length", "block_count", "image_size")}
    assert told == {"embedding_length": 1024, "block_count": 24, "image_size": 336}


@pytest.mark.parametrize(
    ("files", "has_vision"),
    [
        ({"preprocessor_config.json": {"image_processor_type": "MolmoImageProcessor"}}, True),
        ({"processor_config.json": {"image_processor": {}}}, True),
        ({"preprocessor_config.json": {"feature_extractor_type": "WhisperFeatureExtractor"}}, False),
        ({}, False),
    ],
    ids=["its own preprocessor", "a processor with an image processor", "one that listens", "neither"],
)
def test_without_a_vision_config_the_image_processor_tells(
    build_snapshot: BuildSnapshot, files: dict[str, Any], has_vision: bool
) -> None:
    assert describe(make_manifest(snapshot=build_snapshot(files=files))).has_vision is has_vision


def test_the_lengths_of_a_model_that_thinks_and_talks_are_those_of_the_part_that_thinks(
    build_snapshot: BuildSnapshot,
) -> None:
    thinker = {"vision_config": {"depth": 32}, "text_config": {"hidden_size": 3584}}
    found = describe(make_manifest(snapshot=build_snapshot(config={"thinker_config": thinker})))
    assert (found.has_vision, found.embedding_length) == (True, 3584)


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("LlamaForCausalLM", ("completion",)),
        ("Qwen2VLForConditionalGeneration", ("completion",)),
        ("GPT2LMHeadModel", ("completion",)),
        ("InternVLChatModel", ("completion",)),
        ("ChatGLMModel", ("completion",)),
        ("BertModel", ("embedding",)),
        ("XLMRobertaModel", ("embedding",)),
        ("NomicBertModel", ("embedding",)),
        ("ModernBertForMaskedLM", ("embedding",)),
        ("XLMRobertaForTokenClassification", ()),
    ],
)
def test_the_architecture_tells_writers_from_encoders(architecture: str, expected: tuple[str, ...]) -> None:
    assert capabilities([architecture], is_sentence_transformer=False) == expected


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ({"id2label": {"0": "LABEL_0"}}, ("rerank",)),
        ({"num_labels": 1}, ("rerank",)),
        ({"id2label": {"0": "bad", "1": "good"}}, ("classify",)),
        ({}, ("classify",)),
    ],
)
def test_a_classifier_with_one_label_is_a_cross_encoder(
    build_snapshot: BuildSnapshot, stated: dict[str, Any], expected: tuple[str, ...]
) -> None:
    config = {"architectures": ["XLMRobertaForSequenceClassification"], "model_type": "xlm-roberta", **stated}
    assert describe(make_manifest(snapshot=build_snapshot(config=config))).capabilities == expected


def test_a_sentence_transformer_embeds_whatever_its_architecture(build_snapshot: BuildSnapshot) -> None:
    files = {"modules.json": "[]", "sentence_bert_config.json": {"max_seq_length": 256}}
    found = describe(make_manifest(snapshot=build_snapshot(files=files)))
    assert found.capabilities == ("embedding",)
    assert found.context_length == found.model_info["llama.context_length"] == 256


def test_a_template_that_speaks_of_tools_is_no_promise_yet(build_snapshot: BuildSnapshot) -> None:
    files = {"chat_template.jinja": "{% if tools %}{{ tools }}{% endif %}<think>"}
    assert describe(make_manifest(snapshot=build_snapshot(files=files))).capabilities == ("completion",)


def test_the_manifest_wins_over_the_sampling_values_of_the_snapshot(build_snapshot: BuildSnapshot) -> None:
    generation = {
        "do_sample": True,
        "temperature": 0.7,
        "top_p": 0.8,
        "top_k": 20,
        "min_p": None,
        "repetition_penalty": 1.05,
        "max_new_tokens": 2048,
        "eos_token_id": [1, 2],
    }
    snapshot = build_snapshot(files={"generation_config.json": generation})
    manifest = make_manifest(snapshot=snapshot, parameters={"temperature": 0, "stop": ["END"]})
    assert describe(manifest).parameters == {
        "temperature": 0,
        "top_p": 0.8,
        "top_k": 20,
        "repeat_penalty": 1.05,
        "stop": ["END"],
    }


def test_without_generation_config_there_are_no_defaults(build_snapshot: BuildSnapshot) -> None:
    snapshot = build_snapshot(files={"generation_config.json": None})
    assert describe(make_manifest(snapshot=snapshot)).parameters == {}


@pytest.mark.parametrize(
    "files",
    [
        {"chat_template.jinja": "T", "tokenizer_config.json": {"chat_template": "other"}},
        {"chat_template.jinja": None, "tokenizer_config.json": {"chat_template": "T"}},
        {"chat_template.jinja": None, "chat_template.json": {"chat_template": "T"}},
        {
            "chat_template.jinja": None,
            "tokenizer_config.json": {
                "chat_template": [{"name": "rag", "template": "R"}, {"name": "default", "template": "T"}]
            },
        },
    ],
    ids=["own file", "tokenizer_config", "processor", "named"],
)
def test_the_template_is_found_where_transformers_finds_it(
    build_snapshot: BuildSnapshot, files: dict[str, Any]
) -> None:
    assert describe(make_manifest(snapshot=build_snapshot(files=files))).template == "T"


def test_a_model_without_template_has_an_empty_one(build_snapshot: BuildSnapshot) -> None:
    assert describe(make_manifest(snapshot=build_snapshot(files={"chat_template.jinja": None}))).template == ""


@pytest.mark.parametrize(
    ("tekken", "tokens"),
    [
        ({"special_tokens": [{"rank": 9, "token_str": "[TOOL_CALLS]", "is_control": True}]}, {"[TOOL_CALLS]"}),
        ({"config": {}}, {"[AVAILABLE_TOOLS]", "[TOOL_CALLS]"}),
    ],
    ids=["with its tokens", "without"],
)
def test_a_model_with_mistrals_tokenizer_alone_needs_no_template(
    build_snapshot: BuildSnapshot, tekken: dict[str, Any], tokens: set[str]
) -> None:
    files = {"tekken.json": tekken, "tokenizer.json": None, "chat_template.jinja": None}
    traits = describe(make_manifest(snapshot=build_snapshot(files=files))).traits

    assert (traits.template, set(traits.tokens), traits.is_rendered_in_code) == ("", tokens, True)


def test_template_and_licence_of_the_manifest_win(build_snapshot: BuildSnapshot) -> None:
    snapshot = build_snapshot(files={"LICENSE": "from the snapshot"})
    found = describe(make_manifest(snapshot=snapshot, template="T", license="MIT"))
    assert (found.template, found.license) == ("T", "MIT")


def test_a_change_on_disk_is_seen_at_once(build_snapshot: BuildSnapshot) -> None:
    manifest = make_manifest(snapshot=build_snapshot())
    assert describe(manifest).parameter_count == 264
    write_safetensors(manifest.snapshot / "model.safetensors", {"w": ("F16", [1000])})
    assert describe(manifest).parameter_count == 1000
    (manifest.snapshot / "chat_template.jinja").write_text("new")
    assert describe(manifest).template == "new"
    (manifest.snapshot / "LICENSE").write_text("added")
    assert describe(manifest).license == "added"


@pytest.mark.parametrize("path", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(build_snapshot: BuildSnapshot, path: str) -> None:
    manifest = make_manifest(snapshot=build_snapshot())
    describe(manifest)
    (manifest.snapshot / path).unlink()
    with pytest.raises(ManifestCorrupt, match=f"{path} is missing; pull the model again"):
        describe(manifest)


@pytest.mark.parametrize("content", ["{", "[]", "null"])
def test_a_damaged_config_is_named(build_snapshot: BuildSnapshot, content: str) -> None:
    with pytest.raises(ManifestCorrupt, match=r"config\.json"):
        describe(make_manifest(snapshot=build_snapshot(files={"config.json": content})))


def test_a_model_of_a_gguf_is_described_as_the_file_was(build_snapshot: BuildSnapshot) -> None:
    """As Ollama would, and in keys of our own what is served, with the error bound."""
    gguf = {
        "precision": "exact",
        "file_type": "Q4_K_M",
        "general_file_type": 15,
        "parameter_count": 494_000_000,
        "tensors": [
            {"type": "F32", "weights": 8, "served": "F32"},
            {"type": "IQ2_S", "weights": 8, "served": "BF16"},
            {"type": "Q4_0", "weights": 8, "served": "INT4", "bits": 4, "error_in_steps": 0.0, "rounds_scales": False},
            {"type": "Q4_K", "weights": 8, "served": "INT4+minimum", "bits": 4, "error_in_steps": 0.0,
             "rounds_scales": True},
            {"type": "Q6_K", "weights": 8, "served": "INT8", "bits": 8, "error_in_steps": 1.0, "rounds_scales": True},
        ],
    }  # fmt: skip
    snapshot = build_snapshot(config={"gguf": gguf, "quantization_config": {"quant_method": "vllama_gguf", "bits": 4}})
    found = describe(make_manifest(snapshot=snapshot))
    assert (found.format, found.quantization_level, found.parameter_size) == ("gguf", "Q4_K_M", "494M")
    assert found.model_info["general.file_type"] == 15
    assert found.model_info["vllama.weights"] == (
        "F32: F32; IQ2_S: BF16, rounded; Q4_0: INT4, exact; Q4_K: INT4+minimum, scales rounded to 16 bits; "
        "Q6_K: INT8, error at most 1 of a step"
    )
    assert gguf_precision(snapshot) == "exact"


@pytest.mark.parametrize("gguf", ["Q4_K_M", [], {"parameter_count": -1, "general_file_type": "15", "tensors": "all"}])
def test_a_config_that_says_nonsense_about_a_gguf_does_no_harm(build_snapshot: BuildSnapshot, gguf: object) -> None:
    found = describe(make_manifest(snapshot=build_snapshot(config={"gguf": gguf})))
    assert found.parameter_count > 0
    assert found.quantization_level == "BF16"
