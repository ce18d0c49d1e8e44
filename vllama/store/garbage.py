"""Removal of unused files from the store, safe while other processes add models.

A snapshot is removed under the lock that a process holds until it has stored the snapshot's manifest, so never in
between. Files of killed processes are recognised by their locks, which ended with the process.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from vllama.errors import ManifestCorrupt, StoreError
from vllama.names import ModelName
from vllama.store import caches as compiled
from vllama.store.blobs import Blobs
from vllama.store.foreign_files import read_json
from vllama.store.model_store import ModelStore, remove_orphan

log = logging.getLogger(__name__)

_IN_USE = "in use by a running pull, create, import or load"
_LOADED = "in use by a loaded model"
_STOPPED = "interrupted pull, which continues when it is run again"
_PATIENCE_SECONDS, _LOOK_AGAIN_SECONDS = 1.0, 0.02

Links = Counter[tuple[int, int]]
"""Number of removed links to files, by device and inode."""


@dataclass(frozen=True, slots=True)
class Item:
    """An item to remove or keep. `kind`: snapshot, staging, blob, upload, manifest (incomplete) or cache.

    `size` is the number of bytes that its removal frees: files without other links.
    """

    kind: str
    path: Path
    size: int


@dataclass(frozen=True, slots=True)
class Report:
    """The result of `collect`: `kept` has the reasons, `failed` the error messages."""

    removed: list[Item] = field(default_factory=list)
    kept: list[tuple[Item, str]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    @property
    def freed(self) -> int:
        """Total freed bytes."""
        return sum(item.size for item in self.removed)


def collect(store: ModelStore, *, dry_run: bool = False, partial: bool = False, caches: bool = False) -> Report:
    """Remove files that no model needs, and with `partial` also the files of interrupted pulls.

    With `caches`, also removes compiled code of stored models that are not loaded. Uploads of the last hour are kept,
    because a model may still be created from them. With `dry_run` nothing is removed.
    """
    collection = _Collection(store, dry_run=dry_run, partial=partial)
    collection.staging()
    collection.snapshots()
    collection.orphans()
    collection.blobs()
    collection.caches(of_models=caches)
    return collection.report


def delete(store: ModelStore, name: ModelName) -> None:
    """Remove the name, and its snapshots if no other name needs them. Raises ModelNotFound or StoreError.

    Files that a worker has open stay readable for it. A snapshot that is just getting another name is kept.
    """
    try:
        snapshots = list(store.get(name).snapshots)
    except ManifestCorrupt:
        snapshots = []  # its snapshots are unknown; `collect` finds them
    store.remove(name)
    for snapshot in snapshots:
        if (identity := store.identity(snapshot)) is not None:
            _delete_unneeded(store, name, identity)


def _delete_unneeded(store: ModelStore, name: ModelName, identity: str) -> None:
    """Remove a snapshot of a removed name unless it is needed. Raises StoreError."""
    try:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while (taken := _take(store, identity)) is _BUSY and time.monotonic() < deadline:
            time.sleep(_LOOK_AGAIN_SECONDS)
    except ManifestCorrupt as error:
        log.warning("kept the files of '%s': %s", name.display, error)
    except OSError as error:
        raise StoreError(f"removed '{name.display}', but not all of its files: {error}; run `vllama gc`") from error
    else:
        if taken is _BUSY:
            log.info("kept the files of '%s': %s", name.display, _IN_USE)


def referenced(store: ModelStore) -> set[str]:
    """Return the identities of the snapshots that manifests refer to.

    Raises ManifestCorrupt if a manifest is unreadable, because then no snapshot can be considered unused.
    """
    found: set[str] = set()
    for path in (store.root / "names").glob("*/*/*/*.json"):
        try:
            record = read_json(path)
            adapter = record.get("adapter")
            snapshots = [record["snapshot"], *([adapter["snapshot"]] if adapter else [])]
            named = [store.identity(store.root / Path(snapshot)) for snapshot in snapshots]
        except FileNotFoundError:
            continue  # removed since the directory was listed
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ManifestCorrupt(
                f"damaged manifest {path}: {error!r}; until it is removed or pulled again, no snapshot can be removed"
            ) from error
        found.update(identity for identity in named if identity is not None)
    return found


_BUSY = Item("busy", Path(), 0)
"""Marker: another process holds the item."""


def _take(store: ModelStore, identity: str, gone: Links | None = None) -> Item | None:
    """Remove a snapshot; return None if it is needed or missing. Raises ManifestCorrupt or OSError.

    With `gone`, it is kept and its files are added to `gone`.
    """
    place = store.snapshot_directory(identity)
    with store.alone(identity) as is_alone:
        if not is_alone:
            return _BUSY
        if identity in referenced(store) or not place.is_dir():
            return None
        item = Item("snapshot", place, _freed(_files(place), gone))
        if gone is None:
            trash = store.root / "staging" / f"{identity}@{secrets.token_hex(8)}"
            place.rename(trash)  # one rename: a reader sees all of it or nothing, even after a kill
            _remove_tree(trash)
    return item


class _Collection:
    """State of one run of `collect`."""

    def __init__(self, store: ModelStore, *, dry_run: bool, partial: bool) -> None:
        self.report = Report()
        self._store = store
        self._partial = partial
        self._gone = Links() if dry_run else None

    def staging(self) -> None:
        """Remove directories of ended processes, and all locks that no process holds."""
        parent = self._store.root / "staging"
        for key in sorted({path.name.removesuffix(".lock").partition("@")[0] for path in parent.glob("*")}):
            try:
                with self._store.alone(key) as is_alone:
                    for directory in sorted(parent.glob(f"{key}@*")):
                        if not is_alone:
                            self._keep("staging", directory, _IN_USE)
                        elif directory.name.endswith("@resume") and not self._partial:
                            self._keep("staging", directory, _STOPPED)
                        else:
                            self._remove("staging", directory)
            except (OSError, StoreError) as error:
                self.report.failed.append(str(error))

    def snapshots(self) -> None:
        """Remove snapshots that no manifest refers to."""
        try:
            needed = referenced(self._store)
            for place in sorted((self._store.root / "snapshots").glob("*")):
                if place.name in needed or place.is_symlink() or not place.is_dir():
                    continue
                taken = _take(self._store, place.name, self._gone)
                if taken is _BUSY:
                    self._keep("snapshot", place, _IN_USE)
                elif taken is not None:
                    self.report.removed.append(taken)
        except (OSError, StoreError) as error:
            self.report.failed.append(str(error))

    def orphans(self) -> None:
        """Remove incomplete uploads and manifests of ended processes."""
        uploads = (("upload", path) for path in Blobs(self._store.root).uploads())
        halves = (("manifest", path) for path in (self._store.root / "names").glob("*/*/*/.*.tmp"))
        for kind, path in (*uploads, *halves):
            item = Item(kind, path, _freed([path]))
            if remove_orphan(path, dry_run=self._gone is not None):
                self.report.removed.append(item)
            elif path.exists():
                self.report.kept.append((item, _IN_USE))

    def blobs(self) -> None:
        """Remove uploads from which no model was created."""
        for path in Blobs(self._store.root).unused():
            self._remove("blob", path)

    def caches(self, *, of_models: bool) -> None:
        """Remove compiled code for removed files; with `of_models`, all compiled code."""
        needed = set() if of_models else {compiled.key_of(manifest) for manifest in self._store.list()}
        for key, path in compiled.all_of(self._store.root).items():
            if key in needed:
                continue
            item = Item("cache", path, _freed(_files(path), self._gone))
            try:
                if self._gone is None and not compiled.remove(path):
                    self.report.kept.append((item, _LOADED))
                else:
                    self.report.removed.append(item)
            except OSError as error:
                self.report.failed.append(f"cannot remove {path}: {error}")

    def _keep(self, kind: str, path: Path, why: str) -> None:
        self.report.kept.append((Item(kind, path, _freed(_files(path))), why))

    def _remove(self, kind: str, path: Path) -> None:
        item = Item(kind, path, _freed(_files(path) if path.is_dir() else [path], self._gone))
        try:
            if self._gone is None:
                _remove_tree(path) if path.is_dir() else path.unlink(missing_ok=True)
            self.report.removed.append(item)
        except OSError as error:
            self.report.failed.append(f"cannot remove {path}: {error}")


def _remove_tree(directory: Path) -> None:
    try:
        shutil.rmtree(directory)
    except FileNotFoundError:  # another process is removing it too
        shutil.rmtree(directory, ignore_errors=True)


def _files(directory: Path) -> Iterator[Path]:
    return (Path(folder) / name for folder, _, names in os.walk(directory) for name in names)


def _freed(paths: Iterable[Path], gone: Links | None = None) -> int:
    """Return the bytes of files whose last links these are, given the links that are `gone`."""
    gone = Links() if gone is None else gone
    freed = 0
    for path in paths:
        try:
            state = path.lstat()
        except FileNotFoundError:
            continue
        gone[state.st_dev, state.st_ino] += 1
        if gone[state.st_dev, state.st_ino] == state.st_nlink:
            freed += state.st_size
    return freed
