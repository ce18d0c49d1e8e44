"""Hugging Face snapshot directories: required files, and files that a worker reads."""

from __future__ import annotations

import os
import re
from pathlib import Path

from vllama.errors import ManifestCorrupt, StoreError
from vllama.store.foreign_files import read_json
from vllama.store.remote_code import is_code

_SUFFIXES = {".json", ".safetensors", ".jinja", ".model", ".txt", ".tiktoken"}
_LICENSES = ("license", "notice")
PICKLES = {".bin", ".pt", ".pth", ".ckpt"}
_TOKENIZERS = {
    "tokenizer.json",
    "tokenizer.model",
    "tekken.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
}
INDEX = "model.safetensors.index.json"
_WEIGHTS = re.compile(r"[^/\0]+\.safetensors")
"""Names of weights that an index may list: files of its own directory."""


def find_files(directory: Path, *, code: bool = False) -> list[str]:
    """Return the relative, sorted paths of the files that a worker may read, and with `code` also run.

    Raises StoreError, which names missing files, if the directory cannot be served.
    """
    if not directory.is_dir():
        raise StoreError(f"{directory} is not a directory; name a Hugging Face snapshot directory")
    present = sorted(_walk(directory))
    if not _is_utf8(str(directory), *present):
        raise StoreError(f"{str(directory)!r} has file names that are not UTF-8; rename them")
    top = {path for path in present if "/" not in path}
    if "config.json" not in top:
        raise StoreError(f"{directory} is not a Hugging Face snapshot: config.json is missing")
    if not any(path.endswith(".safetensors") for path in top):
        raise StoreError(_why_no_weights(directory, top))
    if lacking := _shards(directory, top) - top:
        raise StoreError(
            f"{directory} is incomplete: {INDEX} lists {', '.join(sorted(lacking))}, which is missing; "
            "download it again"
        )
    if not top & _TOKENIZERS and not any(path.endswith(".tiktoken") for path in top):
        raise StoreError(f"{directory} has no tokenizer (tokenizer.json, tokenizer.model, vocab.txt, …)")
    return [path for path in present if counts(path, code=code)]


def weight_files(directory: Path) -> list[Path]:
    """Return the model's safetensors files: those of the index, or all at the top level."""
    top = {path.name for path in directory.iterdir()}
    names = _shards(directory, top)
    if not names:
        names = {name for name in top if name.endswith(".safetensors")}
        # Mistral's repositories contain the weights twice.
        names = {name for name in names if not name.startswith("consolidated")} or names
    return [directory / name for name in sorted(names)]


def counts(path: str, *, code: bool = False) -> bool:
    """Return whether a worker may read the file: settings, weights, tokenizer, templates, licence, or `code`."""
    name = Path(path).name.lower()
    if is_code(name):
        return code
    return Path(name).suffix in _SUFFIXES or name.startswith(_LICENSES)


def _walk(directory: Path) -> list[str]:
    found = []
    for folder, subfolders, names in os.walk(directory):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        found += [str((Path(folder) / name).relative_to(directory)) for name in names if name[0] != "."]
    return found


def _is_utf8(*names: str) -> bool:
    try:
        "".join(names).encode()
    except UnicodeEncodeError:
        return False
    return True


def _shards(directory: Path, top: set[str]) -> set[str]:
    """Return the file names in the weights index; none if there is no index. Raises ManifestCorrupt."""
    if INDEX not in top:
        return set()
    try:
        names = set(read_json(directory / INDEX)["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ManifestCorrupt(f"{directory / INDEX} is damaged: {error!r}") from error
    if strange := [name for name in names if not isinstance(name, str) or not _WEIGHTS.fullmatch(name)]:
        raise ManifestCorrupt(f"{directory / INDEX} is damaged: {strange[0]!r:.100} is no safetensors file beside it")
    return names


def _why_no_weights(directory: Path, top: set[str]) -> str:
    pickles = sorted(path for path in top if Path(path).suffix in PICKLES)
    if pickles:
        return (
            f"{directory} holds its weights as pickle only ({', '.join(pickles)}), which can execute any code "
            "when it is read; convert them to safetensors"
        )
    if any(path.endswith(".gguf") for path in top):
        return f"{directory} holds GGUF; a directory with safetensors weights is needed"
    return f"{directory} has no weights (*.safetensors)"
