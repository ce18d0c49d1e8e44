"""Changes to the model store: `/api/pull`, `/api/push`, `/api/create`, `/api/blobs`, `/api/copy`, `/api/delete`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from vllama.errors import InvalidName, NamedModelNotFound
from vllama.gateway.openapi import errors
from vllama.gateway.openapi.errors import MODEL
from vllama.gateway.openapi.operation import BYTES, Content, Operation, Parameter, Reply, stream
from vllama.gateway.openapi.records import JsonObject, Record
from vllama.ollama.creation import REFUSED

TAG = "Model store"

Precision = Literal["", "exact", "bf16"]


class _Named(Record):
    model: str | None = ""
    """The model's name."""
    name: str | None = ""
    """The model's name, for older clients; `model` has priority."""


class PushRequest(_Named):
    """A request of `/api/push`, which is always refused."""

    stream: bool | None = True
    """Whether to send each step as a record of its own (NDJSON), or the last one alone."""
    insecure: bool | None = False
    """Accepted without effect."""


class PullRequest(PushRequest):
    """A request of `/api/pull`, with `model` or `name`."""

    precision: Precision | None = ""
    """vllama's own: whether weights of a GGUF file keep their quantization, or are decoded; the server's if missing."""


class CreateMessage(Record):
    """A message that precedes each chat with the created model."""

    role: str | None = ""
    """`system`, `user` or `assistant`."""
    content: str | None = ""
    """Text of the message."""


class CreateRequest(_Named):
    """A request of `/api/create`, with `model` or `name`, and with `from` or `files`. Missing fields are inherited."""

    stream: bool | None = True
    """Whether to send each step as a record of its own (NDJSON), or the last one alone."""
    base: Annotated[str | None, Field(alias="from")] = ""
    """Name of the model that the new one is based on. It is pulled if it is not stored. Excludes `files`."""
    files: dict[str, str] | None = None
    """Digests of uploaded files by their paths in the model: one GGUF, or safetensors with `config.json` and a
    tokenizer."""
    adapters: dict[str, str] | None = None
    """Digests of a LoRA adapter's uploaded files by their paths."""
    template: str | None = ""
    """Prompt template, in Jinja or in Go's language."""
    system: str | None = ""
    """System message of the model."""
    license: str | list[str] | None = ""
    """Text of the licence; several texts are joined."""
    parameters: JsonObject | None = None
    """Parameters by name, as in `options`. They are merged with those of `from`; null removes one."""
    messages: list[CreateMessage] | None = None
    """Messages that precede each chat."""
    quantize: str | None = ""
    """Quantization that the weights must have already; anything else is refused."""
    quantization: str | None = ""
    """The same, for older clients; `quantize` has priority."""
    precision: Precision | None = ""
    """vllama's own: whether weights of a GGUF file keep their quantization, or are decoded; the server's if missing."""
    requires: str | None = ""
    """Minimum version of Ollama that the model needs; one above the version of `/api/version` is refused."""
    draft_files: Annotated[dict[str, str] | None, Field(description=f"Refused: {REFUSED['draft_files']}.")] = None
    draft_quantize: Annotated[str | None, Field(description="Refused, as `draft_files`.")] = ""
    renderer: Annotated[str | None, Field(description=f"Refused: {REFUSED['renderer']}.")] = ""
    parser: Annotated[str | None, Field(description=f"Refused: {REFUSED['parser']}.")] = ""
    remote_host: Annotated[str | None, Field(description=f"Refused: {REFUSED['remote_host']}.")] = ""
    info: Annotated[JsonObject | None, Field(description=f"Refused: {REFUSED['info']}.")] = None


class CopyRequest(Record):
    """A request of `/api/copy`."""

    source: str
    """Name of a stored model."""
    destination: str
    """New name. A model that has it already is replaced."""


class DeleteRequest(_Named):
    """A request of `/api/delete`, with `model` or `name`."""


class ProgressRecord(Record):
    """A step of `/api/pull` or `/api/create`."""

    status: str
    """Name of the step; `success` is the last one."""
    digest: str | None = None
    """Digest of the file that is transferred, in steps about a file."""
    total: int | None = None
    """Size of the file in bytes, if known."""
    completed: int | None = None
    """Transferred bytes of the file; missing if zero."""


_DIGEST = "sha256:e997afd18e5f6be004fc193aed2c90291e68ab2c7599a62538c935b7fca6ab0f"
_BLOB = Parameter("digest", "path", "`sha256:` and the 64 hexadecimal digits of the file's checksum.", _DIGEST)
_SUCCESS = {"status": "success"}
_TRANSFER = {"status": "pulling e997afd18e5f", "digest": _DIGEST, "total": 269060552, "completed": 134217728}

_PROGRESS = Reply(
    "Progress: a stream of steps, or the last step if `stream` is false. A failure after the first step is the "
    "stream's last line.",
    (
        stream(ProgressRecord, {"Stream": [{"status": "pulling manifest"}, _TRANSFER, _SUCCESS]}),
        Content(ProgressRecord, {"Last step": _SUCCESS}),
    ),
)

OPERATIONS = (
    Operation(
        "POST",
        "/api/pull",
        TAG,
        "Pull a model",
        "Downloads a model of the catalogue, or a repository of the Hugging Face Hub (`org/repo`, `hf.co/org/repo`). "
        "Files that are stored already are not transferred again.",
        request=Content(
            PullRequest,
            {"Stream": {"model": MODEL}, "Wait": {"model": "HuggingFaceTB/SmolLM2-135M-Instruct", "stream": False}},
        ),
        replies={200: _PROGRESS},
        errors={
            400: str(InvalidName()),
            **errors.SMALL_BODY,
            500: "pull model manifest: file does not exist: no known source for 'nope:latest'",
        },
    ),
    Operation(
        "POST",
        "/api/push",
        TAG,
        "Push a model (always refused)",
        request=Content(PushRequest, {"Push": {"model": MODEL}}),
        errors={400: ("push is not supported by this server", "model is required"), **errors.SMALL_BODY},
    ),
    Operation(
        "POST",
        "/api/create",
        TAG,
        "Create a model",
        "Upload files with `/api/blobs` first. Files are shared with the base and never copied.",
        request=Content(
            CreateRequest,
            {
                "From a model": {
                    "model": "mario",
                    "from": MODEL,
                    "system": "You are Mario.",
                    "parameters": {"temperature": 0.2, "stop": ["\n"]},
                    "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "It's me!"}],
                },
                "From a GGUF": {"model": "mine", "files": {"model.gguf": _DIGEST}, "stream": False},
            },
        ),
        replies={200: _PROGRESS},
        errors={
            400: ("neither 'from' or 'files' was specified", *REFUSED.values()),
            **errors.NOT_FOUND,
            **errors.BODY,
            **errors.STORE,
        },
    ),
    Operation(
        "HEAD",
        "/api/blobs/{digest}",
        TAG,
        "Check whether a file is known",
        parameters=(_BLOB,),
        replies={200: Reply("The file need not be uploaded."), 404: Reply("The file is unknown.")},
        errors={400: "invalid digest format"},
    ),
    Operation(
        "POST",
        "/api/blobs/{digest}",
        TAG,
        "Upload a file",
        "The body is the file itself. A file that no model uses within an hour is removed.",
        parameters=(_BLOB,),
        request=Content(media_type=BYTES),
        replies={200: Reply("The file was known already."), 201: Reply("The file is stored.")},
        errors={
            400: (
                "invalid digest format",
                f'digest mismatch, expected "{_DIGEST}", got "sha256:{"0" * 64}"',
            ),
            **errors.STORE,
        },
    ),
    Operation(
        "POST",
        "/api/copy",
        TAG,
        "Copy a model",
        "Adds a name for the same files.",
        request=Content(CopyRequest, {"Copy": {"source": MODEL, "destination": "mine"}}),
        replies={200: Reply("The new name is stored.")},
        errors={
            400: 'destination "!!" is invalid',
            404: str(NamedModelNotFound(MODEL)),
            **errors.SMALL_BODY,
            **errors.STORE,
        },
    ),
    Operation(
        "DELETE",
        "/api/delete",
        TAG,
        "Delete a model",
        "Removes files that no other model needs. A loaded model stays until it is unloaded.",
        request=Content(DeleteRequest, {"Delete": {"model": MODEL}}),
        replies={200: Reply("The model is deleted.")},
        errors={400: 'name "!!" is invalid', **errors.NOT_FOUND, **errors.SMALL_BODY, **errors.STORE},
    ),
)
