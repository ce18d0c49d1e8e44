"""Staging: write stored models to a bundle for a machine without a network."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from vllama.errors import StoreError
from vllama.names import ModelName
from vllama.store.bundle import (
    FILES,
    INDEX,
    MANIFESTS,
    WHEELS,
    Bundle,
    BundledModel,
    check_is_data,
    read_bundle,
    read_manifest,
    size_of,
    stored_as,
    write_bundle,
)
from vllama.store.bundled_caches import stage_cache
from vllama.store.caches import key_of
from vllama.store.copying import check_room, copy_checked, is_whole, link_checked
from vllama.store.hashing import sha256_of
from vllama.store.manifest import Manifest, ManifestFile, content_digest
from vllama.store.model_store import ModelStore, open_lock, sync, write_atomically
from vllama.store.progress import Progress
from vllama.store.wheelhouse import UNFINISHED, collect, installed, is_ours
from vllama.store.writes import disk_errors

Caches = dict[str, tuple[ManifestFile, ...]]
"""Files of caches by the `weights_digest` of their models."""


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A file for the bundle, its directory, and a model that has it."""

    name: ModelName
    snapshot: Path
    file: ManifestFile


def stage(
    store: ModelStore, names: Iterable[ModelName], directory: Path, *, wheels: bool = False, compile_cache: bool = False
) -> Generator[Progress, None, None]:
    """Add these models to the bundle in `directory`, creating it if needed; the last step is "success".

    Existing names in the bundle are replaced, others kept; existing files are not written again. The store's own
    snapshots are linked if the file system allows it. `wheels` adds or replaces vllama and its dependencies;
    `compile_cache` adds compiled code. A kill leaves the previous bundle, or none. Raises ModelNotFound,
    SourceUnavailable if pip cannot get a wheel, or StoreError if a file is damaged or the disk is full.
    """
    yield Progress("reading manifests")
    manifests = {name.key: store.get(name) for name in names}
    for manifest in manifests.values():
        check_is_data(manifest, trusted=True)
    with _only_writer(directory):
        kept = _kept(directory, set(manifests))
        wanted = {
            file.sha256: _Wanted(manifest.name, snapshot, file)
            for manifest in manifests.values()
            for snapshot, files in manifest.snapshots.items()
            for file in files
        }
        check_room(directory, _bytes_to_copy(store, directory, wanted.values()), "use a larger disk")
        for each in wanted.values():
            yield from _bring(store, each, directory / FILES)
        with disk_errors(_writing(directory)):
            sync(directory / FILES)
        before = read_bundle(directory) if (directory / INDEX).exists() else Bundle((), {})
        software = (yield from collect(directory / WHEELS, installed())) if wheels else before.wheels
        compiled = dict(before.caches)
        if compile_cache:
            compiled |= yield from _stage_caches(store, manifests.values(), directory)
        entries = [*kept, *(_entry(manifest) for manifest in manifests.values())]
        with disk_errors(_writing(directory)):
            for _, data in entries:
                write_atomically(directory / MANIFESTS / stored_as(sha256_of(data)), data)
        yield Progress(f"writing {INDEX}")
        bundle = _bundle(entries, software, compiled)
        with disk_errors(_writing(directory)):
            write_bundle(directory, bundle)
            _prune(directory, bundle)
    yield Progress("success")


@contextmanager
def _only_writer(directory: Path) -> Iterator[None]:
    """Make the folders of the bundle, and keep other processes from writing to it. Raises StoreError."""
    with disk_errors(_writing(directory)):
        for folder in (FILES, MANIFESTS):
            (directory / folder).mkdir(parents=True, exist_ok=True)
        for folder in (FILES, MANIFESTS, WHEELS):
            if (directory / folder).is_symlink():
                raise StoreError(f"{directory / folder} is a symbolic link, which a bundle must not contain")
        lock = open_lock(directory / ".stage.lock")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(f"another `vllama stage` is writing to {directory}") from None
        except OSError as error:
            raise StoreError(f"cannot lock {lock.name}: {error}") from error
        yield


def _writing(directory: Path) -> str:
    return f"write the bundle in {directory}"


def _kept(directory: Path, replaced: set[str]) -> list[tuple[Manifest, bytes]]:
    """Return the manifests of the other names in the bundle. Raises StoreError if one of them is incomplete."""
    if not (directory / INDEX).exists():
        return []
    bundle = read_bundle(directory)
    kept = [model for model in bundle.models if model.name.key not in replaced]
    manifests = [read_manifest(directory, bundle, model, trusted=True) for model in kept]
    for manifest in manifests:
        for file in chain(*manifest.snapshots.values()):
            if size_of(directory / FILES / stored_as(file.sha256)) != file.size:
                raise StoreError(
                    f"{file.path} of '{manifest.name}' in the bundle {directory} is damaged or missing: "
                    "stage that model again too, or use another directory"
                )
    return [_entry(manifest) for manifest in manifests]


def _entry(manifest: Manifest) -> tuple[Manifest, bytes]:
    """Return the manifest as stored in the bundle; loading gives its snapshots other paths."""
    portable = manifest.moved(lambda snapshot: Path("snapshots") / content_digest(manifest.snapshots[snapshot]))
    return portable, portable.to_json()


def _stage_caches(
    store: ModelStore, manifests: Iterable[Manifest], directory: Path
) -> Generator[Progress, None, Caches]:
    found: Caches = {}
    staged: dict[str, tuple[ManifestFile, ...]] = {}
    for manifest in manifests:
        if (key := key_of(manifest)) not in staged:
            staged[key] = yield from stage_cache(store.root, key, directory)
        if files := staged[key]:
            found[manifest.weights_digest] = files
        else:
            yield Progress(
                f"no compiled code for {manifest.name} yet; load the model once on a machine like the target"
            )
    return found


def _bundle(entries: Iterable[tuple[Manifest, bytes]], wheels: tuple[ManifestFile, ...], caches: Caches) -> Bundle:
    models: list[BundledModel] = []
    files: dict[str, int] = {}
    kept: Caches = {}
    for manifest, data in entries:
        files |= {file.sha256: file.size for file in chain(*manifest.snapshots.values())}
        files[sha256_of(data)] = len(data)
        models.append(BundledModel(manifest.name, sha256_of(data), manifest.size))
        if cache := caches.get(manifest.weights_digest):
            kept[manifest.weights_digest] = cache
            files |= {file.sha256: file.size for file in cache}
    return Bundle(tuple(sorted(models, key=lambda model: model.name.key)), files, wheels=wheels, caches=kept)


def _bytes_to_copy(store: ModelStore, directory: Path, wanted: Iterable[_Wanted]) -> int:
    links = store.root.exists() and store.root.stat().st_dev == directory.stat().st_dev
    return sum(
        each.file.size
        for each in wanted
        if size_of(directory / FILES / stored_as(each.file.sha256)) != each.file.size
        and not (links and each.snapshot.is_relative_to(store.root))
    )


def _bring(store: ModelStore, wanted: _Wanted, folder: Path) -> Generator[Progress, None, None]:
    """Link or copy the file to the bundle, with verification."""
    file = wanted.file
    place = folder / stored_as(file.sha256)
    part = place.with_name(f"{place.name}.part")
    if size_of(place) is not None and (yield from is_whole(place, file)):
        return
    path = (wanted.snapshot / file.path).resolve()  # the Hub's cache consists of links
    try:
        if wanted.snapshot.is_relative_to(store.root):  # users may modify files outside the store
            linked = yield from link_checked(path, file, part, place, "staging")
            if linked:
                return
        with path.open("rb") as source:
            yield from copy_checked(source, file, part, place, "staging")
    except OSError as error:
        raise StoreError(f"cannot stage '{wanted.name}': {path}: {error.strerror}") from error
    except StoreError as error:
        raise StoreError(f"cannot stage '{wanted.name}': {error}") from error


def _prune(directory: Path, bundle: Bundle) -> None:
    """Remove unneeded files from the bundle, and leftovers of killed runs."""
    known = {stored_as(sha256) for sha256 in bundle.files}
    for folder in (FILES, MANIFESTS):
        for path in (directory / folder).iterdir():
            if path.name.lstrip(".").startswith("sha256-") and path.name not in known:
                path.unlink()
    for path in directory.glob(f".{INDEX}.*.tmp"):
        path.unlink()
    named = {wheel.path for wheel in bundle.wheels}
    for path in (directory / WHEELS).glob("*"):
        if is_ours(path.name) and path.name not in named:
            path.unlink()
        elif path.name.startswith(UNFINISHED):
            shutil.rmtree(path)
