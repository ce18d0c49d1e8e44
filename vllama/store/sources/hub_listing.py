"""Listings of Hub repositories, and the choice of files that a model needs. No network access here."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from vllama.errors import SourceUnavailable
from vllama.store.snapshot import INDEX, PICKLES, counts

SHA256, SHA1 = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")
"""Checksums as the Hub writes them."""

_SHARD = re.compile(r"-\d{5}-of-\d{5}(?=\.gguf$)", re.IGNORECASE)
_LABEL = re.compile(r"(?:^|[-.])(i?q\d(?:_[a-z0-9]+)*|f16|f32|bf16|mxfp4)(?:[-.]|$)", re.IGNORECASE)
_SUBFOLDERS = re.compile(r"\d+_[A-Za-z]+|additional_chat_templates")
"""Subfolders of sentence transformers (`1_Pooling`) and transformers; others repeat the weights in other formats."""

_PROJECTOR = "mmproj"
"""Part of the name of files with a vision tower, as llama.cpp's converters write it."""

_PROJECTOR_LABELS = ("F16", "BF16", "F32")
"""Types of towers, the preferred first: towers are trained and computed in 16 bits."""

DEFAULT_LABEL = "Q4_K_M"
"""The default GGUF quantization for names without a tag, as in Ollama."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of a repository. `size` is in bytes, None where the mirror does not state it.

    `sha256` is known of large files (LFS), `git_sha1` of the others.
    """

    path: str
    size: int | None
    sha256: str = ""
    git_sha1: str = ""

    @property
    def is_plausible(self) -> bool:
        """Whether the values have the types and forms that they should have."""
        values = (self.path, self.sha256, self.git_sha1)
        return (
            all(isinstance(value, str) for value in values)
            and (self.size is None or (type(self.size) is int and self.size >= 0))
            and (not self.sha256 or SHA256.fullmatch(self.sha256) is not None)
            and (not self.git_sha1 or SHA1.fullmatch(self.git_sha1) is not None)
        )

    @property
    def has_checksum(self) -> bool:
        """Whether the content can be told from another."""
        return bool(self.sha256 or self.git_sha1)

    @property
    def key(self) -> str:
        """The name of its content on disk during the download."""
        return self.sha256 or self.git_sha1 or hashlib.sha256(f"{self.path}\0{self.size}".encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Listing:
    """A repository at one commit (40 hex).

    `license` and `base`, the repository of which it is a quantization, are from its card, or "".
    """

    repository: str
    commit: str
    files: tuple[RemoteFile, ...]
    license: str = ""
    base: str = ""

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Listing:
        """Return the listing from its `dataclasses.asdict` form, whose files are as the Hub or a mirror lists them.

        Raises SourceUnavailable where a value is not what it should be: checksums become names of files here.
        """
        files = tuple(RemoteFile(**file) for file in record["files"])
        if strange := next((file for file in files if not file.is_plausible), None):
            raise SourceUnavailable(
                f"the listing of '{record['repository']}' is damaged: {strange!r:.300} is not a file with a size and a "
                "checksum; check HF_ENDPOINT"
            )
        return cls(record["repository"], record["commit"], files, record["license"], record["base"])


def label_of(tag: str) -> str:
    """Return the quantization that a tag names ("Q4_K_M"), as in Ollama's hf.co names; "" if it names none."""
    match = _LABEL.fullmatch(tag)
    return match[1].upper() if match else ""


def snapshot_files(listing: Listing, *, code: bool = False) -> list[RemoteFile]:
    """Return the files of a snapshot: safetensors weights, settings, tokenizer, templates, licence.

    Pickle files never count, code only with `code`. Raises SourceUnavailable, naming what exists, if this is no model.
    """
    files = [file for file in listing.files if _is_wanted(file.path, code=code)]
    top = {file.path for file in files if "/" not in file.path}
    if not any(path.endswith(".safetensors") for path in top):
        raise SourceUnavailable(_why_no_weights(listing))
    if "config.json" not in top:
        raise SourceUnavailable(
            f"'{listing.repository}' is not a Hugging Face snapshot that vLLM can load: config.json is missing"
        )
    twice = _repeated_weights(top)
    return [file for file in files if file.path not in twice]


def gguf_file(listing: Listing, label: str) -> RemoteFile:
    """Return the GGUF file with this quantization, or the default one if `label` is "".

    Raises SourceUnavailable, which names the existing quantizations.
    """
    repository = listing.repository
    files = {file.path: file for file in listing.files if is_gguf(file.path)}
    labels = {path: _label_in(path) for path in files}
    found = [path for path, known in labels.items() if known == (label or DEFAULT_LABEL)]
    if not found and not label and len(files) == 1:
        found = list(files)
    known = ", ".join(sorted(set(filter(None, labels.values())))) or "none found"
    if not found:
        asked = f"no GGUF file with {label}" if label else f"several GGUF files, none with {DEFAULT_LABEL}"
        raise SourceUnavailable(f"'{repository}' has {asked}; use one of its quantizations as the tag: {known}")
    if any(_SHARD.search(path) for path in found):
        raise SourceUnavailable(
            f"the {label or DEFAULT_LABEL} of '{repository}' is split into {len(found)} files, which is not supported; "
            f"use a smaller one ({known}), or merge the parts with `llama-gguf-split --merge` and create a "
            "model from the file"
        )
    if len(found) > 1:
        raise SourceUnavailable(f"'{repository}' has {len(found)} GGUF files with {label}: {', '.join(sorted(found))}")
    return files[found[0]]


def is_gguf(path: str) -> bool:
    """Return whether the path is a GGUF file of a language model, not a projector."""
    name = _name(path)
    return name.endswith(".gguf") and _PROJECTOR not in name


def projector_file(listing: Listing) -> RemoteFile | None:
    """Return the GGUF file with the model's vision tower, the least rounded of several; None if there is none."""
    files = [file for file in listing.files if file.path.endswith(".gguf") and _PROJECTOR in _name(file.path)]
    labels = {file.path: _label_in(file.path) for file in files}
    ranks = {label: rank for rank, label in enumerate(_PROJECTOR_LABELS)}
    return min(files, key=lambda file: (ranks.get(labels[file.path], len(ranks)), file.path), default=None)


def _name(path: str) -> str:
    return PurePosixPath(path).name.lower()


def has_snapshot(listing: Listing) -> bool:
    """Return whether the repository has safetensors weights."""
    return any(file.path.endswith(".safetensors") and "/" not in file.path for file in listing.files)


def has_gguf(listing: Listing) -> bool:
    """Return whether the repository has GGUF weights."""
    return any(is_gguf(file.path) for file in listing.files)


def _is_wanted(path: str, *, code: bool) -> bool:
    """Return whether a worker may read the file; untrusted paths that lead out of the directory are excluded."""
    parts = path.split("/")
    if "\\" in path or "\0" in path or any(part.startswith(".") or not part for part in parts):
        return False
    is_in_place = len(parts) == 1 or (len(parts) == 2 and _SUBFOLDERS.fullmatch(parts[0]) is not None)
    return is_in_place and counts(path, code=code)


def _repeated_weights(top: Iterable[str]) -> set[str]:
    """Return the weights in Mistral's own layout that are also there in Hugging Face's."""
    weights = {path for path in top if path.endswith(".safetensors")}
    own = {path for path in weights if path.startswith("consolidated")}
    if weights == own:
        return set()
    return own | {"consolidated.safetensors.index.json"}


def _label_in(path: str) -> str:
    """Return the quantization in the name of a GGUF file or of its folder; "" if there is none."""
    for part in reversed(PurePosixPath(path).parts):
        if found := _LABEL.findall(_SHARD.sub("", part)):
            return str(found[-1]).upper()
    return ""


def _why_no_weights(listing: Listing) -> str:
    repository = listing.repository
    pickles = sorted(file.path for file in listing.files if PurePosixPath(file.path).suffix in PICKLES)
    if pickles:
        more = f" and {len(pickles) - 3} more" if len(pickles) > 3 else ""
        return (
            f"'{repository}' has weights in pickle format only ({', '.join(pickles[:3])}{more}), which can execute any "
            "code when it is read; use a repository with safetensors, or convert the weights and pull the directory "
            "with --from"
        )
    if any(file.path == INDEX for file in listing.files):
        return f"'{repository}' has a weights index ({INDEX}), but not the weights"
    return f"'{repository}' has no weights (*.safetensors, *.gguf)"
