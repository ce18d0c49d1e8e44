"""The request of `/api/create`, decoded and checked field by field (contract §1.9)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vllama import OLLAMA_VERSION
from vllama.durations import quote
from vllama.errors import RequestError
from vllama.names import ModelName
from vllama.ollama.gojson import Fields, decode, known_fields
from vllama.ollama.options import TYPES
from vllama.settings import PRECISIONS

_CREATE = known_fields(
    "model", "name", "stream", "from", "files", "adapters", "draft_files", "draft_quantize", "template", "system",
    "license", "parameters", "messages", "quantize", "quantization", "renderer", "parser", "requires", "remote_host",
    "info", "precision",
)  # fmt: skip
_MESSAGE = known_fields("role", "content", "thinking", "images", "tool_calls", "tool_name", "tool_call_id")

_SEMVER = re.compile(r"v?(\d{1,9})(?:\.(\d{1,9}))?(?:\.(\d{1,9}))?(?:[-+][0-9A-Za-z.+-]+)?")

REFUSED = {
    "draft_files": "DRAFT is not supported: speculative decoding is set up with vLLM's flags",
    "remote_host": "remote_host is not supported: this server never calls another one",
    "info": "info is not supported: what a model is, its files say",
    "renderer": "RENDERER is not supported: prompts are rendered with the model's chat template or with TEMPLATE",
    "parser": "PARSER is not supported: vLLM's parsers are chosen by the model's template, or with "
    "--tool-call-parser and --reasoning-parser",
}
"""Unsupported fields and their error messages."""


@dataclass(frozen=True, slots=True)
class Changes:
    """Differences between a new model and its base; empty fields are inherited.

    `parameters` are merged key by key, None removes a key of the base; all others replace. `template` is Go or
    Jinja; `messages` are (role, content) pairs; `quantize` is the required quantization of the weights ("q8_0").
    """

    parameters: Mapping[str, Any] = field(default_factory=dict)
    system: str = ""
    template: str = ""
    license: str = ""
    messages: tuple[tuple[str, str], ...] = ()
    quantize: str = ""


@dataclass(frozen=True, slots=True)
class CreateRequest:
    """A request of `/api/create`. `files` and `adapters` map paths inside the model or the LoRA adapter to digests.

    If `base`, a model name, is "" and `files` is None, neither was given. `precision` is one of PRECISIONS, for the
    weights of GGUF files, or "" for the server's.
    """

    name: ModelName
    stream: bool
    base: str
    files: Mapping[str, str] | None
    adapters: Mapping[str, str] | None
    changes: Changes
    precision: str = ""

    @classmethod
    def parse(cls, body: bytes) -> CreateRequest:
        """Decode and check a body. Raises RequestError."""
        fields = Fields(decode(body), "CreateRequest", _CREATE)
        files, adapters = _files(fields, "files"), _files(fields, "adapters")
        if fields.string("draft_quantize") and not fields.raw("draft_files"):
            raise RequestError("--draft-quantize requires a DRAFT model")
        name = ModelName.parse(fields.string("model") or fields.string("name"))
        if fields.string("from") and files:
            raise RequestError("only one of 'from' and 'files' can be given")
        for refused, why in REFUSED.items():
            if fields.raw(refused):
                raise RequestError(why)
        check_requires(fields.string("requires"))
        return cls(
            name=name,
            stream=fields.boolean("stream") is not False,
            base=fields.string("from"),
            files=files,
            adapters=adapters,
            changes=Changes(
                parameters=_parameters(fields),
                system=fields.string("system"),
                template=fields.string("template"),
                license=_license(fields),
                messages=fields.items("messages", "[]api.Message", _message),
                quantize=fields.string("quantize") or fields.string("quantization"),
            ),
            precision=precision(fields),
        )


def precision(fields: Fields) -> str:
    """Return the field `precision`, "" if absent: vllama's own, for the weights of GGUF files. Raises RequestError."""
    stated = fields.string("precision")
    if stated and stated not in PRECISIONS:
        raise RequestError(f"precision must be one of {', '.join(PRECISIONS)}")
    return stated


def _files(fields: Fields, name: str) -> Mapping[str, str] | None:
    value = fields.raw(name)
    if value is None:
        return None
    if not isinstance(value, dict):
        raise fields.mismatch(name, value, "map[string]string")
    for path, digest in value.items():
        if not isinstance(digest, str):
            raise fields.mismatch(name, digest, "string")
        if not is_inner_path(path):
            raise RequestError("file path must be relative")
    return value


def is_inner_path(path: str) -> bool:
    """Return whether the path stays inside its folder: relative, with `/`, without `.`, `..` and empty parts."""
    parts = path.split("/")
    return all(parts) and not {".", ".."} & set(parts) and not {"\0", "\\"} & set(path)


def check_requires(version: str) -> None:
    """Raise RequestError if a model requires a newer Ollama than OLLAMA_VERSION."""
    if not version:
        return
    asked = _SEMVER.fullmatch(version)
    if not asked:
        raise RequestError("requires must be a valid semver (e.g. 0.14.0)")
    if [int(part or 0) for part in asked.groups()] > [int(part) for part in OLLAMA_VERSION.split(".")]:
        raise RequestError(
            f"the model requires Ollama {version}; this server provides the API of Ollama {OLLAMA_VERSION}"
        )


def _parameters(fields: Fields) -> dict[str, Any]:
    """Return the parameters as sent, in canonical spelling; wrong types are reported when the model is used."""
    return {name: _parameter(name, value) for name, value in fields.mapping("parameters").items()}


def _parameter(name: str, value: Any) -> Any:
    if isinstance(value, str) and TYPES.get(name) == "array":
        return [value]  # accepted as in `options`; Ollama refuses it
    if isinstance(value, list):
        return [_scalar(name, item) for item in value]
    return _scalar(name, value)


def _scalar(name: str, value: Any) -> Any:
    if isinstance(value, list | dict):
        raise RequestError(f"parameter {quote(name)} must be a number, a string, a boolean or a list of these")
    return whole(value) if isinstance(value, float) else value


def whole(value: float) -> float | int:
    """Return the number as JSON shortens it: 1, not 1.0."""
    return int(value) if value.is_integer() and abs(value) < 2**53 else value


def _license(fields: Fields) -> str:
    """Return the licence: one text, or several joined."""
    value = fields.raw("license")
    if not isinstance(value, list):
        return fields.string("license")
    for item in value:
        if not isinstance(item, str):
            raise fields.mismatch("license", item, "string")
    return "\n".join(value)


def _message(value: Any) -> tuple[str, str]:
    fields = Fields(value, "CreateRequest", _MESSAGE, prefix="messages.", go="api.Message")
    for name in ("thinking", "images", "tool_calls", "tool_name", "tool_call_id"):
        if fields.raw(name):
            raise RequestError(f"a model's messages can have role and content only; {name} is not supported")
    return fields.string("role").lower(), fields.string("content")
