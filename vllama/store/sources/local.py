"""Models from this machine: a snapshot directory, which is used where it is and not copied, or a GGUF file."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from vllama.names import ModelName
from vllama.store.base import from_path, in_place
from vllama.store.manifest import Manifest, Source
from vllama.store.model_store import ModelStore
from vllama.store.progress import Progress
from vllama.store.snapshot import find_files
from vllama.store.sources.base import bars, put, stored_whole


@dataclass(frozen=True, slots=True)
class LocalSource:
    """A snapshot directory or a GGUF file."""

    path: Path

    def pull(self, store: ModelStore, name: ModelName, *, force: bool) -> Generator[Progress, None, None]:
        """See PullSource."""
        directory = self.path.expanduser().resolve()
        if directory.is_file():
            manifest = yield from from_path(store, name, directory)
            yield from put(store, manifest)
            return
        paths = find_files(directory)
        stored = None if force else stored_whole(store, name)
        if stored and stored.source == Source("local", str(directory), "") and _is_unchanged(stored, paths):
            yield from bars(stored)
            return
        manifest = yield from in_place(name, directory)
        yield from bars(manifest)
        yield from put(store, manifest)


def _is_unchanged(stored: Manifest, paths: list[str]) -> bool:
    """Whether a local directory still has the files that were hashed, none touched since."""
    since = stored.modified_at.timestamp()
    return [file.path for file in stored.files] == paths and all(
        max(stat.st_mtime, stat.st_ctime) < since
        for path in paths
        for stat in ((stored.snapshot / path).stat(), (stored.snapshot / path).lstat())
    )
