"""Ollama's own store: its models become models here. It is only read.

    DIR/manifests/<host>/<namespace>/<model>/<tag>    JSON: a config and layers, each a media type, digest and size
    DIR/manifests-v2/...                              the same, of newer versions: links to blobs
    DIR/blobs/sha256-<64 hex>                         what the layers are

Its weights are GGUF, which is converted once; parameters, system message, template, messages and licences come with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from vllama.errors import InvalidName, ManifestCorrupt, ModelNotFound, StoreError, VllamaError
from vllama.names import ModelName
from vllama.ollama.creation import Changes, CreateRequest
from vllama.ollama.templates import check_template
from vllama.store.base import from_gguf
from vllama.store.blobs import parse_digest
from vllama.store.create import store_derived
from vllama.store.gguf_header import check_convertible
from vllama.store.hashing import hash_file
from vllama.store.model_store import ModelStore
from vllama.store.progress import Progress

PLACES = ("~/.ollama/models", "/usr/share/ollama/.ollama/models", "/var/lib/ollama/.ollama/models", "/var/lib/ollama")
"""Where Ollama keeps its models: a user's, those of its Linux service, and of distributions' packages."""

_PREFIX = "application/vnd.ollama.image."
_REFUSED = {
    "adapter": "it has a LoRA adapter (ADAPTER) in GGUF, which vLLM cannot read: import its base, and create a "
    "model of that and of the adapter as PEFT saves it",
    "projector": "it has a projector for images, which cannot be converted",
    "tensor": "its weights are single tensors, not GGUF",
    "draft": "it has a draft model (DRAFT), which is not supported",
}
_LONGEST_TEXT = 16 << 20
"""Bytes of a layer that is not weights."""


@dataclass(frozen=True, slots=True)
class OllamaModel:
    """A model of Ollama's that can be imported: its GGUF, the checksum that this should have, and what is put on it."""

    name: ModelName
    weights: Path
    sha256: str
    changes: Changes


class OllamaStore:
    """The models under one directory, Ollama's OLLAMA_MODELS."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def names(self) -> list[ModelName]:
        """Return the names of all models, sorted. Raises StoreError where the directory cannot be read."""
        return sorted(self._manifests(), key=lambda name: name.key)

    def read(self, name: ModelName) -> OllamaModel:
        """Read all of a model but its weights, of which the head is looked at.

        Raises ModelNotFound; StoreError or RequestError, which say why it cannot be imported.
        """
        path = next((path for known, path in self._manifests().items() if known.key == name.key), None)
        if path is None:
            raise ModelNotFound(name.display)
        manifest = self._runnable(_json_object(_read(path), f"the manifest {path}"))
        layers = [(str(layer.get("mediaType", "")), layer) for layer in _objects(manifest, "layers")]
        kinds = [(kind.removeprefix(_PREFIX).partition(";")[0], layer) for kind, layer in layers]
        for kind, why in _REFUSED.items():
            if any(kind == present for present, _ in kinds):
                raise StoreError(why)
        config = self._config(manifest)
        if config.get("remote_host"):
            raise StoreError("it is served by Ollama's cloud and has no files")
        if config.get("renderer"):  # then Ollama heeds no template either: here, that of the GGUF is taken
            kinds = [(kind, layer) for kind, layer in kinds if kind != "template"]
        weights = [layer for kind, layer in kinds if kind == "model"]
        if len(weights) != 1:
            raise StoreError(f"it has {len(weights)} GGUF files; one is needed")
        sha256 = parse_digest(str(weights[0].get("digest")))
        place = self._blob(sha256)
        if place.stat().st_size != weights[0].get("size"):
            raise StoreError(f"{place} has {place.stat().st_size} bytes, not {weights[0].get('size')}: it is damaged")
        check_convertible(place)
        return OllamaModel(name, place, sha256, self._changes(name, kinds))

    def _manifests(self) -> dict[ModelName, Path]:
        found: dict[ModelName, Path] = {}
        try:
            for folder in ("manifests-v2", "manifests"):
                for path in sorted((self._directory / folder).glob("*/*/*/*")):
                    host, namespace, model, tag = path.relative_to(self._directory / folder).parts
                    try:
                        name = ModelName.parse(f"{host}/{namespace}/{model}:{tag}")
                    except InvalidName:
                        continue  # a temporary file, or none of Ollama's
                    if path.is_file() and name.key not in {known.key for known in found}:
                        found[name] = path
        except OSError as error:
            raise StoreError(f"cannot read Ollama's models: {error}") from error
        return found

    def _runnable(self, manifest: dict[str, Any]) -> dict[str, Any]:
        """Of a list of manifests, that of the GGUF."""
        if "manifests" not in manifest:
            return manifest
        for child in _objects(manifest, "manifests"):
            if child.get("format", "gguf") == "gguf" and child.get("runner", "ollama") in {"ollama", "llamacpp"}:
                if "layers" in child:
                    return child
                return _json_object(self._text(str(child.get("digest"))), "the manifest")
        raise StoreError("it has no variant with GGUF weights")

    def _config(self, manifest: dict[str, Any]) -> dict[str, Any]:
        config = manifest.get("config")
        if not isinstance(config, dict) or not config.get("digest"):
            return {}
        return _json_object(self._text(str(config["digest"])), "its config")

    def _changes(self, name: ModelName, kinds: Iterable[tuple[str, dict[str, Any]]]) -> Changes:
        """What the small layers say, checked as a request to create the model would be."""
        said: dict[str, Any] = {"model": name.full, "license": []}
        for kind, layer in kinds:
            if kind in {"template", "prompt", "system", "license", "params", "messages"}:
                data = self._text(str(layer.get("digest")))
                if kind == "license":
                    said["license"].append(_text(data))
                elif kind in {"params", "messages"}:
                    said["parameters" if kind == "params" else kind] = _json(data, f"its {kind}")
                else:
                    said["template" if kind == "prompt" else kind] = _text(data)
        changes = CreateRequest.parse(orjson.dumps(said)).changes
        check_template(changes.template)
        return changes

    def _text(self, digest: str) -> bytes:
        """A small blob, checked."""
        sha256 = parse_digest(digest)
        place = self._blob(sha256)
        if place.stat().st_size > _LONGEST_TEXT:
            raise StoreError(f"{place} is longer than a text can be")
        data = _read(place)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise StoreError(f"digest mismatch: {place} is damaged; pull the model again with Ollama")
        return data

    def _blob(self, sha256: str) -> Path:
        for name in (f"sha256-{sha256}", f"sha256:{sha256}"):  # the second is that of old versions
            path = self._directory / "blobs" / name
            if path.is_file():
                return path
        raise StoreError(f"{self._directory / 'blobs'} lacks sha256-{sha256}: its pull was not finished")


def find_store(places: Iterable[Path]) -> OllamaStore:
    """Return the first of the directories that is a store of Ollama's. Raises StoreError."""
    tried, denied = [], []
    for place in places:
        try:
            if any((place / folder).is_dir() for folder in ("manifests", "manifests-v2")):
                return OllamaStore(place)
        except PermissionError:
            denied.append(str(place))
        tried.append(str(place))
    hint = f"; {' and '.join(denied)} may not be read by this user" if denied else ""
    raise StoreError(f"there are no models of Ollama's in {', '.join(tried)}{hint}; name their directory with --from")


def import_models(
    store: ModelStore, source: OllamaStore, names: Sequence[ModelName], *, force: bool = False
) -> Generator[Progress, None, None]:
    """Make models of those of Ollama's with these names, or of all; the last step is "success".

    Names that are stored already stay as they are, unless `force`. One that cannot be imported is told and left out; of
    all, this is known before the first is converted. Raises StoreError at the end where any was left out.
    """
    wanted = names or source.names()
    if not wanted:
        raise StoreError("Ollama has no models there")
    models: list[OllamaModel] = []
    left_out: dict[str, str] = {}
    for name in wanted:
        try:
            if not force and _is_whole(store, name):
                yield Progress(f"{name.display} is here already")
                continue
            models.append(source.read(name))
        except (VllamaError, OSError) as error:
            left_out[name.display] = str(error)
            yield Progress(f"left out {name.display}: {error}")
    for model in models:
        try:
            yield Progress(f"importing {model.name.display}")
            yield from _import(store, model)
        except VllamaError as error:
            left_out[model.name.display] = str(error)
            yield Progress(f"left out {model.name.display}: {error}")
    if left_out:
        reasons = "".join(f"\n  {name}: {why}" for name, why in left_out.items())
        raise StoreError(f"{len(left_out)} of {len(wanted)} models were not imported:{reasons}")
    yield Progress("success")


def _import(store: ModelStore, model: OllamaModel) -> Generator[Progress, None, None]:
    digest = f"sha256:{model.sha256}"
    steps = hash_file(model.weights.parent, model.weights.name)
    try:
        while True:
            yield replace(next(steps), status="verifying sha256 digest", digest=digest)
    except StopIteration as end:
        found = end.value.sha256
    if found != model.sha256:
        raise StoreError(f"digest mismatch: {model.weights} has sha256 {found}; pull the model again with Ollama")
    with store.session() as session:
        converted = yield from from_gguf(session, model.name, model.sha256, model.weights)
        yield from store_derived(session, converted, model.name, model.changes)


def _is_whole(store: ModelStore, name: ModelName) -> bool:
    try:
        return not store.get(name).damaged_files()
    except (ModelNotFound, ManifestCorrupt):
        return False


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error}") from error


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise StoreError(f"a text of it is not UTF-8: {error}") from error


def _json(data: bytes, what: str) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise StoreError(f"{what} is not JSON: {error}") from error


def _json_object(data: bytes, what: str) -> dict[str, Any]:
    value = _json(data, what)
    if not isinstance(value, dict):
        raise StoreError(f"{what} is not a JSON object")
    return value


def _objects(value: dict[str, Any], key: str) -> list[dict[str, Any]]:
    entries = value.get(key)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise StoreError(f"its manifest has no list of {key}")
    return entries
