"""What a repository on the Hub holds, and which of its files a model needs. Nothing here talks to anybody."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from vllama.errors import SourceUnavailable
from vllama.store.snapshot import INDEX, PICKLES, counts

_SHARD = re.compile(r"-\d{5}-of-\d{5}(?=\.gguf$)", re.IGNORECASE)
_LABEL = re.compile(r"(?:^|[-.])(i?q\d(?:_[a-z0-9]+)*|f16|f32|bf16|mxfp4)(?:[-.]|$)", re.IGNORECASE)
_SUBFOLDERS = re.compile(r"\d+_[A-Za-z]+|additional_chat_templates")
"""Those of sentence transformers (`1_Pooling`, `2_Dense`) and of transformers; others repeat the weights for others."""

DEFAULT_LABEL = "Q4_K_M"
"""The GGUF file that a name without a tag means, as with Ollama."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of a repository. `sha256` is known of large files (LFS), `git_sha1` of the others; bytes in `size`."""

    path: str
    size: int
    sha256: str = ""
    git_sha1: str = ""

    @property
    def key(self) -> str:
        """What names its content on disk while it is fetched."""
        return self.sha256 or self.git_sha1 or hashlib.sha256(f"{self.path}\0{self.size}".encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Listing:
    """A repository at one commit (40 hex). `license` is what its card states, "" where nothing."""

    repository: str
    commit: str
    files: tuple[RemoteFile, ...]
    license: str = ""

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Listing:
        """Read what `dataclasses.asdict` made of a listing."""
        files = tuple(RemoteFile(**file) for file in record["files"])
        return cls(record["repository"], record["commit"], files, record["license"])


def label_of(tag: str) -> str:
    """Return the quantisation that a tag names ("Q4_K_M"), as on Ollama's hf.co names; "" where it names none."""
    match = _LABEL.fullmatch(tag)
    return match[1].upper() if match else ""


def snapshot_files(listing: Listing, *, code: bool = False) -> list[RemoteFile]:
    """Return the files that make a snapshot: weights as safetensors, settings, tokenizer, templates, licence.

    Never pickle; code only with `code`. Raises SourceUnavailable where there is no such model, saying what there is.
    """
    files = [file for file in listing.files if _is_wanted(file.path, code=code)]
    top = {file.path for file in files if "/" not in file.path}
    if not any(path.endswith(".safetensors") for path in top):
        raise SourceUnavailable(_why_no_weights(listing))
    if "config.json" not in top:
        raise SourceUnavailable(
            f"'{listing.repository}' has no config.json, so it is no Hugging Face snapshot that vLLM can load"
        )
    twice = _repeated_weights(top)
    return [file for file in files if file.path not in twice]


def gguf_file(listing: Listing, label: str) -> RemoteFile:
    """Return the GGUF file of this quantisation, or the one that a name without a tag means where `label` is "".

    Raises SourceUnavailable, which names the quantisations that there are.
    """
    repository = listing.repository
    files = {file.path: file for file in listing.files if is_gguf(file.path)}
    labels = {path: _label_in(path) for path in files}
    found = [path for path, known in labels.items() if known == (label or DEFAULT_LABEL)]
    if not found and not label and len(files) == 1:
        found = list(files)
    known = ", ".join(sorted(set(filter(None, labels.values())))) or "none that is named"
    if not found:
        asked = f"no GGUF file of {label}" if label else f"several GGUF files, none of {DEFAULT_LABEL}"
        raise SourceUnavailable(f"'{repository}' has {asked}; take one of its quantisations as the tag: {known}")
    if any(_SHARD.search(path) for path in found):
        raise SourceUnavailable(
            f"the {label or DEFAULT_LABEL} of '{repository}' is split into {len(found)} files, which is not supported; "
            f"take a smaller one ({known}), or merge the parts with `llama-gguf-split --merge` and create from the file"
        )
    if len(found) > 1:
        raise SourceUnavailable(f"'{repository}' has {len(found)} GGUF files of {label}: {', '.join(sorted(found))}")
    return files[found[0]]


def is_gguf(path: str) -> bool:
    """Whether it is the GGUF file of a language model; a projector is none."""
    name = PurePosixPath(path).name.lower()
    return name.endswith(".gguf") and not name.startswith("mmproj")


def has_snapshot(listing: Listing) -> bool:
    """Whether the repository has weights as safetensors."""
    return any(file.path.endswith(".safetensors") and "/" not in file.path for file in listing.files)


def has_gguf(listing: Listing) -> bool:
    """Whether the repository has weights as GGUF."""
    return any(is_gguf(file.path) for file in listing.files)


def _is_wanted(path: str, *, code: bool) -> bool:
    """Whether a worker may read it. Listings come from elsewhere: a path that leads out of a directory is left out."""
    parts = path.split("/")
    if "\\" in path or "\0" in path or any(part.startswith(".") or not part for part in parts):
        return False
    is_in_place = len(parts) == 1 or (len(parts) == 2 and _SUBFOLDERS.fullmatch(parts[0]) is not None)
    return is_in_place and counts(path, code=code)


def _repeated_weights(top: Iterable[str]) -> set[str]:
    """Return the weights in Mistral's own layout where the same are there in that of Hugging Face."""
    weights = {path for path in top if path.endswith(".safetensors")}
    own = {path for path in weights if path.startswith("consolidated")}
    if weights == own:
        return set()
    return own | {"consolidated.safetensors.index.json"}


def _label_in(path: str) -> str:
    """Return the quantisation in the name of a GGUF file, or else in that of its folder; "" where neither tells."""
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
            f"'{repository}' has its weights as pickle only ({', '.join(pickles[:3])}{more}), which can run any code "
            "when it is read; take a repository with safetensors, or convert it and pull the directory with --from"
        )
    if any(file.path == INDEX for file in listing.files):
        return f"'{repository}' has an index of weights ({INDEX}), but not the weights"
    return f"'{repository}' has no weights (*.safetensors, *.gguf)"
