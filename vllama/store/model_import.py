"""Models from files: a GGUF file, or the files of a Hugging Face snapshot.

Each becomes a snapshot and a manifest with files only. A GGUF file is converted once: its checksum is the manifest's
source, and the same file gives the same snapshot again. Uploaded files become a snapshot by hard links. A directory of
the user is served in place.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from vllama.errors import RequestError, StoreError
from vllama.names import ModelName
from vllama.settings import PRECISIONS
from vllama.store.blobs import Blobs, parse_digest
from vllama.store.catalogue import by_source
from vllama.store.description import describe, gguf_precision
from vllama.store.foreign_files import open_regular
from vllama.store.gguf import conversion
from vllama.store.gguf.header import read_header
from vllama.store.hashing import hash_file, hash_files
from vllama.store.manifest import Manifest, ManifestFile, Source, content_digest, sha256_of_json
from vllama.store.model_store import ModelStore
from vllama.store.progress import Progress
from vllama.store.snapshot import find_files
from vllama.store.writes import store_writes

_MAGIC = b"GGUF"

Steps = Generator[Progress, None, Manifest]


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A GGUF file by its checksum (64 hex): at `path`, or uploaded or stored if that is None."""

    sha256: str
    path: Path | None = None


def plain_manifest(
    name: ModelName, snapshot: Path, files: tuple[ManifestFile, ...], source: Source, modified_at: datetime
) -> Manifest:
    """Return a manifest that adds nothing to its files."""
    return Manifest(
        name=name,
        snapshot=snapshot,
        files=files,
        source=source,
        parameters={},
        system="",
        template="",
        license="",
        messages=(),
        engine_flags=(),
        modified_at=modified_at,
    )


def has_content(store: ModelStore, sha256: str) -> bool:
    """Return whether a file with this checksum is already known: uploaded, or part or source of a stored model."""
    return Blobs(store.root).holds(sha256) or held_file(store, sha256) is not None or _is_source(store, sha256)


def held_file(store: ModelStore, sha256: str) -> Path | None:
    """Return the file with this checksum in the store's own snapshots; users' directories may change."""
    for manifest in store.list():
        for snapshot, files in manifest.snapshots.items():
            if store.identity(snapshot) is not None:
                for file in files:
                    path = snapshot / file.path
                    if file.sha256 == sha256 and path.is_file() and path.stat().st_size == file.size:
                        return path
    return None


def from_files(store: ModelStore, name: ModelName, files: Mapping[str, str]) -> Steps:
    """Create a manifest from uploads: `files` maps paths inside the model to `sha256:…`.

    Raises RequestError if they are not a model, StoreError if one was not uploaded or the disk is full.
    """
    checksums = {path: parse_digest(digest) for path, digest in files.items()}
    if not checksums:
        raise RequestError("no files provided to convert")
    if any(path.endswith(".safetensors") for path in checksums):
        return (yield from _from_safetensors(store, name, checksums))
    if not any(path.endswith(".gguf") or _is_gguf(_find(store, sha)) for path, sha in checksums.items()):
        raise RequestError("unknown type")
    # A stored model's uploads are gone, but it knows which of them was which.
    uploads = sorted(checksums.values())
    stored = next(_converted(store, lambda made_of: sorted(made_of) == uploads), None)
    if stored is not None:
        parts = _sources(stored)
    else:
        text, projector = _text_and_projector({path: _find(store, sha256) for path, sha256 in checksums.items()})
        parts = (checksums[text], checksums[projector]) if projector else (checksums[text],)
    return (yield from from_gguf(store, name, *map(GgufFile, parts)))


def _text_and_projector(files: Mapping[str, Path | None]) -> tuple[str, str]:
    """Return the names of a model's GGUF file, and of that with its vision tower ("" if there is none).

    Raises RequestError for other numbers of files.
    """
    if len(files) == 1:
        return next(iter(files)), ""
    projectors = [name for name, path in files.items() if path is not None and is_projector(path)]
    texts = [name for name in files if name not in projectors]
    if len(texts) != 1 or len(projectors) > 1:
        raise RequestError(
            f"a model needs exactly one GGUF file, and one projector (mmproj) if it sees; got {len(texts)} and "
            f"{len(projectors)} ({', '.join(sorted(files))}): merge the parts of a split one with "
            "`llama-gguf-split --merge`"
        )
    return texts[0], projectors[0] if projectors else ""


def is_projector(path: Path) -> bool:
    """Return whether the file is a GGUF with a vision tower only. The conversion tells of damaged files."""
    try:
        return _is_gguf(path) and read_header(path).is_projector
    except StoreError:
        return False


def release(store: ModelStore, digests: Iterable[str]) -> None:
    """Remove the uploads that are now part of stored models."""
    for sha256 in map(parse_digest, digests):
        if held_file(store, sha256) or _is_source(store, sha256):
            Blobs(store.root).remove(sha256)


def take_upload(store: ModelStore, sha256: str, target: Path) -> None:
    """Link or copy the file with this checksum to `target`. Raises StoreError if it was not uploaded."""
    with store_writes():
        target.parent.mkdir(parents=True, exist_ok=True)
    if not _take(_find(store, sha256), target):
        raise _missing(store, sha256)


def from_path(store: ModelStore, name: ModelName, path: Path, projector: Path | None = None) -> Steps:
    """Create a manifest from a local GGUF file or snapshot directory. Raises RequestError or StoreError.

    `projector` is the GGUF file of the vision tower; a directory may have both.
    """
    path = path.expanduser().resolve()
    if path.is_dir() and projector is None:
        places = sorted(path.glob("*.gguf"))
        if not places or any(path.glob("*.safetensors")):
            return (yield from in_place(name, path))
    else:
        places = [path] if projector is None else [path, projector.expanduser().resolve()]
    found = {str(place): place for place in places}
    text, beside = _text_and_projector(found)
    return (yield from from_gguf_paths(store, name, found[text], found.get(beside)))


def from_gguf_paths(store: ModelStore, name: ModelName, path: Path, projector: Path | None) -> Steps:
    """Create a manifest from a GGUF file, and the file of its vision tower. Raises RequestError or StoreError."""
    parts = []
    for place in (path, projector):
        if place is not None:
            file = yield from hash_file(place.parent, place.name)
            parts.append(GgufFile(file.sha256, place))
    return (yield from from_gguf(store, name, *parts))


def in_place(name: ModelName, directory: Path, *, code: bool = False) -> Steps:
    """Create a manifest for a snapshot directory in place; with `code`, also for its code. Raises StoreError."""
    paths = find_files(directory, code=code)
    started = datetime.now(UTC)  # a file that changes while it is hashed is newer than this
    files = yield from hash_files(directory, paths)
    manifest = plain_manifest(name, directory, files, Source("local", str(directory), ""), started)
    describe(manifest)  # refuse damaged weights or settings now, not at the first request
    return manifest


def from_gguf(store: ModelStore, name: ModelName, file: GgufFile, projector: GgufFile | None = None) -> Steps:
    """Create a manifest from a GGUF file, with the file of its vision tower if it has one.

    Raises RequestError or StoreError.
    """
    yield Progress("parsing GGUF")
    parts = (file, projector) if projector else (file,)
    sources = tuple(part.sha256 for part in parts)
    key = sha256_of_json(sources) if projector else file.sha256
    with (yield from store.turn(f"gguf-{key}-{store.precision}")) as staging:
        snapshot = staging / "snapshot"
        places = [staging / "model.gguf", staging / "mmproj.gguf"][: len(parts)]
        # First take the blobs, then look for a stored model: a blob is removed only after its model is stored.
        taken = [
            _take(_find(store, part.sha256), place) if part.path is None else _point_at(part.path, place)
            for part, place in zip(parts, places, strict=True)
        ]
        if (known := _made_of(store, sources)) is not None and store.hold(known.snapshot):
            now = datetime.now(UTC)
            return plain_manifest(name, known.snapshot, known.files, known.source, now)
        for part, is_taken, place in zip(parts, taken, places, strict=True):
            if not is_taken:
                raise _used_up(store, sources) or _missing(store, part.sha256)
            if not _is_gguf(place):
                raise RequestError("supplied file was not in GGUF format")
        yield Progress("converting model")
        with _refused_if_uploaded(parts):
            yield from conversion.convert_in_turn("converting model", places[0], snapshot, store.precision, *places[1:])
        files = yield from hash_files(snapshot, find_files(snapshot))
        place = store.adopt(snapshot, content_digest(files))
    source = Source("gguf", "+".join(f"sha256:{sha256}" for sha256 in sources), "")
    return plain_manifest(name, place, files, source, datetime.now(UTC))


def _from_safetensors(store: ModelStore, name: ModelName, checksums: Mapping[str, str]) -> Steps:
    yield Progress("parsing safetensors")
    key = sha256_of_json(checksums)
    with (yield from store.turn(f"files-{key}")) as staging:
        uploaded, snapshot = staging / "uploaded", staging / "snapshot"
        for path, sha256 in checksums.items():
            take_upload(store, sha256, uploaded / path)
        with _refused_as_upload(uploaded, snapshot):
            paths = find_files(uploaded)  # files that no worker reads are skipped
        with store_writes():
            for path in paths:
                (snapshot / path).parent.mkdir(parents=True, exist_ok=True)
                (uploaded / path).replace(snapshot / path)
        with _refused_as_upload(uploaded, snapshot):
            files = tuple(
                ManifestFile(path, (snapshot / path).stat().st_size, checksums[path]) for path in find_files(snapshot)
            )
            manifest = plain_manifest(name, snapshot, files, Source("upload", "", ""), datetime.now(UTC))
            describe(manifest)
        place = store.adopt(snapshot, content_digest(files))
    return replace(manifest, snapshot=place)


@contextmanager
def _refused_as_upload(uploaded: Path, snapshot: Path) -> Iterator[None]:
    """Raise RequestError where the uploaded files are no model, in words without our own paths."""
    try:
        yield
    except StoreError as error:
        told = str(error).replace(str(uploaded), "the upload").replace(f"{snapshot}/", "").replace(str(snapshot), "")
        raise RequestError(told) from None


@contextmanager
def _refused_if_uploaded(parts: Iterable[GgufFile]) -> Iterator[None]:
    """Raise RequestError where files that a client uploaded are at fault."""
    try:
        yield
    except conversion.UnusableGguf as error:
        if any(part.path is None for part in parts):
            raise RequestError(str(error)) from None
        raise


def _find(store: ModelStore, sha256: str) -> Path | None:
    blob = Blobs(store.root).path(sha256)
    return blob if blob.exists() else held_file(store, sha256)


def _made_of(store: ModelStore, sources: tuple[str, ...]) -> Manifest | None:
    """Return a complete model that was converted from the GGUF files with these checksums, in the store's precision."""
    return next(_converted(store, lambda made_of: made_of == sources), None)


def _is_source(store: ModelStore, sha256: str) -> bool:
    """Return whether a complete model was converted from the GGUF file with this checksum."""
    return any(_converted(store, lambda made_of: sha256 in made_of))


def _converted(store: ModelStore, fits: Callable[[tuple[str, ...]], bool]) -> Iterator[Manifest]:
    """Yield complete models in the store's precision whose GGUF files' checksums fit."""
    for manifest in store.list():
        is_fitting = fits(_sources(manifest)) and not manifest.damaged_files()
        if is_fitting and gguf_precision(manifest.snapshot) == store.precision:
            yield manifest


def _sources(manifest: Manifest) -> tuple[str, ...]:
    """Return the checksums of the GGUF files that a model was converted from: its own, and its projector's."""
    if manifest.source.kind == "gguf":
        return tuple(part.removeprefix("sha256:") for part in manifest.source.locator.split("+"))
    entry = by_source(manifest.source)
    return (entry.sha256,) if entry and entry.weights else ()


def _used_up(store: ModelStore, sources: tuple[str, ...]) -> StoreError | None:
    """Return an error about an upload that was removed after it was converted with another precision."""
    for precision in PRECISIONS:
        if made := _made_of(ModelStore(store.root, precision), sources):
            return StoreError(
                f"'{made.name.display}' was made of this GGUF file with precision {precision}, and the file was not "
                f"kept; to use precision {store.precision}, delete that model and upload the file again"
            )
    return None


def _take(source: Path | None, target: Path) -> bool:
    """Link the file to the new path `target`, or copy it if links fail; return whether the source exists."""
    if source is None:
        return False
    with store_writes():
        try:
            target.hardlink_to(source)
        except FileNotFoundError:
            return False
        except OSError as error:
            if error.errno not in {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP}:
                raise
            shutil.copyfile(source, target)
    return True


def _point_at(path: Path, target: Path) -> bool:
    with store_writes():
        target.symlink_to(path)
    return True


def _is_gguf(path: Path | None) -> bool:
    if path is None:
        return False
    try:
        with open_regular(path) as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


def _missing(store: ModelStore, sha256: str) -> StoreError:
    path = Blobs(store.root).path(sha256)
    return StoreError(f"open {path}: {os.strerror(errno.ENOENT).lower()}")
