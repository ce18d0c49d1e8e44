"""Compiled code of a model (`vllama.store.caches`) in a bundle.

Engines execute this code, so it is staged and loaded only on request, by users who trust the bundle.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path

from vllama.errors import StoreError
from vllama.store import caches
from vllama.store.bundle import FILES, open_inside, stored_as
from vllama.store.copying import check_room, copy_checked, is_whole
from vllama.store.hashing import hash_file
from vllama.store.manifest import ManifestFile
from vllama.store.progress import Progress
from vllama.store.writes import disk_errors


def stage_cache(root: Path, key: str, directory: Path) -> Generator[Progress, None, tuple[ManifestFile, ...]]:
    """Copy the cache with this key to the bundle and return its files; `root` is the store's.

    The files are copied, not linked, because engines write to them. Raises StoreError, also if an engine writes now.
    """
    listed = sorted(caches.files(root, key))
    check_room(directory, sum(path.stat().st_size for _, path in listed), "use a larger disk")
    files: list[ManifestFile] = []
    for path, place in listed:
        found = yield from hash_file(place.parent, place.name)
        file = ManifestFile(path, found.size, found.sha256)
        target = directory / FILES / stored_as(file.sha256)
        if not (yield from is_whole(target, file)):
            with disk_errors(f"read {place}"):
                source = place.open("rb")
            with source:
                yield from copy_checked(source, file, target.with_name(f"{target.name}.part"), target, "staging")
        files.append(file)
    return tuple(files)


def load_cache(
    root: Path, key: str, files: Sequence[ManifestFile], directory: Path, part: Path
) -> Generator[Progress, None, None]:
    """Copy the files of the bundle to the cache with this key; existing files are kept.

    `part` is the path of the partial file. Raises StoreError if a file is damaged, or if users other than the owner can
    write to the cache.
    """
    cache = caches.use(root, key)
    if cache is None:
        raise StoreError(
            f"{caches.directory(root, key)} is not a safe directory for compiled code; see the warning above"
        )
    with closing(cache):
        top = caches.directory(root, key)
        within = top.parent.resolve()
        check_room(top, sum(file.size for file in files), "set OLLAMA_MODELS to a larger disk")
        for file in files:
            target = top / file.path
            if target.exists():
                continue
            _make_folder(target.parent, within)
            with open_inside(directory, FILES, stored_as(file.sha256)) as source:
                yield from copy_checked(source, file, part, target, "loading")


def _make_folder(folder: Path, within: Path) -> None:
    """Create the folder. Raises StoreError if a link leads out of the caches."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.resolve().is_relative_to(within):
        raise StoreError(f"{folder} is outside {within}")
    folder.mkdir(parents=True, exist_ok=True)
