"""Import from Ollama's own store, which is only read.

    DIR/manifests/<host>/<namespace>/<model>/<tag>    JSON: a config and layers, each a media type, digest and size
    DIR/manifests-v2/...                              the same in newer versions: links to blobs
    DIR/blobs/sha256-<64 hex>                         contents of the layers

Its weights are GGUF, which is converted once, as is a LoRA adapter in GGUF. Parameters, system message, template,
messages and licences come with them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from vllama.errors import InvalidName, ManifestCorrupt, ModelNotFound, StoreError, VllamaError
from vllama.names import ModelName
from vllama.ollama.creation import Changes, CreateRequest
from vllama.ollama.templates import check_template
from vllama.store import adapter
from vllama.store.blobs import parse_digest
from vllama.store.create import store_derived
from vllama.store.foreign_files import read_bounded
from vllama.store.gguf.forecast import Forecast, forecast
from vllama.store.gguf.header import check_convertible, read_header
from vllama.store.hashing import hash_file
from vllama.store.model_import import GgufFile, from_gguf
from vllama.store.model_store import ModelStore
from vllama.store.progress import Progress

PLACES = ("~/.ollama/models", "/usr/share/ollama/.ollama/models", "/var/lib/ollama/.ollama/models", "/var/lib/ollama")
"""Ollama's model directories: of a user, of its Linux service, and of distribution packages."""

_PREFIX = "application/vnd.ollama.image."
_REFUSED = {
    "tensor": "its weights are single tensors, not GGUF",
    "draft": "it has a draft model (DRAFT), which is not supported",
}
_LONGEST_TEXT = 16 << 20
"""Maximum bytes of a layer other than weights."""


@dataclass(frozen=True, slots=True)
class Blob:
    """A GGUF file of Ollama's, and the checksum that it should have (64 hex)."""

    path: Path
    sha256: str


@dataclass(frozen=True, slots=True)
class OllamaModel:
    """A model of Ollama's that can be imported: its weights, its vision tower and LoRA adapter, and what is put on it.

    The tower is None if the model does not see, or has it in its weights.
    """

    name: ModelName
    weights: Blob
    projector: Blob | None
    adapter: Blob | None
    changes: Changes


class OllamaStore:
    """The models in one Ollama store (its OLLAMA_MODELS)."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def names(self) -> list[ModelName]:
        """Return the names of all models, sorted. Raises StoreError if the directory cannot be read."""
        return sorted(self._manifests(), key=lambda name: name.key)

    def read(self, name: ModelName) -> OllamaModel:
        """Read a model without its weights, of which only the header is checked.

        Raises ModelNotFound; StoreError or RequestError with the reason if it cannot be imported.
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
            raise StoreError("it runs in Ollama's cloud and has no files")
        if config.get("renderer"):  # then Ollama ignores the template too; the GGUF's own is used
            kinds = [(kind, layer) for kind, layer in kinds if kind != "template"]
        weights = [layer for kind, layer in kinds if kind == "model"]
        if len(weights) != 1:
            raise StoreError(f"it has {len(weights)} GGUF files instead of one")
        blob = self._gguf(weights[0])
        projectors = [self._gguf(layer) for kind, layer in kinds if kind == "projector"]
        if len(projectors) > 1:
            raise StoreError(f"it has {len(projectors)} projectors for images; one can be converted")
        projector = projectors[0] if projectors else None
        check_convertible(blob.path, projector.path if projector else None)
        adapters = [layer for kind, layer in kinds if kind == "adapter"]
        if len(adapters) > 1:
            raise StoreError(f"it has {len(adapters)} LoRA adapters (ADAPTER); one can be served")
        lora = self._gguf(adapters[0]) if adapters else None
        if lora:
            _check_same_architecture(lora.path, blob.path)
        return OllamaModel(name, blob, projector, lora, self._changes(name, kinds))

    def _manifests(self) -> dict[ModelName, Path]:
        found: dict[ModelName, Path] = {}
        try:
            for folder in ("manifests-v2", "manifests"):
                for path in sorted((self._directory / folder).glob("*/*/*/*")):
                    host, namespace, model, tag = path.relative_to(self._directory / folder).parts
                    try:
                        name = ModelName.parse(f"{host}/{namespace}/{model}:{tag}")
                    except InvalidName:
                        continue  # a temporary file, or not one of Ollama's
                    if path.is_file() and name.key not in {known.key for known in found}:
                        found[name] = path
        except OSError as error:
            raise StoreError(f"cannot read Ollama's models: {error}") from error
        return found

    def _runnable(self, manifest: dict[str, Any]) -> dict[str, Any]:
        """Return the manifest with GGUF weights from a list of manifests."""
        if "manifests" not in manifest:
            return manifest
        for child in _objects(manifest, "manifests"):
            if child.get("format", "gguf") == "gguf" and child.get("runner", "ollama") in {"ollama", "llamacpp"}:
                if "layers" in child:
                    return child
                return _json_object(self._text(str(child.get("digest"))), "the manifest")
        raise StoreError("none of its variants has GGUF weights")

    def _config(self, manifest: dict[str, Any]) -> dict[str, Any]:
        config = manifest.get("config")
        if not isinstance(config, dict) or not config.get("digest"):
            return {}
        return _json_object(self._text(str(config["digest"])), "its config")

    def _changes(self, name: ModelName, kinds: Iterable[tuple[str, dict[str, Any]]]) -> Changes:
        """Return the changes from the small layers, checked like a request to create the model."""
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
        """Return the text of a small blob, with its checksum verified."""
        sha256 = parse_digest(digest)
        place = self._blob(sha256)
        if place.stat().st_size > _LONGEST_TEXT:
            raise StoreError(f"{place} is too large")
        data = _read(place)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise StoreError(f"digest mismatch: {place} is damaged; pull the model again with Ollama")
        return data

    def _gguf(self, layer: dict[str, Any]) -> Blob:
        """Return the GGUF file of a layer, its size checked."""
        sha256 = parse_digest(str(layer.get("digest")))
        place = self._blob(sha256)
        if place.stat().st_size != layer.get("size"):
            raise StoreError(f"{place} has {place.stat().st_size} bytes, not {layer.get('size')}: it is damaged")
        return Blob(place, sha256)

    def _blob(self, sha256: str) -> Path:
        for name in (f"sha256-{sha256}", f"sha256:{sha256}"):  # the second is the name in old versions
            path = self._directory / "blobs" / name
            if path.is_file():
                return path
        raise StoreError(
            f"{self._directory / 'blobs'} has no sha256-{sha256}: the pull was not finished; "
            "pull the model again with Ollama"
        )


def find_store(places: Iterable[Path]) -> OllamaStore:
    """Return the first directory that is an Ollama store. Raises StoreError."""
    tried, denied = [], []
    for place in places:
        try:
            if any((place / folder).is_dir() for folder in ("manifests", "manifests-v2")):
                return OllamaStore(place)
        except PermissionError:
            denied.append(str(place))
        tried.append(str(place))
    hint = f"; {' and '.join(denied)} may not be read by this user" if denied else ""
    raise StoreError(f"no Ollama models found in {', '.join(tried)}{hint}; name Ollama's directory with --from")


def import_models(
    store: ModelStore, source: OllamaStore, names: Sequence[ModelName], *, force: bool = False
) -> Generator[Progress, None, None]:
    """Import the Ollama models with these names, or all; the last step is "success".

    Names that are already stored are kept, unless `force`. Models that cannot be imported are reported before the first
    conversion and skipped. Raises StoreError at the end if any was skipped.
    """
    wanted = names or source.names()
    if not wanted:
        raise StoreError("Ollama has no models in this directory")
    models: list[OllamaModel] = []
    left_out: dict[str, str] = {}
    for name in wanted:
        try:
            if not force and _is_whole(store, name):
                yield Progress(f"{name.display} is already stored")
                continue
            models.append(source.read(name))
        except (VllamaError, OSError) as error:
            left_out[name.display] = str(error)
            yield Progress(f"skipped {name.display}: {error}")
    for model in models:
        try:
            yield Progress(f"importing {model.name.display}")
            yield from _import(store, model)
        except VllamaError as error:
            left_out[model.name.display] = str(error)
            yield Progress(f"skipped {model.name.display}: {error}")
    if left_out:
        reasons = "".join(f"\n  {name}: {why}" for name, why in left_out.items())
        raise StoreError(f"{len(left_out)} of {len(wanted)} models were not imported:{reasons}")
    yield Progress("success")


@dataclass(frozen=True, slots=True)
class Prospect:
    """A model that an import would take: its GGUF file's size in bytes and forecast, or why it is `refused`."""

    name: ModelName
    size: int = 0
    forecast: Forecast | None = None
    refused: str = ""


def prospects(source: OllamaStore, names: Sequence[ModelName], precision: str) -> Iterator[Prospect]:
    """Yield what an import of these models, or of all, would make of each. Nothing is written."""
    for name in names or source.names():
        try:
            model = source.read(name)
            paths = [blob.path for blob in (model.weights, model.projector) if blob]
            foreseen = forecast(paths[0], precision, *paths[1:])
            yield Prospect(name, sum(path.stat().st_size for path in paths), foreseen)
        except (VllamaError, OSError) as error:
            yield Prospect(name, refused=str(error))


def _import(store: ModelStore, model: OllamaModel) -> Generator[Progress, None, None]:
    for blob in (model.weights, model.projector, model.adapter):
        if blob:
            yield from _check_content(blob)
    files = [GgufFile(blob.sha256, blob.path) for blob in (model.weights, model.projector) if blob]
    with store.session() as session:
        made = yield from from_gguf(session, model.name, *files)
        if model.adapter:
            made = replace(made, adapter=(yield from adapter.from_gguf(session, made, model.adapter.path)))
        yield from store_derived(session, made, model.name, model.changes)


def _check_content(blob: Blob) -> Generator[Progress, None, None]:
    """Read the whole file. Raises StoreError where it has another checksum."""
    steps = hash_file(blob.path.parent, blob.path.name)
    try:
        while True:
            yield replace(next(steps), status="verifying sha256 digest", digest=f"sha256:{blob.sha256}")
    except StopIteration as end:
        found = end.value.sha256
    if found != blob.sha256:
        raise StoreError(f"digest mismatch: {blob.path} has sha256 {found}; pull the model again with Ollama")


def _check_same_architecture(path: Path, base: Path) -> None:
    """Raise StoreError where the adapter at `path` cannot be one of the base: before anything is converted."""
    try:
        made_for = read_header(path).architecture
    except StoreError as error:
        raise StoreError(f"its LoRA adapter (ADAPTER) cannot be used: {error}") from error
    architecture = read_header(base).architecture
    if made_for != architecture:
        raise StoreError(
            f"its LoRA adapter (ADAPTER) is for the architecture {made_for!r}, its weights are {architecture!r}"
        )


def _is_whole(store: ModelStore, name: ModelName) -> bool:
    try:
        return not store.get(name).damaged_files()
    except (ModelNotFound, ManifestCorrupt):
        return False


def _read(path: Path) -> bytes:
    try:
        return read_bounded(path, _LONGEST_TEXT)
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error}") from error


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise StoreError(f"one of its texts is not UTF-8: {error}") from error


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
        raise StoreError(f"its manifest has no list '{key}'")
    return entries
