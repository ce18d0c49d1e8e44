"""Prompts of the requests: from a file, images from a directory, or synthetic ones of an exact length.

Every process of the load generator makes the same prompt for the same number, so prompts are never sent to processes.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import orjson
import pybase64

from vllama.bench.dialects import Prompt
from vllama.errors import RequestError

# Each is one token, with the blank before it, in the vocabularies of today's models.
_WORD_LIST = """
about after again against all also always another any around ask away back because been before began being best better
between big book both boy bring build business call came can care case change child city close cold come could country
course cut dark day did different door down draw each early earth east eat end enough even ever every eye face fact
fall family far farm father feel few field find fire first fish five food foot form four free friend from front full
game gave girl give glass gold good great green ground group grow half hand hard head hear heart help here high hold
home horse hot hour house how hundred idea island job just keep kind king know land large last late learn leave left
letter life light line list little live long look love low made main make man many mark may mean men might mile mind
money moon morning most mother mountain move much music must name near need never new next night north note nothing
now number off often old
"""
_WORDS = tuple(_WORD_LIST.split())
_PREFIX_WORDS = 8  # of some 180: 2^60 beginnings
_OPENING = "Words:"  # a word at the very beginning has no blank before it, and may be another number of tokens

# Even small models answer this at length: a reply that ends by itself makes lengths differ.
_INSTRUCTION = (
    "Tell me a very long and detailed story about a lighthouse keeper and the sea, at least a thousand words."
)
_IMAGE_INSTRUCTION = "Describe this image in every detail, in at least three hundred words."

_IMAGES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp"}


class BadWorkload(RequestError):
    """The prompts cannot be read from the given file or directory."""


@dataclass(frozen=True, slots=True)
class PromptSource:
    """Where prompts come from. `path` is a file, a directory of images, or "" for synthetic ones of `words` words.

    `salt` is anything; prompts with a fresh prefix differ if it does.
    """

    path: str = ""
    words: int = 0
    fresh_prefix: bool = True
    salt: str = ""

    def open(self) -> Prompts:
        """Return the prompts. Raises BadWorkload."""
        if not self.path:
            return Prompts(self, None)
        path = Path(self.path)
        try:
            return Prompts(self, _images(path) if path.is_dir() else _texts(path))
        except OSError as error:
            message = f"{self.path}: {error.strerror or error}"
            raise BadWorkload(message) from error


class Prompts:
    """The prompts by number; there is no last one, those of a file come round again."""

    def __init__(self, source: PromptSource, given: list[str] | list[Path] | None) -> None:
        self._source = source
        self._given = given

    def __len__(self) -> int:
        """How many different ones there are, fresh prefixes left out; 1 for synthetic ones."""
        return 1 if self._given is None else len(self._given)

    def __getitem__(self, index: int) -> Prompt:
        """Return prompt number `index`, from 0 on."""
        dice = random.Random(f"{self._source.salt}:{index if self._source.fresh_prefix else 0}")  # noqa: S311 - no secret
        prefix = " ".join([_OPENING, *dice.choices(_WORDS, k=_PREFIX_WORDS)]) if self._source.fresh_prefix else ""
        if self._given is None:
            filler = " ".join(dice.choices(_WORDS, k=self._source.words))
            return Prompt(" ".join(filter(None, (prefix, filler, _INSTRUCTION))))
        given = self._given[index % len(self._given)]
        text = _IMAGE_INSTRUCTION if isinstance(given, Path) else given
        images = (self._encoded[given],) if isinstance(given, Path) else ()
        return Prompt(f"{prefix}\n\n{text}" if prefix else text, images)

    @cached_property
    def _encoded(self) -> Mapping[Path, str]:
        return {
            path: pybase64.b64encode(path.read_bytes()).decode() for path in self._given or () if isinstance(path, Path)
        }


def _images(directory: Path) -> list[Path]:
    images = sorted(path for path in directory.iterdir() if path.suffix.lower() in _IMAGES)
    if not images:
        message = f"{directory}: no image ({', '.join(sorted(_IMAGES))})"
        raise BadWorkload(message)
    return images


def _texts(path: Path) -> list[str]:
    """Return the prompts of a file: JSON lines, a JSON array, or else one prompt a line."""
    content = path.read_bytes()
    if path.suffix.lower() not in {".json", ".jsonl", ".ndjson"}:
        texts = [line.strip() for line in content.decode(errors="replace").splitlines()]
    else:
        texts = [_text(record, where) for where, record in _json_records(path, content)]
    if not (prompts := [text for text in texts if text]):
        message = f"{path}: no prompt in it"
        raise BadWorkload(message)
    return prompts


def _json_records(path: Path, content: bytes) -> Iterator[tuple[str, Any]]:
    """Yield the records, of an array, of a task's items or of lines, each with the words for where it is."""
    try:
        whole = orjson.loads(content)
    except orjson.JSONDecodeError:
        whole = None
    entries = whole.get("items") if isinstance(whole, dict) else whole
    if isinstance(entries, list):
        yield from ((f"{path}, entry {number}", entry) for number, entry in enumerate(entries, 1))
        return
    for number, line in enumerate(content.splitlines(), 1):
        if line.strip():
            try:
                yield f"{path}, line {number}", orjson.loads(line)
            except orjson.JSONDecodeError as error:
                message = f"{path}, line {number}: not JSON: {error}"
                raise BadWorkload(message) from error


def _text(record: Any, where: str) -> str:
    """Return the first thing that a person says; "" where a conversation has none."""
    if isinstance(record, str):
        return record
    if isinstance(record, dict):
        if isinstance(text := record.get("prompt"), str):
            return text
        for turns, who, what in (("conversations", "from", "value"), ("messages", "role", "content")):
            if isinstance(said := record.get(turns), list):
                return next((str(turn.get(what, "")) for turn in said if turn.get(who) in {"human", "user"}), "")
    message = f"{where}: neither a text, `prompt`, `conversations` (ShareGPT) nor `messages`"
    raise BadWorkload(message)
