"""A model family of Ollama's library: its tags, and the Hugging Face repositories that serve them.

A tag is `[size][-variant][-quantization]`: `7b`, `7b-instruct-q4_K_M`, `latest`. Ollama packs GGUF; vLLM is served
best by checkpoints in its own formats. So a quantization in a tag means a number of bits per weight, and selects the
artifact with the closest number of bits that is not smaller. A plain tag, about 4 bits in Ollama, means 4.
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
"""The formats of artifacts and their bits per weight. The keys are `details.quantization_level` in lower case."""

CAPABILITIES = frozenset({"completion", "embedding", "tools", "thinking", "vision", "audio"})
"""Capabilities that an entry may claim (contract §4.5)."""

_PLAIN_BITS = 4
_ANY = "-*"
"""Ends a tag in `also` that stands for all with a quantization."""

_QUANTIZATION = re.compile(
    r"(?:^|-)(i?q[1-8](?:_[a-z0-9]+)*|fp?16|bf16|fp?32|fp8|int[48]|mxfp[48]|nvfp4|qat)$", re.IGNORECASE
)
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*(?:@[\w.-]+)?", re.ASCII)
_SPDX = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]*")


@dataclass(frozen=True, slots=True)
class HubEntry:
    """An artifact on the Hugging Face Hub. `revision` is "" if not pinned; `context` is in tokens, 0 if unknown."""

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
        """The display name of the artifact."""
        return f"{self.repository} {self.quantization}"


@dataclass(frozen=True, slots=True)
class Model:
    """A size of a family. `artifacts` map a key of BITS to `org/repo[@revision]`; `plain` is such a key, or "".

    `also` are tags that mean the same, `7b-*` is 7b with any quantization; `variants` are words that may follow the
    size. Repositories of the organisation in `gated` require a login. `unavailable` is the reason why nothing serves
    the size.
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
        """Return the format for this many bits per weight: the closest one that is not smaller, else the largest."""
        return min(self.artifacts, key=lambda kind: (BITS[kind] < asked, abs(BITS[kind] - asked)))


@dataclass(frozen=True, slots=True)
class Family:
    """A name of Ollama's library without tags. `latest` is the size for names without a tag, or ""."""

    name: str
    models: Mapping[str, Model]
    latest: str = ""

    def lookup(self, tag: str) -> HubEntry | None:
        """Return the artifact for a tag; None if unknown. Raises SourceUnavailable if it cannot be served."""
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
        """Return whether the tag means one of the family's sizes."""
        return self._split(tag)[0] in self.models

    def names(self) -> Iterator[str]:
        """Return one name per size that can be served."""
        return (f"{self.name}:{size}" for size, model in self.models.items() if not model.unavailable)

    def stems(self) -> Iterator[tuple[str, str]]:
        """Map each lower-case tag without quantization to its size."""
        for size, model in self.models.items():
            for stem in (size, *model.also):
                if not stem.endswith(_ANY):
                    yield stem.lower(), size
            for variant in model.variants:
                yield f"{size}-{variant}".lower(), size
                if size == self.latest:
                    yield variant.lower(), size
        if self.latest:
            yield DEFAULT_TAG, self.latest

    def quantized_stems(self) -> Iterator[tuple[str, str]]:
        """Map each lower-case tag that means another size where a quantization follows it to that size."""
        for size, model in self.models.items():
            yield from ((stem.removesuffix(_ANY).lower(), size) for stem in model.also if stem.endswith(_ANY))

    def over(self, other: Family | None) -> Family:
        """Return this family with the missing sizes of another one added."""
        if other is None:
            return self
        return replace(self, models={**other.models, **self.models}, latest=self.latest or other.latest)

    def _split(self, tag: str) -> tuple[str, str]:
        """Split a tag into its size and its quantization, each "" if absent."""
        stems = dict(self.stems())
        if (size := stems.get(tag.lower())) is not None:
            return size, ""
        match = _QUANTIZATION.search(tag)
        if not match:
            return "", ""
        stem = tag[: match.start()].lower() or DEFAULT_TAG
        return dict(self.quantized_stems()).get(stem) or stems.get(stem, ""), match[1]


def quantization_asked(tag: str) -> str:
    """Return the quantization at the end of a tag, spelled as there ("q4_K_M"); "" if there is none."""
    match = _QUANTIZATION.search(tag)
    return match[1] if match else ""


def bits_asked(quantization: str) -> int:
    """Return the bits per weight of an Ollama quantization; 0 if it is not one."""
    label = quantization.lower()
    if label == "qat":
        return 4
    digits = re.search(r"\d+", label)
    return int(digits[0]) if digits else 0


_FAMILY_KEYS = {"license", "context", "capabilities", "gated", "variants", "unavailable", "latest", "models"}
_MODEL_KEYS = {*BITS, "license", "context", "capabilities", "gated", "variants", "unavailable", "plain", "also"}


def parse_family(name: str, table: object, where: str) -> Family:
    """Parse one table of a catalogue file; `where` names the file. Raises StoreError with the mistake."""
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
        raise StoreError(f'{place} latest = "{family.latest}" is not one of its models')
    for stems, ending in ((family.stems(), ""), (family.quantized_stems(), _ANY)):
        seen: dict[str, str] = {}
        for stem, size in stems:
            if seen.setdefault(stem, size) != size:
                raise StoreError(
                    f'{place} the tag "{stem}{ending}" is ambiguous: it means both {seen[stem]} and {size}'
                )
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
        raise StoreError(f'{place} plain = "{model.plain}" is not one of its artifacts')
    if model.license and not _SPDX.fullmatch(model.license):
        raise StoreError(
            f'{place} license = "{model.license}" is not an SPDX identifier; use LicenseRef-NAME for others'
        )
    if unknown := set(model.capabilities) - CAPABILITIES:
        raise StoreError(
            f"{place} has unknown capabilities {', '.join(sorted(unknown))}; known: {sorted(CAPABILITIES)}"
        )
    return model


def _check_name(name: str, tag: str, place: str) -> None:
    try:
        ModelName.parse(f"{name}:{tag}")
    except InvalidName as error:
        raise StoreError(f"{place} '{name}:{tag}' is not a model name") from error


def _refuse_unknown(rows: Mapping[str, Any], known: set[str], place: str) -> None:
    if unknown := sorted(rows.keys() - known):
        raise StoreError(f"{place} has unknown keys {', '.join(unknown)}; known keys: {', '.join(sorted(known))}")


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
