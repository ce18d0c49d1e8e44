"""The default model for real: pip, the conversion, and the tokens that Ollama saw."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from vllama.errors import StoreError
from vllama.names import ModelName
from vllama.store.catalogue import DEFAULT_MODEL
from vllama.store.description import ModelDescription, describe
from vllama.store.gguf.conversion import convert
from vllama.store.listing import show_reply
from vllama.store.manifest import Manifest
from vllama.store.model_store import ModelStore
from vllama.store.pull import pull

from .conftest import write_safetensors

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

NAME = ModelName.parse(DEFAULT_MODEL)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    store = ModelStore(tmp_path_factory.mktemp("models"))
    assert [step.status for step in pull(store, NAME)][-1] == "success"
    return store


@pytest.fixture(scope="module")
def manifest(store: ModelStore) -> Manifest:
    return store.get(NAME)


@pytest.fixture(scope="module")
def description(manifest: Manifest) -> ModelDescription:
    return describe(manifest)


@pytest.fixture(scope="module")
def tokenizer(manifest: Manifest) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(manifest.snapshot)


def test_it_is_what_ollama_says_it_is(description: ModelDescription) -> None:
    assert (description.family, description.parameter_size) == ("llama", "134.52M")
    assert (description.context_length, description.embedding_length) == (8192, 576)
    assert (description.format, description.quantization_level) == ("gguf", "Q4_1")
    assert description.parameters == {"stop": ["<|im_start|>", "<|im_end|>"]}
    assert description.license.lstrip().startswith("Apache License")


def test_model_info_has_the_values_of_the_gguf(
    manifest: Manifest, description: ModelDescription, recorded: Any
) -> None:
    ours = show_reply(manifest, description, verbose=False)["model_info"]
    theirs = recorded("021_show_name_field")["model_info"]
    shared = ours.keys() & theirs.keys()
    assert {key: ours[key] for key in shared} == {key: theirs[key] for key in shared}
    assert {key for key in theirs if key.startswith("llama.")} <= shared


def test_the_configuration_is_that_of_the_real_model(manifest: Manifest) -> None:
    config = json.loads((manifest.snapshot / "config.json").read_bytes())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["dtype"] == "bfloat16"
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, 2)
    assert config["tie_word_embeddings"] is True
    assert config["rope_parameters"]["rope_theta"] == 100000
    assert config["rms_norm_eps"] == 1e-05
    assert (config["vocab_size"], config["max_position_embeddings"]) == (49152, 8192)


def test_no_sampling_values_are_made_up(manifest: Manifest) -> None:
    generation = json.loads((manifest.snapshot / "generation_config.json").read_bytes())
    generation.pop("transformers_version", None)
    assert generation == {"bos_token_id": 1, "eos_token_id": [0, 2, 4], "pad_token_id": 2}


def test_the_weights_keep_their_quantization_and_the_embeddings_are_tied(description: ModelDescription) -> None:
    assert {tensor.dtype for tensor in description.tensors} == {"I32", "F16", "F32"}
    assert description.parameter_count == 134_515_008
    assert not [tensor for tensor in description.tensors if "lm_head" in tensor.name]


# Prompt tokens that Ollama 0.24.0 returned in `context` for the same file.
@pytest.mark.parametrize(
    ("prompt", "ids"),
    [
        ("Why is the sky blue?", [4898, 314, 260, 6376, 4461, 47]),
        ("Give a JSON object with a name", [26533, 253, 20110, 1569, 351, 253, 1462]),
        ("Bob is 22 and ok. JSON.", [6777, 314, 216, 34, 34, 284, 10907, 30, 20110, 30]),
        ("JSON:", [27936, 42]),
        ("Tell story 0", [31530, 1977, 216, 32]),
        ("[img-0]Why is the sky blue?", [75, 6266, 29, 32, 77, 4898, 314, 260, 6376, 4461, 47]),
    ],
)
def test_prompts_have_the_tokens_that_ollama_gives_them(tokenizer: Any, prompt: str, ids: list[int]) -> None:
    messages = [{"role": "user", "content": prompt}]
    rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert tokenizer(rendered)["input_ids"] == [1, 4093, 198, *ids, 2, 198, 1, 520, 9531, 198]


def test_a_system_message_has_the_tokens_that_ollama_gives_it(tokenizer: Any) -> None:
    messages = [
        {"role": "system", "content": "Answer in French."},
        {"role": "user", "content": "Why is the sky blue?"},
    ]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert ids[:10] == [1, 9690, 198, 21350, 281, 3432, 30, 2, 198, 1]
    assert len(ids) == 24


def test_digits_are_split_off_before_blanks_are_joined(tokenizer: Any) -> None:
    """As the model was trained; the GPT-2 rule, transformers' fallback, gives other tokens here."""
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("In  2024")["input_ids"])
    assert tokens == ["In", "ĠĠ", "2", "0", "2", "4"]


def test_text_survives_the_way_through_the_tokens(tokenizer: Any) -> None:
    text = " Über 1,234  lines\n\n\tof it 's , ok? 日本 🙂"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_a_second_conversion_gives_the_same_digests(store: ModelStore, manifest: Manifest) -> None:
    assert "converting GGUF to safetensors" in {step.status for step in pull(store, NAME, force=True)}
    again = store.get(NAME)
    assert again.modified_at > manifest.modified_at
    assert again.files == manifest.files
    assert (again.digest, again.snapshot) == (manifest.digest, manifest.snapshot)


def test_what_is_no_gguf_is_refused_with_the_reason(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.gguf", {"w": ("F32", [4])})
    with pytest.raises(StoreError, match=re.compile("cannot convert model.gguf to safetensors.*GGUF", re.DOTALL)):
        next(convert(tmp_path / "model.gguf", tmp_path / "out"))
