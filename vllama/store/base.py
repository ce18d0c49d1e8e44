"""What a model can be made of besides another model: a GGUF file, or the files of a Hugging Face snapshot.

All of it ends as a snapshot and a manifest with nothing but files in it. A GGUF is converted, once: its checksum is the
manifest's source, and whoever brings the same file again gets the same snapshot. Uploaded files become a snapshot by
hard links. A directory of the user's is served where it is.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Generator, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from vllama.errors import RequestError, StoreError
from vllama.names import ModelName
from vllama.store import gguf
from vllama.store.blobs import Blobs, parse_digest
from vllama.store.catalogue import by_source
from vllama.store.description import describe
from vllama.store.hashing import hash_file, hash_files
from vllama.store.manifest import Manifest, ManifestFile, Source, content_digest, sha256_of_json
from vllama.store.model_store import ModelStore
from vllama.store.progress import Progress
from vllama.store.snapshot import find_files

_MAGIC = b"GGUF"

Steps = Generator[Progress, None, Manifest]


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
    """Whether a file of this checksum need not be uploaded: it was, or a stored model holds it or was made of it."""
    return (
        Blobs(store.root).holds(sha256) or held_file(store, sha256) is not None or _made_of(store, sha256) is not None
    )


def held_file(store: ModelStore, sha256: str) -> Path | None:
    """Return the file of this checksum among the store's own snapshots; those of users may change."""
    for manifest in store.list():
        for snapshot, files in manifest.snapshots.items():
            if store.identity(snapshot) is not None:
                for file in files:
                    path = snapshot / file.path
                    if file.sha256 == sha256 and path.is_file() and path.stat().st_size == file.size:
                        return path
    return None


def from_files(store: ModelStore, name: ModelName, files: Mapping[str, str]) -> Steps:
    """Make a manifest of uploads: `files` maps paths inside the model to `sha256:…`.

    Raises RequestError where they are no model, StoreError where one was not uploaded or the disk is full.
    """
    checksums = {path: parse_digest(digest) for path, digest in files.items()}
    if not checksums:
        raise RequestError("no files provided to convert")
    if any(path.endswith(".safetensors") for path in checksums):
        return (yield from _from_safetensors(store, name, checksums))
    if not any(path.endswith(".gguf") or _is_gguf(_find(store, sha)) for path, sha in checksums.items()):
        raise RequestError("unknown type")
    if len(checksums) > 1:
        raise RequestError(
            f"a model is made of one GGUF file, not of {len(checksums)} ({', '.join(sorted(checksums))}): merge the "
            "parts of a split one with `llama-gguf-split --merge`; projectors (mmproj) are not supported"
        )
    (sha256,) = checksums.values()
    return (yield from from_gguf(store, name, sha256))


def release(store: ModelStore, digests: Iterable[str]) -> None:
    """Remove those of the uploads that the store holds otherwise by now."""
    for sha256 in map(parse_digest, digests):
        if held_file(store, sha256) or _made_of(store, sha256):
            Blobs(store.root).remove(sha256)


def take_upload(store: ModelStore, sha256: str, target: Path) -> None:
    """Have the file of this checksum at the new path `target`. Raises StoreError where it was not uploaded."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if not _take(_find(store, sha256), target):
        raise _missing(store, sha256)


def from_path(store: ModelStore, name: ModelName, path: Path) -> Steps:
    """Make a manifest of a GGUF file or of a snapshot directory on this machine. Raises RequestError or StoreError."""
    path = path.expanduser().resolve()
    if path.is_dir():
        only = list(path.glob("*.gguf"))
        if len(only) != 1 or any(path.glob("*.safetensors")):
            return (yield from in_place(name, path))
        path = only[0]
    file = yield from hash_file(path.parent, path.name)
    return (yield from from_gguf(store, name, file.sha256, path))


def in_place(name: ModelName, directory: Path, *, code: bool = False) -> Steps:
    """Make a manifest of a snapshot directory, which is not copied; with `code`, of its code too. Raises StoreError."""
    paths = find_files(directory, code=code)
    started = datetime.now(UTC)  # a file that changes while it is hashed is newer than this
    files = yield from hash_files(directory, paths)
    manifest = plain_manifest(name, directory, files, Source("local", str(directory), ""), started)
    describe(manifest)  # damaged weights or settings are refused now, not when a client asks
    return manifest


def from_gguf(store: ModelStore, name: ModelName, sha256: str, path: Path | None = None) -> Steps:
    """Make a manifest of the GGUF file of this checksum: at `path`, or one that was uploaded or is stored.

    Raises RequestError or StoreError.
    """
    yield Progress("parsing GGUF")
    with store.staging(f"gguf-{sha256}") as staging:
        weights, snapshot = staging / "model.gguf", staging / "snapshot"
        # Taken before the look at what is there: a blob goes only after the model made of it is stored.
        taken = _take(_find(store, sha256), weights) if path is None else _point_at(path, weights)
        if (known := _made_of(store, sha256)) is not None and store.hold(known.snapshot):
            now = datetime.now(UTC)
            return plain_manifest(name, known.snapshot, known.files, known.source, now)
        if not taken:
            raise _missing(store, sha256)
        if not _is_gguf(weights):
            raise RequestError("supplied file was not in GGUF format")
        yield Progress("converting model")
        gguf.convert(weights, snapshot)
        files = yield from hash_files(snapshot, find_files(snapshot))
        place = store.adopt(snapshot, content_digest(files))
    source = Source("gguf", f"sha256:{sha256}", "")
    return plain_manifest(name, place, files, source, datetime.now(UTC))


def _from_safetensors(store: ModelStore, name: ModelName, checksums: Mapping[str, str]) -> Steps:
    yield Progress("parsing safetensors")
    key = sha256_of_json(checksums)
    with store.staging(f"files-{key}") as staging:
        uploaded, snapshot = staging / "uploaded", staging / "snapshot"
        for path, sha256 in checksums.items():
            take_upload(store, sha256, uploaded / path)
        try:
            for path in find_files(uploaded):  # what no worker reads is left out
                (snapshot / path).parent.mkdir(parents=True, exist_ok=True)
                (uploaded / path).replace(snapshot / path)
            files = tuple(
                ManifestFile(path, (snapshot / path).stat().st_size, checksums[path]) for path in find_files(snapshot)
            )
            manifest = plain_manifest(name, snapshot, files, Source("upload", "", ""), datetime.now(UTC))
            describe(manifest)
        except StoreError as error:
            told = (
                str(error).replace(str(uploaded), "the upload").replace(f"{snapshot}/", "").replace(str(snapshot), "")
            )
            raise RequestError(told) from None
        place = store.adopt(snapshot, content_digest(files))
    return replace(manifest, snapshot=place)


def _find(store: ModelStore, sha256: str) -> Path | None:
    blob = Blobs(store.root).path(sha256)
    return blob if blob.exists() else held_file(store, sha256)


def _made_of(store: ModelStore, sha256: str) -> Manifest | None:
    """A whole model that was converted from the GGUF of this checksum."""
    for manifest in store.list():
        source = manifest.source
        if source.kind == "gguf":
            made_of = source.locator.removeprefix("sha256:")
        else:
            entry = by_source(source)
            made_of = entry.sha256 if entry and entry.weights else ""
        if made_of == sha256 and not manifest.damaged_files():
            return manifest
    return None


def _take(source: Path | None, target: Path) -> bool:
    """Link the file to the new path `target`, or copy it where links are not to be had; whether it was there."""
    if source is None:
        return False
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
    target.symlink_to(path)
    return True


def _is_gguf(path: Path | None) -> bool:
    if path is None:
        return False
    try:
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


def _missing(store: ModelStore, sha256: str) -> StoreError:
    path = Blobs(store.root).path(sha256)
    return StoreError(f"open {path}: {os.strerror(errno.ENOENT).lower()}")
