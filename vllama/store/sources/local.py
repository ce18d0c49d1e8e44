"""Source of models on this machine: a snapshot directory, which is served in place, or a GGUF file."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path

from vllama.errors import SourceUnavailable
from vllama.names import ModelName
from vllama.store.manifest import Manifest, Source
from vllama.store.model_import import from_path, in_place
from vllama.store.model_store import ModelStore
from vllama.store.progress import Progress
from vllama.store.remote_code import TRUST, is_trusted
from vllama.store.snapshot import find_files
from vllama.store.sources.pull_steps import bars, put, stored_whole, tell_of_code


@dataclass(frozen=True, slots=True)
class LocalSource:
    """A snapshot directory or a GGUF file. `trusted` lets the model's worker run the code in the directory."""

    path: Path
    trusted: bool = False

    def pull(self, store: ModelStore, name: ModelName, *, force: bool) -> Generator[Progress, None, None]:
        """Bring the model here and store its manifest under this name, unless both are there; `force` does it anyway.

        Raises SourceUnavailable or StoreError. Closing the generator ends the work; the name stays as it was.
        """
        directory = self.path.expanduser().resolve()
        if directory.is_file():
            if self.trusted:
                raise SourceUnavailable(f"a GGUF file has no code of its own; omit {TRUST}")
            manifest = yield from from_path(store, name, directory)
            yield from put(store, manifest)
            return
        stored = None if force else stored_whole(store, name)
        trusted = self.trusted or (stored is not None and is_trusted(stored.engine_flags))
        paths = find_files(directory, code=trusted)
        if (
            stored
            and stored.source == Source("local", str(directory), "")
            and is_trusted(stored.engine_flags) >= self.trusted
            and _is_unchanged(stored, paths)
        ):
            yield from bars(stored)
            return
        yield from tell_of_code(name, str(directory), directory, set(paths), trusted=self.trusted)
        manifest = yield from in_place(name, directory, code=self.trusted)
        yield from bars(manifest)
        yield from put(store, replace(manifest, engine_flags=(TRUST,) if self.trusted else ()))


def _is_unchanged(stored: Manifest, paths: list[str]) -> bool:
    """Return whether the files of a local directory are unchanged since they were hashed."""
    since = stored.modified_at.timestamp()
    return [file.path for file in stored.files] == paths and all(
        max(stat.st_mtime, stat.st_ctime) < since
        for path in paths
        for stat in ((stored.snapshot / path).stat(), (stored.snapshot / path).lstat())
    )
