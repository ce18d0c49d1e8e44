"""Lists and descriptions of models: `/api/tags`, `/api/show`, `/api/ps`."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from vllama.gateway.openapi import errors
from vllama.gateway.openapi.errors import MODEL
from vllama.gateway.openapi.operation import Content, Operation, Parameter, Reply
from vllama.gateway.openapi.records import JsonObject, Record, Timestamp
from vllama.scheduler.load_phases import Phase
from vllama.scheduler.policy import State

TAG = "Models"


class Details(Record):
    """Kind and size of a model."""

    parent_model: str
    """Name of the model that this one was created from; in lists it is empty."""
    format: str
    """Format of the weights: `safetensors`."""
    family: str
    """The architecture's family, such as `llama`."""
    families: list[str] | None
    """All families; null if unknown."""
    parameter_size: str
    """Number of parameters, such as `134.52M`."""
    quantization_level: str
    """Type of the weights, such as `BF16`."""
    context_length: int | None = None
    """Context that the model was trained with, in tokens; in `/api/show`, the served context if the model is loaded."""
    embedding_length: int | None = None
    """Length of the hidden vectors."""


class _Model(Record):
    name: str
    """The model's name."""
    model: str
    """The same name."""
    size: int
    """Size in bytes: of the files in `/api/tags`, of the used memory in `/api/ps`."""
    digest: str
    """The model's digest: 64 hexadecimal digits."""
    details: Details


class StoredModel(_Model):
    """A stored model."""

    modified_at: Timestamp
    """When this name was created or last changed."""
    capabilities: list[str] | None = None
    """The model's capabilities: `completion`, `tools`, `thinking`, `vision`, `insert`, `embedding`, …"""


class TagsReply(Record):
    """The reply of `/api/tags`."""

    models: list[StoredModel]
    """All stored models, the last modified first."""


class LoadProgress(Record):
    """The progress of a load."""

    phase: Phase
    """The current phase of the load."""
    percent: int | None
    """Progress of the phase in percent; null if unknown."""
    line: str
    """The last line of the worker's log."""


class LoadedModel(_Model):
    """A loaded model."""

    expires_at: Timestamp
    """When the model is unloaded unless it is used again; 200 years from now if it stays loaded."""
    size_vram: int
    """GPU memory in bytes."""
    context_length: int
    """The served context in tokens."""
    embeds: bool | None = None
    """True for the second worker of a model that generates, which makes its embeddings, with `?all=true` only. Ollama
    has no such field."""
    load: LoadProgress | None = None
    """The progress of a model that is still loading; missing afterwards. Ollama has no such field."""
    state: State | None = None
    """The model's state, with `?all=true` only. Ollama has no such field."""


class PsReply(Record):
    """The reply of `/api/ps`."""

    models: list[LoadedModel]
    """Loaded and loading models; with `?all=true` also sleeping ones."""


class ShowRequest(Record):
    """A request of `/api/show`, with `model` or `name`."""

    model: str | None = ""
    """The model's name."""
    name: str | None = ""
    """The model's name, for older clients."""
    verbose: bool | None = False
    """Whether to include the tokenizer's vocabulary."""
    system: str | None = ""
    """System message to show instead of the model's own."""
    template: str | None = ""
    """Accepted without effect."""
    options: JsonObject | None = None
    """Parameters to show in the Modelfile instead of the model's own."""


class StoredMessage(Record):
    """A message that is part of a model."""

    role: str
    """`system`, `user` or `assistant`."""
    content: str
    """Text of the message."""


class Tensor(Record):
    """A tensor of the model's weights."""

    name: str
    """The tensor's name."""
    type: str
    """Type of its numbers."""
    shape: list[int]
    """Dimensions of the tensor."""


class ShowReply(Record):
    """The reply of `/api/show`. Empty fields are left out."""

    license: str = ""
    """Text or name of the licence."""
    modelfile: str
    """A Modelfile that creates the same model."""
    parameters: str = ""
    """The model's parameters, one per line."""
    template: str = ""
    """The prompt template."""
    system: str = ""
    """The system message."""
    details: Details
    messages: list[StoredMessage] = Field(default_factory=list)
    """Messages that precede each chat."""
    model_info: dict[str, Any] = Field(default_factory=dict)
    """Facts about architecture, tokenizer and origin by GGUF's names. Long lists are null without `verbose`."""
    tensors: list[Tensor] = Field(default_factory=list)
    """The tensors of the weights."""
    capabilities: list[str] = Field(default_factory=list)
    """The model's capabilities: `completion`, `tools`, `thinking`, `vision`, `insert`, `embedding`, …"""
    modified_at: Timestamp
    """When this name was created or last changed."""


_DETAILS = {
    "parent_model": "",
    "format": "safetensors",
    "family": "llama",
    "families": ["llama"],
    "parameter_size": "134.52M",
    "quantization_level": "BF16",
    "context_length": 8192,
    "embedding_length": 576,
}
_NAMES = {"name": MODEL, "model": MODEL}
_DIGEST = "0504a3a26a1e2b471f82b98a750fdea196160aae58b1e1b8376877be098b61e4"
_STORED = {
    **_NAMES,
    "modified_at": "2026-11-21T09:11:09.963207+00:00",
    "size": 269060552,
    "digest": _DIGEST,
    "details": _DETAILS,
    "capabilities": ["completion"],
}
_LOADED = {
    **_NAMES,
    "size": 2147483648,
    "digest": _DIGEST,
    "details": _DETAILS,
    "expires_at": "2026-11-21T09:16:10.613259+00:00",
    "size_vram": 2147483648,
    "context_length": 8192,
}
_LOADING = {**_LOADED, "load": {"phase": "weights", "percent": 50, "line": "Loading weights"}}
_SHOWN = {
    "license": "Apache-2.0",
    "modelfile": f"# Modelfile …\nFROM {MODEL}\nPARAMETER temperature 0.2\n",
    "parameters": "temperature                    0.2",
    "template": "{% for message in messages %}…{% endfor %}",
    "details": _DETAILS,
    "model_info": {"general.architecture": "llama", "llama.context_length": 8192, "tokenizer.ggml.tokens": None},
    "tensors": [{"name": "model.embed_tokens.weight", "type": "BF16", "shape": [49152, 576]}],
    "capabilities": ["completion"],
    "modified_at": "2026-11-21T09:11:09.963207+00:00",
}

OPERATIONS = (
    Operation(
        "GET",
        "/api/tags",
        TAG,
        "List stored models",
        replies={200: Reply("The models.", (Content(TagsReply, {"One model": {"models": [_STORED]}}),))},
        has_head=True,
    ),
    Operation(
        "GET",
        "/api/ps",
        TAG,
        "List loaded models",
        parameters=(
            Parameter(
                "all",
                "query",
                "`true` adds sleeping models, and the state of every model.",
                "true",
                {"type": "string", "enum": ["true"]},
            ),
        ),
        replies={
            200: Reply(
                "The models.",
                (
                    Content(
                        PsReply,
                        {
                            "Loaded": {"models": [_LOADED]},
                            "Loading": {"models": [_LOADING]},
                            "With ?all=true": {"models": [{**_LOADED, "state": "asleep"}]},
                            "None": {"models": []},
                        },
                    ),
                ),
            )
        },
    ),
    Operation(
        "POST",
        "/api/show",
        TAG,
        "Show a model",
        request=Content(
            ShowRequest,
            {"Short": {"model": MODEL}, "With the vocabulary": {"model": MODEL, "verbose": True}},
        ),
        replies={200: Reply("The model.", (Content(ShowReply, {"Short": _SHOWN}),))},
        errors={400: "model is required", **errors.NOT_FOUND, **errors.SMALL_BODY},
    ),
)
