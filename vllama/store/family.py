"""One model of Ollama's library: its tags, and the Hugging Face repositories that serve them.

A tag is `[size][-variant][-quantisation]`: `7b`, `7b-instruct-q4_K_M`, `latest`. Ollama packs GGUF; vLLM is served
best by checkpoints in its own formats. So a quantisation in a tag asks for bits a weight, and gets the artifact whose
bits come closest without being fewer. The plain tag, which Ollama packs in about 4 bits, asks for 4.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vllama.errors import InvalidName, SourceUnavailable, StoreError
from vllama.names import DEFAULT_TAG, ModelName

BITS = {
    "f32": 32,
    "bf16": 16,
    "f16": 16,
    "fp8": 8,
    "int8": 8,
    "gptq-int8": 8,
    "mxfp4": 4,
    "nvfp4": 4,
    "awq": 4,
    "gptq-int4": 4,
    "int4": 4,
}
"""The formats of artifacts, and their bits a weight. The keys are `details.quantization_level` in lower case."""

CAPABILITIES = frozenset({"completion", "embedding", "tools", "thinking", "vision", "audio"})
"""What an entry may claim (contract §4.5)."""

_PLAIN_BITS = 4
_QUANTISATION = re.compile(
    r"(?:^|-)(i?q[1-8](?:_[a-z0-9]+)*|fp?16|bf16|fp?32|fp8|int[48]|mxfp[48]|nvfp4|qat)$", re.IGNORECASE
)
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*(?:@[\w.-]+)?", re.ASCII)
_SPDX = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]*")


@dataclass(frozen=True, slots=True)
class HubEntry:
    """One artifact on the Hugging Face Hub. `revision` is "" where none is pinned; `context` is tokens, 0 unknown."""

    name: str
    repository: str
    revision: str
    quantization: str
    license: str
    context: int
    capabilities: tuple[str, ...]
    gated: bool

    @property
    def artifact(self) -> str:
        """The artifact as people speak of it."""
        return f"{self.repository} {self.quantization}"


@dataclass(frozen=True, slots=True)
class Model:
    """One size of a family. `artifacts` map a key of BITS to `org/repo[@revision]`; `plain` is such a key, or "".

    `also` are tags that mean the same; `variants` are words that may follow the size. The repositories of the
    organisation in `gated` ask for a login. A reason in `unavailable` says why nothing serves the size.
    """

    artifacts: Mapping[str, str]
    license: str
    context: int
    capabilities: tuple[str, ...]
    gated: str
    plain: str
    also: tuple[str, ...]
    variants: tuple[str, ...]
    unavailable: str

    def choose(self, asked: int) -> str:
        """Return the format that serves so many bits a weight: the closest that has no fewer, or else the best."""
        return min(self.artifacts, key=lambda kind: (BITS[kind] < asked, abs(BITS[kind] - asked)))


@dataclass(frozen=True, slots=True)
class Family:
    """A name of Ollama's library without its tag. `latest` is the size that a name without a tag means, or ""."""

    name: str
    models: Mapping[str, Model]
    latest: str = ""

    def lookup(self, tag: str) -> HubEntry | None:
        """Return the artifact for a tag; None where it is unknown. Raises SourceUnavailable, which says why."""
        size, asked = self._split(tag)
        model = self.models.get(size)
        if model is None:
            return None
        if model.unavailable:
            raise SourceUnavailable(f"'{self.name}:{tag}' cannot be served: {model.unavailable}")
        kind = model.plain if model.plain and not asked else model.choose(bits_asked(asked) or _PLAIN_BITS)
        repository, _, revision = model.artifacts[kind].partition("@")
        return HubEntry(
            name=f"{self.name}:{tag}",
            repository=repository,
            revision=revision,
            quantization=kind.upper(),
            license=model.license,
            context=model.context,
            capabilities=model.capabilities,
            gated=repository.partition("/")[0] == model.gated,
        )

    def knows(self, tag: str) -> bool:
        """Whether the tag names one of its sizes."""
        return self._split(tag)[0] in self.models

    def names(self) -> Iterator[str]:
        """Return one name for each size that something serves."""
        return (f"{self.name}:{size}" for size, model in self.models.items() if not model.unavailable)

    def stems(self) -> Iterator[tuple[str, str]]:
        """Return each tag without a quantisation, in lower case, and the size that it means."""
        for size, model in self.models.items():
            for stem in (size, *model.also):
                yield stem.lower(), size
            for variant in model.variants:
                yield f"{size}-{variant}".lower(), size
                if size == self.latest:
                    yield variant.lower(), size
        if self.latest:
            yield DEFAULT_TAG, self.latest

    def over(self, other: Family | None) -> Family:
        """Return this family with the sizes of another that it lacks."""
        if other is None:
            return self
        return replace(self, models={**other.models, **self.models}, latest=self.latest or other.latest)

    def _split(self, tag: str) -> tuple[str, str]:
        """Return the size that the tag means, "" where none, and the quantisation in it, or ""."""
        stems = dict(self.stems())
        if (size := stems.get(tag.lower())) is not None:
            return size, ""
        match = _QUANTISATION.search(tag)
        if not match:
            return "", ""
        stem = tag[: match.start()].lower() or DEFAULT_TAG
        return stems.get(stem, ""), match[1]


def quantisation_asked(tag: str) -> str:
    """Return the quantisation at the end of a tag, as it is spelled there: "q4_K_M"; "" where there is none."""
    match = _QUANTISATION.search(tag)
    return match[1] if match else ""


def bits_asked(quantisation: str) -> int:
    """Return the bits a weight that a quantisation of Ollama's stands for; 0 where it is none."""
    label = quantisation.lower()
    if label == "qat":
        return 4
    digits = re.search(r"\d+", label)
    return int(digits[0]) if digits else 0


_FAMILY_KEYS = {"license", "context", "capabilities", "gated", "variants", "unavailable", "latest", "models"}
_MODEL_KEYS = {*BITS, "license", "context", "capabilities", "gated", "variants", "unavailable", "plain", "also"}


def parse_family(name: str, table: object, where: str) -> Family:
    """Read one table of a catalogue file; `where` names the file. Raises StoreError, which names what is wrong."""
    place = f"{where}: [{name}]"
    rows = _table(table, place)
    _refuse_unknown(rows, _FAMILY_KEYS, place)
    models = {
        size: _parse_model({**rows, **_table(row, f'{place} models."{size}"')}, f'{place} models."{size}"')
        for size, row in _table(rows.get("models", {}), f"{place} models").items()
    }
    family = Family(name, models, _get(rows, "latest", str, "", place))
    if not models:
        raise StoreError(f"{place} has no models")
    if family.latest and family.latest not in models:
        raise StoreError(f'{place} latest = "{family.latest}" is none of its models')
    seen: dict[str, str] = {}
    for stem, size in family.stems():
        if seen.setdefault(stem, size) != size:
            raise StoreError(f'{place} the tag "{stem}" means both {seen[stem]} and {size}')
        _check_name(name, stem, place)
    return family


def _parse_model(row: Mapping[str, Any], place: str) -> Model:
    own = {key: value for key, value in row.items() if key not in {"latest", "models"}}
    _refuse_unknown(own, _MODEL_KEYS, place)
    artifacts = {kind: _get(own, kind, str, "", place) for kind in BITS if kind in own}
    for kind, repository in artifacts.items():
        if not _REPOSITORY.fullmatch(repository):
            raise StoreError(f'{place} {kind} = "{repository}" is not of the form org/repo or org/repo@revision')
    model = Model(
        artifacts=artifacts,
        license=_get(own, "license", str, "", place),
        context=_get(own, "context", int, 0, place),
        capabilities=_strings(own, "capabilities", place),
        gated=_get(own, "gated", str, "", place),
        plain=_get(own, "plain", str, "", place),
        also=_strings(own, "also", place),
        variants=_strings(own, "variants", place),
        unavailable=_get(own, "unavailable", str, "", place),
    )
    if bool(artifacts) == bool(model.unavailable):
        raise StoreError(f"{place} needs a repository under one of {', '.join(BITS)}")
    if model.plain and model.plain not in artifacts:
        raise StoreError(f'{place} plain = "{model.plain}" is none of its artifacts')
    if model.license and not _SPDX.fullmatch(model.license):
        raise StoreError(f'{place} license = "{model.license}" is no SPDX identifier (LicenseRef-NAME for others)')
    if unknown := set(model.capabilities) - CAPABILITIES:
        raise StoreError(f"{place} capabilities has {', '.join(sorted(unknown))}; known: {sorted(CAPABILITIES)}")
    return model


def _check_name(name: str, tag: str, place: str) -> None:
    try:
        ModelName.parse(f"{name}:{tag}")
    except InvalidName as error:
        raise StoreError(f"{place} '{name}:{tag}' is no model name") from error


def _refuse_unknown(rows: Mapping[str, Any], known: set[str], place: str) -> None:
    if unknown := sorted(rows.keys() - known):
        raise StoreError(f"{place} does not know {', '.join(unknown)}; known keys: {', '.join(sorted(known))}")


def _table(value: object, place: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise StoreError(f"{place} is not a table")
    return value


def _get(rows: Mapping[str, Any], key: str, kind: type, default: Any, place: str) -> Any:
    value = rows.get(key, default)
    if type(value) is not kind:
        raise StoreError(f"{place} {key} = {value!r} is not of type {kind.__name__}")
    return value


def _strings(rows: Mapping[str, Any], key: str, place: str) -> tuple[str, ...]:
    value: Sequence[Any] = _get(rows, key, list, [], place)
    if not all(isinstance(item, str) for item in value):
        raise StoreError(f"{place} {key} = {value!r} is not a list of strings")
    return tuple(value)
