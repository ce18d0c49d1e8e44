"""Facts about a model from its config.json, its templates and the headers of its weights.

Facts never come from the name, and torch is not needed: `/api/tags` describes every model of the store.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from vllama.errors import ManifestCorrupt, TemplateError
from vllama.ollama.templates import in_jinja
from vllama.store.foreign_files import LARGEST_JSON, read_bounded, read_json
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

FilesState = tuple[tuple[tuple[str, int, int], ...], ...]
"""Path, size and time of change of each file, for each directory of a model."""

Facts = tuple[tuple[str, tuple[str, ...]], ...]
"""GGUF's name of a fact, as clients expect it in `model_info`, and its names in config.json."""

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
"""File type numbers of llama.cpp, which Ollama shows as `general.file_type`."""

_SAMPLING = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
}
"""Names in generation_config.json and Ollama's; `max_new_tokens` is omitted on purpose (contract §2.10)."""


_UNEXPECTED = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)
_LONGEST_REASON = 200

_LARGEST_NUMBER = 1 << 53
"""Numbers of a configuration beyond this are taken for unknown: JSON has none that are exact."""


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """The facts about a model that `/api/tags`, `/api/show` and `/api/ps` report.

    Lengths are in tokens or vector elements, 0 if unknown. `template` is as given, `chat_template` the
    same in Jinja. `parameters` are the sampling defaults in force: the manifest's over generation_config.json's.
    `tokens` are the tokens that its tokenizer has beyond its learned vocabulary; `tool_template` is
    the template for requests with tools if it differs. `capabilities` are
    those that follow from the architecture; vllama.scheduler.serving adds those from parsers.
    `computes_as_float` says that its weights are floats while a CPU computes, also if they are stored as integers.
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
    computes_as_float: bool = False

    @property
    def traits(self) -> Traits:
        """Facts that determine how the model writes tool calls and thinking."""
        template = self.tool_template or self.chat_template
        return Traits(self.family, template, self.tokens, is_rendered_in_code=self.has_mistral_tokenizer)

    @property
    def parameter_size(self) -> str:
        """The parameter count in Ollama's style: "134.52M"."""
        return human_count(self.parameter_count)


def describe(manifest: Manifest) -> ModelDescription:
    """Read the facts from the snapshot. Raises ManifestCorrupt if a file is damaged or missing."""
    try:
        return _describe(manifest)
    except _UNEXPECTED as error:  # a value of an unexpected type or size
        reason = f"{type(error).__name__}: {str(error)[:_LONGEST_REASON]}"
        raise ManifestCorrupt(
            f"cannot understand the settings of '{manifest.name.display}' in {manifest.snapshot}: {reason}"
        ) from error


def _describe(manifest: Manifest) -> ModelDescription:
    found = _describe_snapshot(manifest.snapshot, _state(manifest.snapshot, manifest.files))
    if manifest.adapter:
        _state(manifest.adapter.snapshot, manifest.adapter.files)
    if manifest.template:
        try:
            jinja = in_jinja(manifest.template)
        except TemplateError as error:
            raise ManifestCorrupt(f"cannot use the template of '{manifest.name.display}': {error}") from error
        found = replace(found, template=manifest.template, chat_template=jinja, tool_template="")
    return replace(
        found,
        license=manifest.license or found.license,
        model_info={"general.basename": manifest.basename, **found.model_info},
        parameters={**found.parameters, **manifest.parameters},
    )


# A checkpoint of a large mixture of experts has 20,000 tensors, 60 ms to read, and some clients ask for
# /api/tags every few seconds. A changed `state` invalidates the cached facts.
@lru_cache(maxsize=256)
def _describe_snapshot(snapshot: Path, state: object) -> ModelDescription:
    del state
    config = read_config(snapshot)
    architectures = _texts(config.get("architectures"))
    quantization = next(filter(None, (_object(config.get(key)) for key in _QUANTIZATION)), {})
    tensors = read_tensors(weight_files(snapshot))
    origin = _gguf_origin(config)
    level = str(origin.get("file_type") or quantization_level(tensors, quantization))
    count = _whole(origin.get("parameter_count")) or parameter_count(tensors, quantization)
    facts = _facts(config, snapshot)
    template = _chat_template(snapshot)
    model_type = config.get("model_type")
    family = model_type if isinstance(model_type, str) else ""
    return ModelDescription(
        family=family,
        families=(family,) if family else (),
        format="gguf" if origin else "safetensors",
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
            **_file_type(origin, level),
            **({"vllama.weights": served_weights(origin)} if origin else {}),
            **{f"{family}.{key}": value for key, value in facts.items()},
        },
        tensors=tensors,
        parameters=_sampling_defaults(snapshot),
        tokens=_added_tokens(snapshot),
        has_mistral_tokenizer=_has_mistral_tokenizer(snapshot),
        tool_template=_named_template(snapshot, "tool_use"),
        architecture=architectures[0] if architectures else "",
        has_vision=_has_vision(config, snapshot),
        computes_as_float=bool(origin) or level in {"F32", "BF16", "F16"},
    )


_QUANTIZATION = ("quantization_config", "compression_config")


def _texts(value: object) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def gguf_precision(snapshot: Path) -> str:
    """Return how the weights were converted from a GGUF file, "exact" or "bf16"; "" for other snapshots."""
    return str(_gguf_origin(read_config(snapshot)).get("precision", ""))


def _gguf_origin(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what vllama.store.gguf.quantization wrote about the file; {} for other snapshots."""
    found = config.get("gguf")
    return found if isinstance(found, dict) else {}


def _file_type(origin: Mapping[str, Any], level: str) -> dict[str, int]:
    number = _whole(origin.get("general_file_type")) if origin else _FILE_TYPES.get(level)
    return {} if number is None else {"general.file_type": number}


def served_weights(origin: Mapping[str, Any]) -> str:
    """Return what became of each type of tensors: "Q4_K: INT4+minimum, scales rounded to 16 bits; Q6_K: …".

    `origin` is the object `gguf` of config.json, which vllama.store.gguf.quantization wrote.
    """
    listed = origin.get("tensors")
    entries = [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
    return "; ".join(f"{entry.get('type')}: {entry.get('served')}{_error(entry)}" for entry in entries)


def _error(entry: Mapping[str, Any]) -> str:
    if "bits" not in entry:
        return "" if entry.get("served") == entry.get("type") else ", rounded"
    if (steps := entry.get("error_in_steps")) and _is_number(steps):
        return f", error at most {steps:g} of a step"
    return ", scales rounded to 16 bits" if entry.get("rounds_scales") else ", exact"


def _whole(value: object) -> int | None:
    return int(value) if _is_number(value) and isinstance(value, int) and value >= 0 else None


def files_state(manifest: Manifest) -> FilesState:
    """Return size and time of all files of the model: equal as long as nothing was changed.

    Raises ManifestCorrupt where a file is missing.
    """
    return tuple(_state(snapshot, files) for snapshot, files in manifest.snapshots.items())


def _state(snapshot: Path, files: Iterable[ManifestFile]) -> tuple[tuple[str, int, int], ...]:
    """Return size and time of each file and the directory, which are equal as long as nothing has changed."""
    try:
        return tuple(
            (path, stat.st_size, stat.st_mtime_ns)
            for path in (".", *(file.path for file in files))
            for stat in (os.stat(f"{snapshot}/{path}"),)  # noqa: PTH116 - /api/tags asks for all files, and Path.stat takes five times as long
        )
    except OSError as error:
        raise ManifestCorrupt(f"{error.filename} is missing; pull the model again") from error


def capabilities(architectures: list[str], *, is_sentence_transformer: bool, labels: int = 0) -> tuple[str, ...]:
    """Return the served capabilities of the architecture (contract §4.5).

    `tools`, `thinking` and `vision` depend on the installed vLLM (see vllama.scheduler.serving). `insert` needs
    more than a template that mentions it, and a wrong claim hurts clients more than a missing one: none is made yet.
    `rerank` and `classify` are our own: Ollama has no such models. A classifier with one of its `labels` is a
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
_DECODERS = ("LMHeadModel", "ChatModel", "GLMModel")  # these names end in "Model", but the models generate text
_CLASSIFIER, _TAGGER = "ForSequenceClassification", "ForTokenClassification"


def _labels(config: dict[str, Any]) -> int:
    """Return the number of labels of a classifier; two if config.json does not say, as in transformers."""
    names = config.get("id2label")
    stated = len(names) if isinstance(names, dict) else config.get("num_labels")
    return stated if isinstance(stated, int) and not isinstance(stated, bool) else 2


def read_config(snapshot: Path) -> dict[str, Any]:
    """Return config.json with nested parts lifted: the language model of a multimodal one, and rope parameters.

    Raises ManifestCorrupt if the file is damaged or missing.
    """
    config = _read_json(snapshot / "config.json", required=True)
    for key in ("thinker_config", "text_config", "llm_config", "language_config"):
        if isinstance(nested := config.get(key), dict):
            named = {key: config[key] for key in ("architectures", "model_type") if config.get(key)}
            config = {**config, **nested, **named}
    rope = config.get("rope_parameters")
    if isinstance(rope, dict):
        rope = rope.get("full_attention", rope)  # one set per layer type
        config = {"rope_theta": rope.get("rope_theta"), **config}
    return config


def _has_vision(config: dict[str, Any], snapshot: Path) -> bool:
    """Return whether the config has a vision tower, or the snapshot has an image processor."""
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
    # Sentence transformers are trained for fewer tokens than their positions allow, and vLLM serves as many.
    served = _read_json(snapshot / "sentence_bert_config.json").get("max_seq_length")
    if (whole := _whole(served)) is not None:
        facts["context_length"] = whole
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
    """Return the Jinja chat template, searching in the same order as transformers."""
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
    """Return one of several named chat templates; "" if the snapshot does not have it."""
    path = snapshot / "additional_chat_templates" / f"{name}.jinja"
    if path.exists():
        return _read_text(path)
    listed = _read_json(snapshot / "tokenizer_config.json").get("chat_template")
    entries = [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
    return next((str(entry.get("template", "")) for entry in entries if entry.get("name") == name), "")


def _added_tokens(snapshot: Path) -> frozenset[str]:
    """Return the tokens beyond the learned vocabulary, preferably from the smaller file."""
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
    """Return whether the only tokenizer is Mistral's own, which renders messages without a chat template."""
    return (snapshot / "tekken.json").exists() and not (snapshot / "tokenizer.json").exists()


def _tekken_tokens(path: Path) -> frozenset[str]:
    """Return the control tokens in Mistral's tokenizer file; its first versions do not contain them."""
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
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST_NUMBER


def _read_json(path: Path, *, required: bool = False) -> dict[str, Any]:
    """Return the JSON object in the file; an empty one if an optional file is missing."""
    try:
        record = read_json(path)
    except FileNotFoundError as error:
        if required:
            raise ManifestCorrupt(f"{path} is missing; pull the model again") from error
        return {}
    except (OSError, ValueError) as error:
        raise ManifestCorrupt(f"cannot read {path}: {error}") from error
    if not isinstance(record, dict):
        raise ManifestCorrupt(f"{path} is not a JSON object")
    return record


def _read_text(path: Path) -> str:
    try:
        return read_bounded(path, LARGEST_JSON).decode(errors="replace")
    except OSError as error:
        raise ManifestCorrupt(f"cannot read {path}: {error}") from error
