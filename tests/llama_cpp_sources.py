"""Vocabularies, token ids and chat templates out of llama.cpp, from the source package of llama-cpp-python.

They are fetched once into `.cache`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import ssl
import tarfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import LOCK_EX, flock
from pathlib import Path
from typing import Any, NamedTuple

import pytest

PACKAGE, RELEASE = "llama-cpp-python", "llama_cpp_python-0.3.36.tar.gz"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
NAMES = (
    "bert-bge", "command-r", "deepseek-coder", "deepseek-llm", "falcon", "gemma-4", "gpt-2", "llama-bpe", "llama-spm",
    "mpt", "phi-3", "qwen2", "qwen35", "refact", "starcoder",
)  # fmt: skip
"""Vocabularies with texts and ids."""

_CACHE = Path(__file__).parents[1] / ".cache" / "llama-cpp"
_MEMBER = re.compile(
    r".*/vendor/llama\.cpp/models/(?:templates/)?(ggml-vocab-[a-z0-9-]+\.gguf(?:\.inp|\.out)?|[\w.-]+\.jinja)", re.ASCII
)
_BETWEEN_TEXTS = "\n__ggml_vocab_test__\n"


class Recorded(NamedTuple):
    """A text, and the ids that llama.cpp gives it without special tokens around it."""

    text: str
    ids: list[int]


def vocabulary(name: str) -> Path:
    """Return the GGUF file of a vocabulary. Skips the test where the package cannot be had."""
    return _fetched() / f"ggml-vocab-{name}.gguf"


def keys(name: str) -> dict[str, Any]:
    """Return the keys of a vocabulary's GGUF file."""
    from gguf import GGUFReader

    fields = GGUFReader(vocabulary(name)).fields
    return {key: field.contents() for key, field in fields.items() if not key.startswith("GGUF.")}


def recorded(name: str) -> list[Recorded]:
    """Return the texts and ids of llama.cpp's own test of a vocabulary."""
    path = vocabulary(name)
    texts = path.with_name(f"{path.name}.inp").read_bytes().decode().removesuffix(_BETWEEN_TEXTS).split(_BETWEEN_TEXTS)
    lines = path.with_name(f"{path.name}.out").read_text().splitlines()
    return [Recorded(text, [int(number) for number in line.split()]) for text, line in zip(texts, lines, strict=True)]


def chat_templates() -> dict[str, str]:
    """Return the chat templates of 70 public models by their names."""
    return {path.stem: path.read_text() for path in sorted(_fetched().glob("*.jinja"))}


def _fetched() -> Path:
    _CACHE.mkdir(parents=True, exist_ok=True)
    with _locked(_CACHE / "lock"):
        done = _CACHE / "done"
        if not done.exists():
            _unpack(_download())
            done.touch()
    return _CACHE


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process at a time fetch: the tests run in several."""
    with path.open("w") as file:
        flock(file, LOCK_EX)
        yield


def _download() -> Path:
    """Return the package. pip would build its metadata, which needs a compiler's tools."""
    package = _CACHE / RELEASE
    index = os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple").rstrip("/")
    context = ssl.create_default_context(cafile=os.environ.get("PIP_CERT"))
    accept = {"Accept": "application/vnd.pypi.simple.v1+json"}
    try:
        page = urllib.request.Request(f"{index}/{PACKAGE}/", headers=accept)
        with urllib.request.urlopen(page, timeout=60, context=context) as answer:
            files = json.load(answer)["files"]
        url = next(file["url"] for file in files if file["filename"] == RELEASE)
        with urllib.request.urlopen(url, timeout=240, context=context) as answer:
            package.write_bytes(answer.read())
    except (OSError, ValueError, StopIteration) as error:
        pytest.skip(f"{RELEASE} cannot be downloaded: {error}")
    assert hashlib.sha256(package.read_bytes()).hexdigest() == SHA256
    return package


def _unpack(package: Path) -> None:
    """Keep vocabularies and templates, and remove the rest."""
    with tarfile.open(package) as archive:
        for member in archive:
            found = _MEMBER.fullmatch(member.name)
            if found and (file := archive.extractfile(member)):
                (_CACHE / found[1]).write_bytes(file.read())
    package.unlink()
