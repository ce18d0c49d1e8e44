"""The store on disk: one small JSON per name, snapshots beside them; nothing is kept in memory.

    ROOT/names/<host>/<namespace>/<model>/<tag>.json    manifests, path in lower case
    ROOT/snapshots/<identity>/                          files of models that were pulled or uploaded
    ROOT/blobs/                                         uploads of which no model was made yet
    ROOT/staging/                                       pulls and conversions under way, and their locks

Several processes may use one store at a time: each change is one rename.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

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
        """Store the manifest under its name; a reader sees the old one or the new one, never a part."""
        if manifest.snapshot.is_relative_to(self.root):  # so that the whole store can be moved
            manifest = replace(manifest, snapshot=manifest.snapshot.relative_to(self.root))
        path = self._path(manifest.name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, manifest.to_json())
        except OSError as error:
            raise StoreError(f"cannot store '{manifest.name.display}': {error}") from error

    def copy(self, source: ModelName, destination: ModelName) -> None:
        """Make `destination` another name for the same files. Raises ModelNotFound."""
        self.put(replace(self.get(source), name=destination, modified_at=datetime.now(UTC)))

    def remove(self, name: ModelName) -> None:
        """Forget the name. Its snapshot stays: another name may use it. Raises ModelNotFound."""
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
            parent.mkdir(parents=True, exist_ok=True)
            with self._lock_of(key).open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
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
            with self._lock_of(key).open("r") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False  # there is no such lock
        return False

    def _lock_of(self, key: str) -> Path:
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
        return replace(manifest, snapshot=self.root / manifest.snapshot)


def write_atomically(path: Path, data: bytes) -> None:
    """Write to a temporary file beside it, sync, rename: a kill leaves the old file or the new."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until the file, or the entries of the directory, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
