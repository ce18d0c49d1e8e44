"""Format of a bundle, a directory with models for a machine without a network.

    DIR/bundle.json                  index; written last, so a directory without it is not a bundle
    DIR/manifests/sha256-<64 hex>    one per name, as in the store
    DIR/files/sha256-<64 hex>        the models' files; files that names share are stored once
    DIR/wheels/                      optional: vllama, its dependencies, and requirements.txt (wheelhouse.py)

A bundle is untrusted. Each path is derived from a checksum, so none can lead out of the directory; links are not
followed; manifests with anything but data are refused.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from vllama import __version__
from vllama.errors import InvalidName, ManifestCorrupt, StoreError
from vllama.names import ModelName
from vllama.store.hashing import sha256_of
from vllama.store.manifest import Manifest, ManifestFile, parse_file
from vllama.store.model_store import write_atomically
from vllama.store.peft import CONFIG, WEIGHTS
from vllama.store.remote_code import TRUST, is_code, is_trusted
from vllama.store.snapshot import counts
from vllama.store.wheelhouse import is_ours

FORMAT_VERSION = 1
"""Format version of bundle.json; increased when older readers would misunderstand it."""

INDEX = "bundle.json"
FILES, MANIFESTS, WHEELS = "files", "manifests", "wheels"

_SHA256 = re.compile(r"[0-9a-f]{64}")
_MOST_JSON = 64 << 20
"""Maximum bytes of a JSON file that is read into memory."""


@dataclass(frozen=True, slots=True)
class BundledModel:
    """A model in a bundle: its name, the sha256 of its manifest, and the bytes of its files."""

    name: ModelName
    manifest: str
    size: int


@dataclass(frozen=True, slots=True)
class Bundle:
    """The content of bundle.json. `files` maps the sha256 of every file, including manifests, to its bytes.

    `wheels` are the files in the directory of that name, `caches` the compiled code of models by `weights_digest`.
    """

    models: tuple[BundledModel, ...]
    files: Mapping[str, int]
    vllama_version: str = __version__
    wheels: tuple[ManifestFile, ...] = ()
    caches: Mapping[str, tuple[ManifestFile, ...]] = field(default_factory=dict)

    def choose(self, names: Iterable[ModelName]) -> list[BundledModel]:
        """Return the models with these names, or all if there are none. Raises StoreError if one is missing."""
        here = {model.name.key: model for model in self.models}
        chosen = {name.key: name for name in names} or here
        for key, wanted in chosen.items():
            if key not in here:
                held = ", ".join(model.name.display for model in self.models)
                raise StoreError(f"the bundle does not contain '{wanted}'; it contains {held}")
        return [here[key] for key in chosen]

    def to_json(self) -> bytes:
        """Return the content of bundle.json, which `from_json` reads back unchanged."""
        record = {
            "format_version": FORMAT_VERSION,
            "vllama_version": self.vllama_version,
            "models": [
                {"name": model.name.full, "manifest": model.manifest, "size": model.size} for model in self.models
            ],
            "files": [{"sha256": sha256, "size": size} for sha256, size in sorted(self.files.items())],
            "wheels": self.wheels,
            "caches": [{"weights": weights, "files": files} for weights, files in sorted(self.caches.items())],
        }
        return orjson.dumps(record, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)

    @classmethod
    def from_json(cls, data: bytes) -> Bundle:
        """Parse the output of `to_json`. Raises StoreError with the mistake."""
        try:
            record = orjson.loads(data)
            version = record["format_version"]
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise StoreError(f"{INDEX} is damaged: {error}") from error
        if version != FORMAT_VERSION:
            raise StoreError(
                f"{INDEX} has format version {version!r}; this vllama {__version__} reads version {FORMAT_VERSION}"
                + (": update vllama" if isinstance(version, int) and version > FORMAT_VERSION else "")
            )
        try:
            files = {_checksum(entry): _size(entry["size"]) for entry in record["files"]}
            models = tuple(
                BundledModel(ModelName.parse(entry["name"]), _known(entry["manifest"], files), _size(entry["size"]))
                for entry in record["models"]
            )
            wheels = tuple(
                ManifestFile(_wheel_name(entry["path"]), _size(entry["size"]), _checksum(entry))
                for entry in record.get("wheels", ())  # older bundles have none
            )
            caches = {
                _digest(entry["weights"]): tuple(_cached(file, files) for file in entry["files"])
                for entry in record.get("caches", ())
            }
            return cls(models, files, str(record["vllama_version"]), wheels, caches)
        except (ManifestCorrupt, KeyError, TypeError, ValueError, AttributeError, InvalidName) as error:
            raise StoreError(f"{INDEX} is damaged: {error!r}") from error


def read_bundle(directory: Path) -> Bundle:
    """Return the index of the bundle. Raises StoreError if the directory is not a complete bundle."""
    if not directory.is_dir():
        raise StoreError(f"{directory} is not a directory; name a bundle that `vllama stage` wrote")
    try:
        with open_inside(directory, INDEX) as file:
            return Bundle.from_json(_read_json(file))
    except FileNotFoundError:
        raise StoreError(
            f"{directory} is not a complete bundle: {INDEX} is missing, which `vllama stage` writes last. "
            "Run `vllama stage` again"
        ) from None
    except OSError as error:
        raise StoreError(f"cannot read {directory / INDEX}: {error.strerror}") from error
    except StoreError as error:
        raise StoreError(f"{directory}: {error}") from error


def write_bundle(directory: Path, bundle: Bundle) -> None:
    """Write bundle.json atomically: a reader sees the old one or the new one. Raises OSError."""
    write_atomically(directory / INDEX, bundle.to_json())


def read_manifest(directory: Path, bundle: Bundle, model: BundledModel, *, trusted: bool) -> Manifest:
    """Return the manifest of the name, checked against bundle.json. Raises StoreError.

    `trusted` allows the model to have code, which its worker will run.
    """
    called = f"the manifest of '{model.name}'"
    try:
        with open_inside(directory, MANIFESTS, stored_as(model.manifest)) as file:
            data = _read_json(file)
    except OSError as error:
        raise StoreError(f"cannot read {called} in the bundle: {error.strerror}") from error
    if sha256_of(data) != model.manifest:
        raise StoreError(f"{called} in the bundle is damaged: its sha256 differs from the index; stage the model again")
    try:
        manifest = Manifest.from_json(data)
    except ManifestCorrupt as error:
        raise StoreError(f"{called} in the bundle is damaged: {error}") from error
    if manifest.name.key != model.name.key:
        raise StoreError(f"{called} in the bundle belongs to '{manifest.name}'; stage the model again")
    for entry in chain(*manifest.snapshots.values()):
        if bundle.files.get(entry.sha256) != entry.size:
            raise StoreError(
                f"{called} in the bundle lists {entry.path}, but {INDEX} lists no such file of that "
                "size; stage the model again"
            )
    check_is_data(manifest, trusted=trusted)
    return manifest


def check_is_data(manifest: Manifest, *, trusted: bool) -> None:
    """Raise StoreError if a model has more than weights, settings and texts, such as flags or code.

    Code is allowed if it is `trusted`.
    """
    if others := [flag for flag in manifest.engine_flags if flag != TRUST]:
        flags = " ".join(others)
        raise StoreError(
            f"'{manifest.name}' has flags for vLLM ({flags}), which a bundle must not contain; pass them to `vllama "
            "serve` instead"
        )
    has_code = is_trusted(manifest.engine_flags)
    if has_code and not trusted:
        code = ", ".join(sorted(file.path for file in manifest.files if is_code(file.path)))
        raise StoreError(
            f"'{manifest.name}' has its own code, which its worker would run ({code}). If you trust its author and the "
            f"bundle, load it with {TRUST}; otherwise name only the other models"
        )
    for files in manifest.snapshots.values():
        paths = [file.path for file in files]
        if strange := sorted(path for path in paths if not counts(path, code=has_code)):
            raise StoreError(f"'{manifest.name}' has files that do not belong to a model: {', '.join(strange)}")
        if len({Path(path) for path in paths}) != len(paths):
            raise StoreError(f"'{manifest.name}' lists a file twice")
    if manifest.adapter and {file.path for file in manifest.adapter.files} != {CONFIG, WEIGHTS}:
        raise StoreError(f"'{manifest.name}' has an adapter with files other than {CONFIG} and {WEIGHTS}")


def stored_as(sha256: str) -> str:
    """Return the name of a file with this checksum."""
    return f"sha256-{sha256}"


def open_inside(directory: Path, *parts: str) -> BinaryIO:
    """Open a regular file of the bundle for reading. Raises OSError; StoreError for a link or a device."""
    for folder in (directory.joinpath(*parts[:depth]) for depth in range(1, len(parts))):
        if folder.is_symlink():
            raise StoreError(f"{folder} is a symbolic link, which a bundle must not contain")
    path = directory.joinpath(*parts)
    if path.is_symlink():
        raise StoreError(f"{path} is a symbolic link, which a bundle must not contain")
    # The kernel refuses a link that was put there meanwhile; a FIFO is opened without waiting for its writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise StoreError(f"{path} is not a regular file")
    return os.fdopen(descriptor, "rb")


def size_of(path: Path) -> int | None:
    """Return the size of a regular file in bytes; None if there is none."""
    with suppress(OSError):
        status = path.lstat()
        if stat.S_ISREG(status.st_mode):
            return status.st_size
    return None


def _read_json(file: BinaryIO) -> bytes:
    size = os.fstat(file.fileno()).st_size
    if size > _MOST_JSON:
        raise StoreError(f"a file of {size:,} bytes is larger than the maximum of {_MOST_JSON:,}")
    return file.read(size)


def _checksum(entry: dict[str, Any]) -> str:
    return _digest(entry["sha256"])


def _digest(value: str) -> str:
    if not _SHA256.fullmatch(value):
        raise ValueError(value)
    return value


def _cached(entry: dict[str, Any], files: Mapping[str, int]) -> ManifestFile:
    file = parse_file(entry)
    if files.get(file.sha256) != file.size:
        raise ValueError(file.path)
    return file


def _wheel_name(path: object) -> str:
    if not isinstance(path, str) or not is_ours(path):
        raise ValueError(path)
    return path


def _known(sha256: str, files: Mapping[str, int]) -> str:
    if sha256 not in files:
        raise ValueError(sha256)
    return sha256


def _size(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(value)
    return value
