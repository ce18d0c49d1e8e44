"""Manifests: the files of a model with their checksums, their source, and how to serve them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import orjson

from vllama.errors import InvalidName, ManifestCorrupt
from vllama.names import ModelName

FORMAT_VERSION = 2
"""Format version of the JSON; increased when older readers would misunderstand it."""

_PLAIN_VERSION = 1
"""Format version of a manifest without an adapter, which older readers understand."""

HIGHEST_RANK = 512
"""Maximum rank of a LoRA adapter that vLLM supports (`vllm/config/lora.py: MaxLoRARanks`)."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """A file of a snapshot: path relative to the snapshot, size in bytes and sha256 (64 hex)."""

    path: str
    size: int
    sha256: str


_EARLIEST_YEAR, _LATEST_YEAR = 1900, 9000


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """A message that precedes every conversation (a Modelfile's MESSAGE)."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Source:
    """The source of the files.

    `kind` is "package-index" (locator: the distribution, revision: its version), "hub" (locator: `org/repo`, or
    `org/repo/file` of a GGUF, revision: the commit), "local" (locator: the directory), "gguf" (locator:
    "sha256:<64 hex>" of the converted file, with "+" and the same of its projector if it had one) or "upload"; parts
    that are not mentioned are empty.
    """

    kind: str
    locator: str
    revision: str


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter for a model's weights: a directory in PEFT's layout, its files, and their maximum rank."""

    snapshot: Path
    files: tuple[ManifestFile, ...]
    rank: int

    @cached_property
    def digest(self) -> str:
        """The identity of the adapter's files, 64 hex."""
        return content_digest(self.files)

    @property
    def size(self) -> int:
        """The size of the adapter's files in bytes."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True)
class Manifest:
    """The description of a model that is served under a name.

    `snapshot` is the directory of the files, in Hugging Face's layout. `parameters` are Ollama
    PARAMETER values of the model; `system`, `template` (Jinja or Go), `license` and `messages`
    are empty if the snapshot's own files apply. `modified_at` has a time zone. `asked` is the pulled name, "" if none;
    copies and derived models keep it. `parent` is the name of the model that this one was created from, "" if it was
    created from files. `adapter` is None if there is none; its files are not among `files`.

    `embeds` is never stored: it asks for a second worker, which makes vectors of a model that generates text.
    """

    name: ModelName
    snapshot: Path
    files: tuple[ManifestFile, ...]
    source: Source
    parameters: Mapping[str, Any]
    system: str
    template: str
    license: str
    messages: tuple[ChatMessage, ...]
    engine_flags: tuple[str, ...]
    modified_at: datetime
    asked: str = ""
    parent: str = ""
    adapter: Adapter | None = None
    embeds: bool = False

    @property
    def basename(self) -> str:
        """The original name of the files, regardless of the model's name (`general.basename`, contract §4.1)."""
        origin = self.asked or self.parent
        return ModelName.parse(origin).model if origin else self.name.model

    @cached_property
    def digest(self) -> str:
        """The identity of the content, 64 hex, independent of name, path and age."""
        return sha256_of_json(
            {
                "files": _canonical(self.files),
                "parameters": dict(self.parameters),
                "system": self.system,
                "template": self.template,
                "license": self.license,
                "messages": [[message.role, message.content] for message in self.messages],
                "engine_flags": list(self.engine_flags),
                **({"adapter": _canonical(self.adapter.files)} if self.adapter else {}),
            }
        )

    @cached_property
    def weights_digest(self) -> str:
        """The identity of the files without the adapter's, 64 hex: equal for a model and those derived from it."""
        return content_digest(self.files)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files) + (self.adapter.size if self.adapter else 0)

    @property
    def adapter_rank(self) -> int:
        """The adapter rank that a worker must support; 0 without an adapter."""
        return self.adapter.rank if self.adapter else 0

    @property
    def snapshots(self) -> dict[Path, tuple[ManifestFile, ...]]:
        """All directories of the model, with their files."""
        return {self.snapshot: self.files, **({self.adapter.snapshot: self.adapter.files} if self.adapter else {})}

    def moved(self, place_of: Callable[[Path], Path]) -> Manifest:
        """Return a copy of the manifest with other directories."""
        adapter = self.adapter and replace(self.adapter, snapshot=place_of(self.adapter.snapshot))
        return replace(self, snapshot=place_of(self.snapshot), adapter=adapter)

    def damaged_files(self) -> list[str]:
        """Return the paths of files that are missing or have the wrong size, without reading their contents."""
        return [
            file.path
            for directory, files in self.snapshots.items()
            for file in files
            if _size_on_disk(directory / file.path) != file.size
        ]

    def to_json(self) -> bytes:
        """Return the manifest as JSON with sorted keys, which `from_json` reads back unchanged."""
        record = {
            "format_version": FORMAT_VERSION if self.adapter else _PLAIN_VERSION,
            "name": self.name.full,
            "snapshot": str(self.snapshot),
            "files": self.files,
            "source": self.source,
            "parameters": dict(self.parameters),
            "system": self.system,
            "template": self.template,
            "license": self.license,
            "messages": self.messages,
            "engine_flags": self.engine_flags,
            "modified_at": self.modified_at.isoformat(),
            "asked": self.asked,
            "parent": self.parent,
        }
        if self.adapter:
            directory, files, rank = str(self.adapter.snapshot), self.adapter.files, self.adapter.rank
            record["adapter"] = {"snapshot": directory, "files": files, "rank": rank}
        return orjson.dumps(record, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE)

    @classmethod
    def from_json(cls, data: bytes) -> Manifest:
        """Parse the output of `to_json`. Raises ManifestCorrupt with the mistake."""
        try:
            record = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            raise ManifestCorrupt(f"not JSON: {error}") from error
        if not isinstance(record, dict):
            raise ManifestCorrupt("not a JSON object")
        version = record.get("format_version")
        if version not in (_PLAIN_VERSION, FORMAT_VERSION):
            raise ManifestCorrupt(
                f"format version {version!r}; this vllama reads versions {_PLAIN_VERSION} and {FORMAT_VERSION}"
                + (": update vllama" if isinstance(version, int) and version > FORMAT_VERSION else "")
            )
        return cls(
            name=_parse_name(_field(record, "name", str)),
            snapshot=_parse_place(record),
            files=tuple(parse_file(entry) for entry in _objects(record, "files")),
            source=_parse_source(_field(record, "source", dict)),
            parameters=_field(record, "parameters", dict),
            system=_field(record, "system", str),
            template=_field(record, "template", str),
            license=_field(record, "license", str),
            messages=tuple(
                ChatMessage(_field(entry, "role", str), _field(entry, "content", str))
                for entry in _objects(record, "messages")
            ),
            engine_flags=_parse_flags(_field(record, "engine_flags", list)),
            modified_at=_parse_time(_field(record, "modified_at", str)),
            asked=_parse_origin(record, "asked"),
            parent=_parse_origin(record, "parent"),
            adapter=_parse_adapter(_field(record, "adapter", dict)) if "adapter" in record else None,
        )


def content_digest(files: Iterable[ManifestFile]) -> str:
    """Return the identity of a set of files, 64 hex: their paths, sizes and checksums in any order."""
    return sha256_of_json(_canonical(files))


def _canonical(files: Iterable[ManifestFile]) -> list[list[str | int]]:
    return sorted([file.path, file.size, file.sha256] for file in files)


def sha256_of_json(value: object) -> str:
    """Return the checksum, 64 hex, of a JSON value, regardless of the order of keys."""
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _size_on_disk(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _field(record: Mapping[str, Any], key: str, kind: type[_T]) -> _T:
    value = record.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ManifestCorrupt(f"{key!r} is {value!r}, which is not {_KINDS[kind]}")
    return value


_KINDS: Mapping[type, str] = {str: "a string", int: "an integer", list: "a list", dict: "an object"}


def _objects(record: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    entries = _field(record, key, list)
    for entry in entries:
        if not isinstance(entry, dict):
            raise ManifestCorrupt(f"{key!r} holds {entry!r}, which is not an object")
    return entries


def _parse_name(text: str, key: str = "name") -> ModelName:
    try:
        return ModelName.parse(text)
    except InvalidName as error:
        raise ManifestCorrupt(f"{key!r} is {text!r}, which is not a model name") from error


def parse_file(entry: dict[str, Any]) -> ManifestFile:
    """Parse a file entry of an untrusted manifest. Raises ManifestCorrupt if its path leads out of the directory."""
    path = _field(entry, "path", str)
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\0" in path:
        raise ManifestCorrupt(f"the file path {path!r} is outside the snapshot")
    size, sha256 = _field(entry, "size", int), _field(entry, "sha256", str)
    if size < 0 or not _SHA256.fullmatch(sha256):
        raise ManifestCorrupt(f"the file {path!r} has no valid size and sha256")
    return ManifestFile(path, size, sha256)


def _parse_place(record: Mapping[str, Any]) -> Path:
    text = _field(record, "snapshot", str)
    if "\0" in text:
        raise ManifestCorrupt(f"'snapshot' is {text!r}, which is not a path")
    return Path(text)


def _parse_origin(record: Mapping[str, Any], key: str) -> str:
    """Return a model name, or "", which older manifests have."""
    text = _field({key: "", **record}, key, str)
    if text:
        _parse_name(text, key)
    return text


def _parse_source(entry: dict[str, Any]) -> Source:
    return Source(*(_field(entry, key, str) for key in ("kind", "locator", "revision")))


def _parse_adapter(entry: dict[str, Any]) -> Adapter:
    rank = _field(entry, "rank", int)
    if not 0 < rank <= HIGHEST_RANK:
        raise ManifestCorrupt(f"'rank' is {rank}, which is not one of 1 to {HIGHEST_RANK}")
    files = tuple(parse_file(file) for file in _objects(entry, "files"))
    return Adapter(_parse_place(entry), files, rank)


def _parse_flags(entries: list[Any]) -> tuple[str, ...]:
    if not all(isinstance(entry, str) for entry in entries):
        raise ManifestCorrupt(f"'engine_flags' is {entries!r}, which is not a list of strings")
    return tuple(entries)


def _parse_time(text: str) -> datetime:
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise ManifestCorrupt(f"'modified_at' is {text!r}, which is not a time") from error
    if not _EARLIEST_YEAR <= time.year <= _LATEST_YEAR:
        raise ManifestCorrupt(f"'modified_at' is {text!r}, which no time zone can express")
    if time.tzinfo is None:
        raise ManifestCorrupt(f"'modified_at' is {text!r}, which has no time zone")
    return time
