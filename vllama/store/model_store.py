"""The store on disk: one small JSON per name, snapshots beside them; nothing is kept in memory.

    ROOT/names/<host>/<namespace>/<model>/<tag>.json    manifests, path in lower case
    ROOT/snapshots/<identity>/                          files of models that were pulled or uploaded
    ROOT/blobs/                                         uploads of which no model was made yet
    ROOT/staging/                                       pulls and conversions under way, and all locks

Several processes may use one store at a time: each change is one rename. A snapshot is removed only under the
exclusive lock of its identity and while no manifest names it; whoever is about to name one holds that lock shared.
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
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from vllama.errors import InvalidName, ManifestCorrupt, ModelNotFound, StoreError, VllamaError
from vllama.names import ModelName
from vllama.store.manifest import Manifest

log = logging.getLogger(__name__)

_SAFE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]*")
_IDENTITY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


class ModelStore:
    """The models under one directory, which is made when the first is stored."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self._held: ExitStack | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ModelStore) and self.root == other.root

    def __hash__(self) -> int:
        return hash(self.root)

    @contextmanager
    def session(self) -> Iterator[ModelStore]:
        """Lend the store for work that ends in `put`.

        Until the end nobody removes a snapshot that was adopted, or held, through the store that is lent.
        """
        with ExitStack() as held:
            session = ModelStore(self.root)
            session._held = held
            yield session

    def hold(self, snapshot: Path) -> bool:
        """Keep the snapshot from being removed until the session ends; whether it is there.

        Outside of a session, and for a snapshot outside of the store, nothing is held.
        """
        identity = self.identity(snapshot)
        if self._held is not None and identity is not None:
            self._held.enter_context(self._shared(identity))
        return snapshot.is_dir()

    def hold_all(self, manifest: Manifest) -> None:
        """Hold all directories of a model."""
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
        """Return all manifests, the one modified last first; damaged ones are logged and left out."""
        manifests = []
        for _, found in self._all():
            if isinstance(found, Manifest):
                manifests.append(found)
            else:
                log.warning("left out of the list: %s", found)
        return sorted(manifests, key=lambda manifest: manifest.modified_at, reverse=True)

    def unreadable(self) -> dict[str, str]:
        """Return, for each manifest that `list` leaves out, its path below the root and what is wrong with it."""
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
        """Return the manifest of this name, in any case. Raises ModelNotFound or ManifestCorrupt."""
        try:
            return self._read(self._path(name))
        except (FileNotFoundError, NotADirectoryError, InvalidName) as error:
            raise ModelNotFound(name.display) from error
        except OSError as error:
            raise StoreError(f"cannot read the manifest of '{name.display}': {error}") from error

    def put(self, manifest: Manifest) -> None:
        """Store the manifest under its name; a reader sees the old one or the new one, never a part.

        Raises StoreError, also where the store's own snapshot that it names was removed.
        """
        path = self._path(manifest.name)
        try:
            with ExitStack() as lock:
                for place in manifest.snapshots:
                    if (identity := self.identity(place)) is not None:
                        lock.enter_context(self._shared(identity))
                        if not place.is_dir():
                            raise FileNotFoundError(errno.ENOENT, "its files were removed; get it again", identity)
                manifest = manifest.moved(self._relative)
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(path, manifest.to_json())
        except OSError as error:
            raise StoreError(f"cannot store '{manifest.name.display}': {error}") from error

    def copy(self, source: ModelName, destination: ModelName) -> None:
        """Make `destination` another name for the same files. Raises ModelNotFound."""
        with self.session() as session:
            session.hold_all(self.get(source))
            session.put(replace(self.get(source), name=destination, modified_at=datetime.now(UTC)))

    def remove(self, name: ModelName) -> None:
        """Forget the name. Its snapshot stays; `garbage.delete` takes that, too. Raises ModelNotFound."""
        try:
            path = self._path(name)
            path.unlink()
        except (FileNotFoundError, NotADirectoryError, InvalidName) as error:
            raise ModelNotFound(name.display) from error
        except OSError as error:
            raise StoreError(f"cannot remove '{name.display}': {error}") from error
        sync(path.parent)

    def snapshot_directory(self, identity: str) -> Path:
        """Return where the snapshot of this identity is, or would be."""
        if not _IDENTITY.fullmatch(identity):
            raise StoreError(f"{identity!r} cannot name a snapshot")
        return self.root / "snapshots" / identity

    @contextmanager
    def staging(self, key: str, *, resume: bool = False) -> Iterator[Path]:
        """Lend a directory in which a snapshot can grow, to one process at a time per key.

        Waits while another process holds the key. The directory is empty, and goes at the end; what a killed
        process left under the key is removed first. With `resume` it has what a block that was killed, or
        that raised, left in it, and goes only where the block ends well.
        """
        parent = self.root / "staging"
        try:
            with _locked(self.lock_path(key), fcntl.LOCK_EX):
                if resume:
                    directory = parent / f"{key}@resume"
                    directory.mkdir(exist_ok=True)
                    yield directory
                    shutil.rmtree(directory)
                    return
                for leftover in parent.glob(f"{key}@*"):
                    shutil.rmtree(leftover, ignore_errors=True)
                # A new name each time: a converter that outlived its parent may still write to the old.
                new = tempfile.TemporaryDirectory(prefix=f"{key}@", dir=parent, ignore_cleanup_errors=True)
                with new as name:
                    yield Path(name)
        except OSError as error:
            raise StoreError(f"cannot write to the model store: {error}") from error

    def is_staged(self, key: str) -> bool:
        """Whether another process holds this key of `staging` now."""
        try:
            with self.lock_path(key).open("r") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False  # there is no such lock
        return False

    @contextmanager
    def alone(self, key: str) -> Iterator[bool]:
        """Hold a key of `staging`, or the identity of a snapshot, exclusively; False where another has it.

        Its lock's file is gone at the end.
        """
        path = self.lock_path(key)
        try:
            with _locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB):
                yield True
                path.unlink(missing_ok=True)
        except BlockingIOError:
            yield False

    @contextmanager
    def _shared(self, identity: str) -> Iterator[None]:
        path = self.lock_path(identity)
        with _locked(path, fcntl.LOCK_SH) as lock:
            try:
                yield
            finally:
                with suppress(OSError):  # another holds it: the last one removes it
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if _is_at(lock, path):
                        path.unlink()

    def lock_path(self, key: str) -> Path:
        """Return where the lock of this key is, or would be."""
        if not _IDENTITY.fullmatch(key):
            raise StoreError(f"{key!r} cannot name a staging directory")
        return self.root / "staging" / f"{key}.lock"

    def adopt(self, staged: Path, identity: str) -> Path:
        """Move a finished directory to its place among the snapshots and return that place.

        The identity stands for the content, so where the snapshot exists already its files are
        replaced one by one by the same bytes: that heals damage and disturbs no reader.
        """
        place = self.snapshot_directory(identity)
        try:
            self.hold(place)
            for path in staged.rglob("*"):
                sync(path)
            sync(staged)
            place.parent.mkdir(parents=True, exist_ok=True)
            with suppress(OSError):  # not empty: it is there already
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
        # Every request of every client reads a manifest, and parsing it takes longer than all the rest of a request.
        state = path.stat()
        return self._parse(path, (state.st_mtime_ns, state.st_size, state.st_ino))

    @lru_cache(maxsize=1024)  # noqa: B019 - a store lives as long as its process
    def _parse(self, path: Path, state: object) -> Manifest:
        """Read a manifest; a new `state` makes the cache forget the old one."""
        del state
        try:
            manifest = Manifest.from_json(path.read_bytes())
        except ManifestCorrupt as error:
            raise ManifestCorrupt(f"damaged manifest {path}: {error}; pull the model again") from error
        if self._path(manifest.name) != path:
            raise ManifestCorrupt(f"damaged manifest {path}: it is that of '{manifest.name.display}'")
        return manifest.moved(self.root.joinpath)

    def _relative(self, snapshot: Path) -> Path:
        """The directory as the store's own manifests name it, so that the whole store can be moved."""
        return snapshot.relative_to(self.root) if snapshot.is_relative_to(self.root) else snapshot


def write_atomically(path: Path, data: bytes) -> None:
    """Write to a temporary file beside it, sync, rename: a kill leaves the old file or the new."""
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
    """Make a new file that is ours as long as it is open: see `remove_orphan`."""
    while True:
        path = directory / f"{prefix}{secrets.token_hex(8)}{suffix}"
        file = path.open("xb")
        fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return path, file
        file.close()  # another process took it for an orphan before the lock was ours


def remove_orphan(path: Path, *, dry_run: bool = False) -> bool:
    """Remove a file of `new_locked_file` whose process is gone: with it went its lock. Whether it was one."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_at(file, path):
                return False  # it got its real name
            if not dry_run:
                path.unlink()
    except OSError:
        return False
    return True


@contextmanager
def _locked(path: Path, how: int) -> Iterator[BinaryIO]:
    """Lock the file, which is made; who removes it does so under its lock."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with path.open("wb") as lock:
            fcntl.flock(lock, how)
            if _is_at(lock, path):
                yield lock
                return


def _is_at(file: BinaryIO, path: Path) -> bool:
    """Whether the open file is the one at this path."""
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
