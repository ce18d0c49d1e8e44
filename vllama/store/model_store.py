"""The model store on disk: a JSON manifest per name, and snapshots; nothing is kept in memory.

    ROOT/names/<host>/<namespace>/<model>/<tag>.json    manifests, path in lower case
    ROOT/snapshots/<identity>/                          files of pulled and uploaded models
    ROOT/blobs/                                         uploads without a model yet
    ROOT/staging/                                       running pulls and conversions, and all locks

Several processes may use one store at the same time: each change is one rename. A snapshot is removed only under the
exclusive lock of its identity and while no manifest refers to it; a process that will refer to it holds a shared lock.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from vllama.errors import InvalidName, ManifestCorrupt, ModelNotFound, StoreError, VllamaError
from vllama.names import ModelName
from vllama.store.foreign_files import read_bounded
from vllama.store.manifest import Manifest
from vllama.store.progress import Progress
from vllama.store.writes import store_writes

log = logging.getLogger(__name__)

_LOOK_AGAIN_SECONDS = 0.5
_LARGEST_MANIFEST = 1 << 30
_SAFE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]*")
_IDENTITY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


class ModelStore:
    """The models under one directory, which is created with the first model.

    GGUF files are converted with `precision`, one of PRECISIONS; `insists` says that a stored model with another one is
    not what was asked for.
    """

    def __init__(self, root: Path, precision: str = "exact", *, insists: bool = False) -> None:
        self.root = root.absolute()
        self.precision = precision
        self.insists = insists
        self._held: ExitStack | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ModelStore) and self.root == other.root

    def __hash__(self) -> int:
        return hash(self.root)

    def converting(self, precision: str) -> ModelStore:
        """Return this store, insisting on this precision; "" changes nothing."""
        return ModelStore(self.root, precision, insists=True) if precision else self

    @contextmanager
    def session(self) -> Iterator[ModelStore]:
        """Return the store for work that ends in `put`.

        Snapshots adopted or held through it are not removed until the block ends.
        """
        with ExitStack() as held:
            session = ModelStore(self.root, self.precision, insists=self.insists)
            session._held = held
            yield session

    def hold(self, snapshot: Path) -> bool:
        """Protect the snapshot from removal until the session ends; return whether it exists.

        Does nothing outside a session and for snapshots outside the store.
        """
        identity = self.identity(snapshot)
        if self._held is not None and identity is not None:
            with store_writes():
                self._held.enter_context(self._shared(identity))
        return snapshot.is_dir()

    def hold_all(self, manifest: Manifest) -> None:
        """Protect all directories of a model from removal."""
        for snapshot in manifest.snapshots:
            self.hold(snapshot)

    def identity(self, snapshot: Path) -> str | None:
        """Return the identity of one of the store's own snapshots; None for a directory elsewhere."""
        place = self.root / snapshot
        for base in (self.root / "snapshots", (self.root / "snapshots").resolve()):
            if place.is_relative_to(base) and place != base:
                return place.relative_to(base).parts[0]
        return None

    def list(self) -> list[Manifest]:
        """Return all manifests, newest first; damaged ones are logged and skipped."""
        manifests = []
        for _, found in self._all():
            if isinstance(found, Manifest):
                manifests.append(found)
            else:
                log.warning("not listed: %s", found)
        return sorted(manifests, key=lambda manifest: manifest.modified_at, reverse=True)

    def unreadable(self) -> dict[str, str]:
        """Map the path below the root of each manifest that `list` skips to its problem."""
        found = {str(path.relative_to(self.root)): found for path, found in self._all()}
        return {path: str(error) for path, error in found.items() if not isinstance(error, Manifest)}

    def _all(self) -> Iterator[tuple[Path, Manifest | Exception]]:
        for path in (self.root / "names").glob("*/*/*/*.json"):
            try:
                yield path, self._read(path)
            except FileNotFoundError:
                continue  # removed since the directory was listed
            except (VllamaError, OSError) as error:
                yield path, error

    def get(self, name: ModelName) -> Manifest:
        """Return the manifest of this name, ignoring case. Raises ModelNotFound or ManifestCorrupt."""
        try:
            return self._read(self._path(name))
        except (FileNotFoundError, NotADirectoryError, InvalidName) as error:
            raise ModelNotFound(name.display) from error
        except OSError as error:
            raise StoreError(f"cannot read the manifest of '{name.display}': {error}") from error

    def put(self, manifest: Manifest) -> None:
        """Store the manifest under its name atomically: a reader sees the old one or the new one.

        Raises StoreError, also if the store's own snapshot that it refers to was removed.
        """
        path = self._path(manifest.name)
        try:
            with ExitStack() as lock:
                for place in manifest.snapshots:
                    if (identity := self.identity(place)) is not None:
                        lock.enter_context(self._shared(identity))
                        if not place.is_dir():
                            raise FileNotFoundError(errno.ENOENT, "its files were removed; pull it again", identity)
                manifest = manifest.moved(self._relative)
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(path, manifest.to_json())
        except OSError as error:
            raise StoreError(f"cannot store '{manifest.name.display}': {error}") from error

    def copy(self, source: ModelName, destination: ModelName) -> None:
        """Store `destination` as another name for the same files. Raises ModelNotFound."""
        with self.session() as session:
            session.hold_all(self.get(source))
            session.put(replace(self.get(source), name=destination, modified_at=datetime.now(UTC)))

    def remove(self, name: ModelName) -> None:
        """Remove the name but not its snapshot, which `garbage.delete` removes too. Raises ModelNotFound."""
        try:
            path = self._path(name)
            path.unlink()
        except (FileNotFoundError, NotADirectoryError, InvalidName) as error:
            raise ModelNotFound(name.display) from error
        except OSError as error:
            raise StoreError(f"cannot remove '{name.display}': {error}") from error
        sync(path.parent)

    def snapshot_directory(self, identity: str) -> Path:
        """Return the path of the snapshot of this identity, which may not exist."""
        if not _IDENTITY.fullmatch(identity):
            raise StoreError(f"{identity!r} is not a valid snapshot name")
        return self.root / "snapshots" / identity

    @contextmanager
    def staging(self, key: str, *, resume: bool = False) -> Iterator[Path]:
        """Provide a directory for building a snapshot, to one process at a time per key.

        Waits while another process holds the key; work in steps uses `turn` instead. The directory is empty and is
        removed at the end; leftovers of killed processes are removed first, whatever their keys. With `resume` it
        keeps the files of a block that was killed or that raised, and is removed only if the block succeeds. Raises
        StoreError where the store cannot be written to; an OSError of the block passes.
        """
        with store_writes():
            lock = _lock(self.lock_path(key), fcntl.LOCK_EX)
        with self._staged(key, lock, resume=resume) as directory:
            yield directory

    def turn(self, key: str, *, resume: bool = False) -> Generator[Progress, None, AbstractContextManager[Path]]:
        """Wait until no other holds the key, a step at a time, and return the context manager of `staging`.

        The steps ask for pauses, during which no thread is needed.
        """
        while True:
            with store_writes(), suppress(BlockingIOError):
                lock = _lock(self.lock_path(key), fcntl.LOCK_EX | fcntl.LOCK_NB)
                return self._staged(key, lock, resume=resume)
            yield Progress("waiting for another import of the same files", pause=_LOOK_AGAIN_SECONDS)

    @contextmanager
    def _staged(self, key: str, lock: BinaryIO, *, resume: bool) -> Iterator[Path]:
        """Provide the directory of `staging` under this lock, and give the lock up at the end."""
        parent = self.root / "staging"
        with lock, ExitStack() as held:
            with store_writes():
                self.remove_leftovers()
                if resume:
                    directory = parent / f"{key}@resume"
                    directory.mkdir(exist_ok=True)
                else:
                    for leftover in parent.glob(f"{key}@*"):
                        shutil.rmtree(leftover, ignore_errors=True)
                    # A new name each time: a converter that outlived its parent may still write to the old one.
                    new = tempfile.TemporaryDirectory(prefix=f"{key}@", dir=parent, ignore_cleanup_errors=True)
                    directory = Path(held.enter_context(new))
            try:
                yield directory
                if resume:
                    with store_writes():
                        shutil.rmtree(directory)
            finally:
                with suppress(OSError):  # whoever waits for it makes a new one
                    self.lock_path(key).unlink()

    def remove_leftovers(self) -> None:
        """Remove the staging directories of killed processes, which are as large as models, but none to be resumed."""
        for leftover in (self.root / "staging").glob("*@*"):
            if not leftover.name.endswith("@resume"):
                with suppress(OSError, StoreError), self.alone(leftover.name.partition("@")[0]) as is_alone:
                    if is_alone:
                        shutil.rmtree(leftover, ignore_errors=True)

    @contextmanager
    def alone(self, key: str) -> Iterator[bool]:
        """Hold a key of `staging`, or the identity of a snapshot, exclusively; yield False if another process holds it.

        The lock file is removed at the end.
        """
        path = self.lock_path(key)
        with ExitStack() as held:
            try:
                held.enter_context(_locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB))
                is_alone = True
            except BlockingIOError:
                is_alone = False
            yield is_alone
            if is_alone:
                path.unlink(missing_ok=True)

    @contextmanager
    def _shared(self, identity: str) -> Iterator[None]:
        path = self.lock_path(identity)
        with _locked(path, fcntl.LOCK_SH) as lock:
            try:
                yield
            finally:
                with suppress(OSError):  # another process holds it: the last one removes it
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if _is_at(lock, path):
                        path.unlink()

    def lock_path(self, key: str) -> Path:
        """Return the path of this key's lock, which may not exist."""
        if not _IDENTITY.fullmatch(key):
            raise StoreError(f"{key!r} is not a valid staging directory name")
        return self.root / "staging" / f"{key}.lock"

    def adopt(self, staged: Path, identity: str) -> Path:
        """Move a finished directory to its path among the snapshots and return that path.

        The identity is derived from the content, so if the snapshot exists, its files are replaced
        one by one with the same bytes, which repairs damage without disturbing readers.
        """
        place = self.snapshot_directory(identity)
        try:
            self.hold(place)
            for path in staged.rglob("*"):
                sync(path)
            sync(staged)
            place.parent.mkdir(parents=True, exist_ok=True)
            with suppress(OSError):  # not empty: it already exists
                staged.rename(place)
            if staged.exists():
                for path in sorted(staged.rglob("*")):
                    target = place / path.relative_to(staged)
                    if path.is_dir():
                        target.mkdir(parents=True, exist_ok=True)
                    else:
                        path.replace(target)
                sync(place)
            sync(place.parent)
        except OSError as error:
            raise StoreError(f"cannot move the snapshot to {place}: {error}") from error
        return place

    def _path(self, name: ModelName) -> Path:
        parts = [part.lower() for part in (name.host, name.namespace, name.model, name.tag)]
        if not all(_SAFE.fullmatch(part) and ".." not in part and len(part) <= 250 for part in parts):
            raise InvalidName
        *folders, tag = parts
        return self.root.joinpath("names", *folders, f"{tag}.json")

    def _read(self, path: Path) -> Manifest:
        # Every request reads a manifest, and parsing it takes longer than the rest of the request.
        state = path.stat()
        return self._parse(path, (state.st_mtime_ns, state.st_size, state.st_ino))

    @lru_cache(maxsize=1024)  # noqa: B019 - a store lives as long as its process
    def _parse(self, path: Path, state: object) -> Manifest:
        """Read a manifest; a new `state` invalidates the cached one."""
        del state
        try:
            manifest = Manifest.from_json(read_bounded(path, _LARGEST_MANIFEST))
        except ManifestCorrupt as error:
            raise ManifestCorrupt(f"damaged manifest {path}: {error}; pull the model again") from error
        if self._path(manifest.name) != path:
            raise ManifestCorrupt(f"damaged manifest {path}: it belongs to '{manifest.name.display}'")
        return manifest.moved(self.root.joinpath)

    def _relative(self, snapshot: Path) -> Path:
        """Return the directory as stored in manifests: relative, so that the whole store can be moved."""
        return snapshot.relative_to(self.root) if snapshot.is_relative_to(self.root) else snapshot


def write_atomically(path: Path, data: bytes) -> None:
    """Write to a temporary file, sync and rename it, so that a kill leaves the old or the new file."""
    temporary, file = new_locked_file(path.parent, f".{path.name}.", ".tmp")
    with file:
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    sync(path.parent)


def new_locked_file(directory: Path, prefix: str, suffix: str = "") -> tuple[Path, BinaryIO]:
    """Create a file that belongs to this process while it is open; see `remove_orphan`."""
    while True:
        path = directory / f"{prefix}{secrets.token_hex(8)}{suffix}"
        file = path.open("xb")
        fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return path, file
        file.close()  # another process took it for an orphan before we locked it


def remove_orphan(path: Path, *, dry_run: bool = False) -> bool:
    """Remove a file of `new_locked_file` whose process, and so its lock, has ended; return whether it was one."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_at(file, path):
                return False  # it was renamed to its final name
            if not dry_run:
                path.unlink()
    except OSError:
        return False
    return True


@contextmanager
def _locked(path: Path, how: int) -> Iterator[BinaryIO]:
    """Hold the lock of `_lock` during the block."""
    with _lock(path, how) as lock:
        yield lock


def _lock(path: Path, how: int) -> BinaryIO:
    """Create and lock the file; a process that removes the file holds its lock. Raises BlockingIOError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        lock = open_lock(path)
        try:
            fcntl.flock(lock, how)
        except BaseException:
            lock.close()
            raise
        if _is_at(lock, path):
            return lock
        lock.close()


def open_lock(path: Path) -> BinaryIO:
    """Open the file to lock it, made where it is not there; a link is refused, and no byte of it changes."""
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666), "r+b")


def _is_at(file: BinaryIO, path: Path) -> bool:
    """Return whether the open file is the one at this path."""
    with suppress(OSError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


def sync(path: Path) -> None:
    """Wait until the file, or the entries of the directory, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
