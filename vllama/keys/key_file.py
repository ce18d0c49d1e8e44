"""The key file: JSON with the digest and the rights of each key, replaced as a whole at each change."""

from __future__ import annotations

import fcntl
import json
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from vllama.errors import KeysError
from vllama.keys.key import Key

MOST_KEYS = 10_000
_LARGEST = 8 << 20
"""Maximum bytes of the file."""

Version = tuple[int, int, int]
"""Inode, time of change and size of a file: they differ after each change."""


class KeyFile:
    """The key file at one path. The file may be missing: then no keys are set up."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def version(self) -> Version | None:
        """Return what changes whenever the file changes; None if there is no file. Raises KeysError."""
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unreadable(self.path, error) from error
        return found.st_ino, found.st_mtime_ns, found.st_size

    def read(self) -> tuple[Key, ...] | None:
        """Return the keys; None if there is no file. Raises KeysError if it cannot be read or is invalid."""
        try:
            with self.path.open("rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                text = file.read(_LARGEST + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unreadable(self.path, error) from error
        if mode & stat.S_IWOTH:
            raise KeysError(f"every user can write {self.path}: run `chmod 600 {self.path}` and check its keys")
        if len(text) > _LARGEST:
            raise KeysError(f"{self.path} is larger than {_LARGEST >> 20} MiB")
        try:
            return _parse(text)
        except (KeysError, ValueError, RecursionError) as error:
            raise KeysError(f"{self.path} is not a valid key file: {error}") from None

    def add(self, key: Key) -> None:
        """Add a key. Raises KeysError if its name is taken, or the file cannot be written."""
        with self._changing() as keys:
            if any(other.name == key.name for other in keys):
                raise KeysError(f"a key named '{key.name}' exists; revoke it first, or choose another name")
            if len(keys) >= MOST_KEYS:
                raise KeysError(f"{self.path} has {MOST_KEYS} keys, which is the maximum")
            self._write([*keys, key])

    def remove(self, names: Sequence[str]) -> None:
        """Remove keys by their names; an empty file stays, so that the server stays closed.

        Raises KeysError, and removes none, if one of them does not exist.
        """
        with self._changing() as keys:
            unknown = [name for name in names if name not in {key.name for key in keys}]
            if unknown:
                raise KeysError(f"no key named '{unknown[0]:.80}' in {self.path}")
            self._write([key for key in keys if key.name not in names])

    @contextmanager
    def _changing(self) -> Iterator[Sequence[Key]]:
        """Yield the keys, and let no other process change the file meanwhile."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise KeysError(f"cannot write {self.path}: {error.strerror}") from error
        try:
            fcntl.flock(directory, fcntl.LOCK_EX)
            yield self.read() or ()
            os.fsync(directory)
        except OSError as error:
            raise KeysError(f"cannot write {self.path}: {error.strerror}") from error
        finally:
            os.close(directory)

    def _write(self, keys: Sequence[Key]) -> None:
        """Replace the file; if root does that, the file keeps its owner, so that the server can read it."""
        text = json.dumps({"version": 1, "keys": [key.to_record() for key in keys]}, indent=1).encode() + b"\n"
        new = self.path.with_name(f".{self.path.name}.new")
        with suppress(FileNotFoundError):
            new.unlink()  # left behind by a killed command; we hold the lock
        file = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(file, "wb") as out:
            if os.geteuid() == 0:
                owner = (self.path if self.path.exists() else self.path.parent).stat()
                os.fchown(file, owner.st_uid, owner.st_gid)
            out.write(text)
            out.flush()
            os.fsync(file)
        new.replace(self.path)


def _parse(text: bytes) -> tuple[Key, ...]:
    content = json.loads(text)
    if not isinstance(content, dict) or content.get("version") != 1 or not isinstance(content.get("keys"), list):
        raise KeysError("it is not an object with version 1 and a list of keys")
    if len(content["keys"]) > MOST_KEYS:
        raise KeysError(f"it has more than {MOST_KEYS} keys")
    keys = tuple(Key.from_record(record) for record in content["keys"])
    for values in ([key.name for key in keys], [key.digest for key in keys]):
        if len(set(values)) < len(values):
            raise KeysError("two keys have the same name or the same sha256")
    return keys


def _unreadable(path: Path, error: OSError) -> KeysError:
    return KeysError(f"cannot read the key file {path}: {error.strerror}")
