"""What a model is: read from its config.json, its templates and the headers of its weights.

Never from its name, and without torch: `/api/tags` describes every model of the store.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import orjson

from vllama.errors import ManifestCorrupt, TemplateError
from vllama.ollama.templates import in_jinja
from vllama.store.manifest import Manifest, ManifestFile
from vllama.store.parsers import Traits
from vllama.store.snapshot import weight_files
from vllama.store.weights import (
    Tensor,
    human_count,
    parameter_count,
    quantization_level,
    read_tensors,
)

Facts = tuple[tuple[str, tuple[str, ...]], ...]
"""GGUF's name for a fact, as clients of `model_info` know it, and config.json's names for the same."""

_FACTS: Facts = (
    ("context_length", ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")),
    ("embedding_length", ("hidden_size", "n_embd", "d_model")),
    ("block_count", ("num_hidden_layers", "n_layer", "num_layers")),
    ("feed_forward_length", ("intermediate_size", "n_inner", "ffn_dim", "d_ff")),
    ("vocab_size", ("vocab_size",)),
    ("attention.head_count", ("num_attention_heads", "n_head", "num_heads")),
    ("attention.head_count_kv", ("num_key_value_heads", "num_kv_heads", "num_attention_heads", "n_head")),
    ("attention.layer_norm_rms_epsilon", ("rms_norm_eps",)),
    ("attention.layer_norm_epsilon", ("layer_norm_eps", "layer_norm_epsilon")),
    ("rope.freq_base", ("rope_theta",)),
    ("rope.dimension_count", ("head_dim",)),
    ("expert_count", ("num_local_experts", "num_experts", "n_routed_experts")),
    ("expert_used_count", ("num_experts_per_tok",)),
)
_VISION_FACTS: Facts = (
    ("embedding_length", ("hidden_size", "embed_dim")),
    ("block_count", ("num_hidden_layers", "depth")),
    ("feed_forward_length", ("intermediate_size",)),
    ("attention.head_count", ("num_attention_heads", "num_heads")),
    ("image_size", ("image_size",)),
    ("patch_size", ("patch_size",)),
)
_FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32}
"""llama.cpp's numbers, which Ollama shows as `general.file_type`."""

_SAMPLING = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
}
"""generation_config.json's names and Ollama's; `max_new_tokens` is left out on purpose (contract §2.10)."""


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """The facts that `/api/tags`, `/api/show` and `/api/ps` tell of a model.

    Lengths are tokens or vector elements, 0 where unknown. `template` is as it was given, `chat_template` the
    same in Jinja. `parameters` are the sampling defaults in force: the manifest's over generation_config.json's.
    `tokens` are the tokens that its tokenizer has beyond its learned vocabulary; `tool_template` is
    the template for requests with tools where that is another one. `capabilities` are
    those that its architecture tells; what parsers add is known to vllama.scheduler.serving.
    `architecture` is the name of its class, and `has_vision` says whether its files describe one that takes images.
    """

    family: str
    families: tuple[str, ...]
    format: str
    parameter_count: int
    quantization_level: str
    context_length: int
    embedding_length: int
    capabilities: tuple[str, ...]
    template: str
    license: str
    model_info: Mapping[str, Any]
    tensors: tuple[Tensor, ...]
    parameters: Mapping[str, Any]
    tokens: frozenset[str] = frozenset()
    has_mistral_tokenizer: bool = False
    tool_template: str = ""
    chat_template: str = ""
    architecture: str = ""
    has_vision: bool = False

    @property
    def traits(self) -> Traits:
        """What tells how the model writes tool calls and thinking."""
        template = self.tool_template or self.chat_template
        return Traits(self.family, template, self.tokens, is_rendered_in_code=self.has_mistral_tokenizer)

    @property
    def parameter_size(self) -> str:
        """The parameter count in Ollama's style: "134.52M"."""
        return human_count(self.parameter_count)


def describe(manifest: Manifest) -> ModelDescription:
    """Read the facts from the snapshot. Raises ManifestCorrupt where a file is damaged or missing."""
    found = _describe_snapshot(manifest.snapshot, _state(manifest.snapshot, manifest.files))
    if manifest.adapter:
        _state(manifest.adapter.snapshot, manifest.adapter.files)
    if manifest.template:
        try:
            jinja = in_jinja(manifest.template)
        except TemplateError as error:
            raise ManifestCorrupt(f"the template of '{manifest.name.display}' cannot be used: {error}") from error
        found = replace(found, template=manifest.template, chat_template=jinja, tool_template="")
    return replace(
        found,
        license=manifest.license or found.license,
        model_info={"general.basename": manifest.basename, **found.model_info},
        parameters={**found.parameters, **manifest.parameters},
    )


# A checkpoint of a large mixture of experts has 20,000 tensors, 60 ms to read, and some clients ask for
# /api/tags every few seconds. `state` makes it forget what has changed on disk.
@lru_cache(maxsize=256)
def _describe_snapshot(snapshot: Path, state: object) -> ModelDescription:
    del state
    config = read_config(snapshot)
    architectures = config.get("architectures") or []
    quantization = config.get("quantization_config") or config.get("compression_config") or {}
    tensors = read_tensors(weight_files(snapshot))
    level = quantization_level(tensors, quantization)
    count = parameter_count(tensors, quantization)
    facts = _facts(config, snapshot)
    template = _chat_template(snapshot)
    family = str(config.get("model_type", ""))
    return ModelDescription(
        family=family,
        families=(family,) if family else (),
        format="safetensors",
        parameter_count=count,
        quantization_level=level,
        context_length=int(facts.get("context_length", 0)),
        embedding_length=int(facts.get("embedding_length", 0)),
        capabilities=capabilities(
            architectures,
            is_sentence_transformer=(snapshot / "modules.json").exists(),
            labels=_labels(config),
        ),
        template=template,
        chat_template=template,
        license=_license(snapshot),
        model_info={
            "general.architecture": family,
            "general.parameter_count": count,
            "general.type": "model",
            **({"general.file_type": _FILE_TYPES[level]} if level in _FILE_TYPES else {}),
            **{f"{family}.{key}": value for key, value in facts.items()},
        },
        tensors=tensors,
        parameters=_sampling_defaults(snapshot),
        tokens=_added_tokens(snapshot),
        has_mistral_tokenizer=_has_mistral_tokenizer(snapshot),
        tool_template=_named_template(snapshot, "tool_use"),
        architecture=architectures[0] if architectures else "",
        has_vision=_has_vision(config, snapshot),
    )


def _state(snapshot: Path, files: Iterable[ManifestFile]) -> tuple[tuple[str, int, int], ...]:
    """Return size and time of each file, and of the directory: equal as long as nothing was changed."""
    try:
        return tuple(
            (path, stat.st_size, stat.st_mtime_ns)
            for path in (".", *(file.path for file in files))
            for stat in (os.stat(f"{snapshot}/{path}"),)  # noqa: PTH116 - at every request, and a fifth of the time
        )
    except OSError as error:
        raise ManifestCorrupt(f"{error.filename} is missing; pull the model again") from error


def capabilities(architectures: list[str], *, is_sentence_transformer: bool, labels: int = 0) -> tuple[str, ...]:
    """Return what the architecture can do (contract §4.5), as far as it is served.

    `tools`, `thinking` and `vision` need what the installed vLLM has (vllama.scheduler.serving). `insert` needs more
    than a template that mentions it, and a wrong claim hurts clients more than a missing one: none is made yet.
    `rerank` and `classify` are words of ours: Ollama has no such models. A classifier with one of its `labels` is a
    cross-encoder.
    """
    architecture = architectures[0] if architectures else ""
    if architecture.endswith(_CLASSIFIER):
        return ("rerank",) if labels == 1 else ("classify",)
    encodes = architecture.endswith(_ENCODERS) and not architecture.endswith(_DECODERS)
    if is_sentence_transformer or encodes:
        return ("embedding",)
    if architecture.endswith(_TAGGER):
        return ()
    return ("completion",)


_ENCODERS = ("Model", "ForMaskedLM", "ForTextEncoding")
_DECODERS = ("LMHeadModel", "ChatModel", "GLMModel")  # "Model" at the end, and yet they write text
_CLASSIFIER, _TAGGER = "ForSequenceClassification", "ForTokenClassification"


def _labels(config: dict[str, Any]) -> int:
    """How many labels a classifier knows; two where config.json does not say, as in transformers."""
    names = config.get("id2label")
    stated = len(names) if isinstance(names, dict) else config.get("num_labels")
    return stated if isinstance(stated, int) else 2


def read_config(snapshot: Path) -> dict[str, Any]:
    """Return config.json with what nests lifted: a multimodal one's language model, the parameters of its rope.

    Raises ManifestCorrupt where the file is damaged or missing.
    """
    config = _read_json(snapshot / "config.json", required=True)
    for key in ("thinker_config", "text_config", "llm_config", "language_config"):
        if isinstance(nested := config.get(key), dict):
            config = {**config, **nested, "model_type": config.get("model_type", nested.get("model_type"))}
            config["architectures"] = config.get("architectures") or nested.get("architectures")
    rope = config.get("rope_parameters")
    if isinstance(rope, dict):
        rope = rope.get("full_attention", rope)  # one set for each type of layer
        config = {"rope_theta": rope.get("rope_theta"), **config}
    return config


def _has_vision(config: dict[str, Any], snapshot: Path) -> bool:
    """Whether the config has a vision tower, or the snapshot what prepares images for one."""
    if isinstance(config.get("vision_config"), dict):
        return True
    preprocessor = _read_json(snapshot / "preprocessor_config.json")
    return "image_processor_type" in preprocessor or "image_processor" in _read_json(snapshot / "processor_config.json")


def _facts(config: dict[str, Any], snapshot: Path) -> dict[str, int | float]:
    facts = _numbers(config, _FACTS)
    if isinstance(tower := config.get("vision_config"), dict):
        facts |= {f"vision.{key}": value for key, value in _numbers(tower, _VISION_FACTS).items()}
    heads, width = facts.get("attention.head_count"), facts.get("embedding_length")
    if "rope.freq_base" in facts and heads and width:
        facts.setdefault("rope.dimension_count", width // heads)
    # Sentence transformers are trained for less than their positions allow, and vLLM serves that.
    served = _read_json(snapshot / "sentence_bert_config.json").get("max_seq_length")
    if isinstance(served, int):
        facts["context_length"] = served
    return facts


def _numbers(config: dict[str, Any], facts: Facts) -> dict[str, int | float]:
    found: dict[str, int | float] = {}
    for key, names in facts:
        value = next((config[name] for name in names if _is_number(config.get(name))), None)
        if value is not None:
            found[key] = int(value) if value == int(value) else value
    return found


def _sampling_defaults(snapshot: Path) -> dict[str, int | float]:
    config = _read_json(snapshot / "generation_config.json")
    return {ours: config[theirs] for theirs, ours in _SAMPLING.items() if _is_number(config.get(theirs))}


def _chat_template(snapshot: Path) -> str:
    """Return the Jinja chat template, in the order in which transformers looks for it."""
    path = snapshot / "chat_template.jinja"
    if path.exists():
        return _read_text(path)
    for name in ("chat_template.json", "tokenizer_config.json"):
        template = _read_json(snapshot / name).get("chat_template")
        if isinstance(template, list):
            return _named_template(snapshot, "default")
        if isinstance(template, str):
            return template
    return ""


def _named_template(snapshot: Path, name: str) -> str:
    """Return one of several chat templates; "" where the snapshot has no such one."""
    path = snapshot / "additional_chat_templates" / f"{name}.jinja"
    if path.exists():
        return _read_text(path)
    listed = _read_json(snapshot / "tokenizer_config.json").get("chat_template")
    entries = [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
    return next((str(entry.get("template", "")) for entry in entries if entry.get("name") == name), "")


def _added_tokens(snapshot: Path) -> frozenset[str]:
    """Return the tokens beyond the learned vocabulary, from the smaller file if it has them."""
    stated = _read_json(snapshot / "tokenizer_config.json").get("added_tokens_decoder")
    entries = list(stated.values()) if isinstance(stated, dict) else []
    if not entries:
        listed = _read_json(snapshot / "tokenizer.json").get("added_tokens")
        entries = listed if isinstance(listed, list) else []
    if not entries and _has_mistral_tokenizer(snapshot):
        return _tekken_tokens(snapshot / "tekken.json")
    contents = (entry.get("content") for entry in entries if isinstance(entry, dict))
    return frozenset(content for content in contents if isinstance(content, str))


def _has_mistral_tokenizer(snapshot: Path) -> bool:
    """Whether there is no tokenizer but Mistral's own, which renders messages without a chat template."""
    return (snapshot / "tekken.json").exists() and not (snapshot / "tokenizer.json").exists()


def _tekken_tokens(path: Path) -> frozenset[str]:
    """Return the control tokens of Mistral's tokenizer file; those of its first versions are not written there."""
    listed = _read_json(path).get("special_tokens")
    if not isinstance(listed, list):
        return frozenset({"[AVAILABLE_TOOLS]", "[TOOL_CALLS]"})
    names = (entry.get("token_str") for entry in listed if isinstance(entry, dict))
    return frozenset(name for name in names if isinstance(name, str))


def _license(snapshot: Path) -> str:
    """Return the text of the licence file; the first by name if there are several."""
    paths = sorted(path for path in snapshot.glob("[Ll][Ii][Cc][Ee][Nn][SsCc][Ee]*") if path.is_file())
    return _read_text(paths[0]) if paths else ""


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _read_json(path: Path, *, required: bool = False) -> dict[str, Any]:
    """Return the object in the file; an empty one where an optional file is not there."""
    try:
        record = orjson.loads(path.read_bytes())
    except FileNotFoundError as error:
        if required:
            raise ManifestCorrupt(f"{path} is missing; pull the model again") from error
        return {}
    except (OSError, ValueError) as error:
        raise ManifestCorrupt(f"cannot read {path}: {error}") from error
    if not isinstance(record, dict):
        raise ManifestCorrupt(f"{path} holds no JSON object")
    return record


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ManifestCorrupt(f"cannot read {path}: {error}") from error
