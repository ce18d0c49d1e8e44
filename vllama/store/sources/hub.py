"""The Hugging Face Hub, or a mirror (HF_ENDPOINT): pinned to a commit, resumed after a kill, each file checked."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from vllama.errors import SourceUnavailable, StoreError
from vllama.names import ModelName
from vllama.store.base import from_path, held_file, plain_manifest
from vllama.store.description import describe
from vllama.store.manifest import Manifest, ManifestFile, Source, content_digest
from vllama.store.model_store import ModelStore
from vllama.store.progress import Progress
from vllama.store.remote_code import TRUST, is_trusted
from vllama.store.snapshot import find_files
from vllama.store.sources.base import bars, progress_of, put, stored_whole, tell_of_code
from vllama.store.sources.hub_listing import (
    Listing,
    RemoteFile,
    gguf_file,
    has_gguf,
    has_snapshot,
    label_of,
    snapshot_files,
)
from vllama.store.sources.hub_process import HubProcess
from vllama.store.sources.hub_transfer import Patience

MAIN = "main"
"""The branch that a name without a revision means."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SPARE = 256 << 20
"""Bytes that a pull leaves free on the disk."""

_LOOK_AGAIN_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class HubSource:
    """One repository. `revision` is a branch, tag or commit, or the quantisation of a GGUF file ("Q4_K_M").

    `license` is told where neither a file nor the repository's card tells one; `gated` is what the catalogue knows.
    `trusted` takes the repository's own code along, and lets the model's worker run it.
    """

    repository: str
    revision: str = MAIN
    license: str = ""
    gated: bool = False
    trusted: bool = False
    patience: Patience = field(default=Patience())

    def pull(self, store: ModelStore, name: ModelName, *, force: bool) -> Generator[Progress, None, None]:
        """See PullSource."""
        is_pinned = _COMMIT.fullmatch(self.revision) is not None
        pinned = Source("hub", self.repository, self.revision)
        if is_pinned and not force and (stored := self._current(store, name, pinned)):
            yield from bars(stored)  # nobody need be asked
            return
        label = label_of(self.revision)
        with HubProcess(self.patience, gated=self.gated) as hub:
            listing = hub.list_files(self.repository, MAIN if label else self.revision)
            gguf = gguf_file(listing, label) if label or _is_gguf_only(listing) else None
            if gguf and self.trusted:
                raise SourceUnavailable(f"a GGUF file brings no code: leave out {TRUST}")
            wanted = [gguf] if gguf else snapshot_files(listing, code=self.trusted)
            locator = f"{self.repository}/{gguf.path}" if gguf else self.repository
            source = Source("hub", locator, listing.commit)
            key = _staging_key(locator)
            yield from _wait_for_others(store, key)
            with store.staging(key, resume=True) as staging:
                if not force and (stored := self._current(store, name, source)):
                    yield from bars(stored)
                    return
                if gguf and not force and (twin := _converted(store, source)):
                    yield from bars(twin)
                    plain = plain_manifest(name, twin.snapshot, twin.files, source, datetime.now(UTC))
                    yield from put(store, replace(plain, license=twin.license))
                    return
                (staging / "files").mkdir(exist_ok=True)
                if not force:
                    _take_stored(store, wanted, staging / "files")
                files = yield from _bring(hub, listing, wanted, staging / "files")
                if gguf:
                    manifest = yield from from_path(store, name, staging / "files" / gguf.key)
                else:
                    manifest = yield from self._make_snapshot(store, name, files, wanted, staging)
                described = describe(manifest)  # damaged settings are refused now, not when a client asks
                stated = "" if described.license else listing.license or self.license
                yield from put(store, replace(manifest, source=source, license=stated))

    def _current(self, store: ModelStore, name: ModelName, source: Source) -> Manifest | None:
        """Return what is stored, if it is this. Who trusted its code need not say so again."""
        stored = stored_whole(store, name)
        is_enough = stored and stored.source == source and (is_trusted(stored.engine_flags) or not self.trusted)
        return stored if is_enough else None

    def _make_snapshot(
        self, store: ModelStore, name: ModelName, files: list[ManifestFile], wanted: list[RemoteFile], staging: Path
    ) -> Generator[Progress, None, Manifest]:
        """Give the files their paths, by links: what a kill interrupts here is done again."""
        snapshot = staging / "snapshot"
        shutil.rmtree(snapshot, ignore_errors=True)
        for file in wanted:
            target = snapshot / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(staging / "files" / file.key, target)
        yield Progress("verifying sha256 digest")
        try:
            usable = set(find_files(snapshot, code=self.trusted))
            yield from tell_of_code(name, self.repository, snapshot, usable, trusted=self.trusted)
        except StoreError as error:
            raise type(error)(str(error).replace(str(snapshot), "the repository")) from None
        kept = tuple(file for file in files if file.path in usable)
        place = store.adopt(snapshot, content_digest(kept))
        plain = plain_manifest(name, place, kept, Source("hub", "", ""), datetime.now(UTC))
        return replace(plain, engine_flags=(TRUST,) if self.trusted else ())


def _converted(store: ModelStore, source: Source) -> Manifest | None:
    """Return a model of any name that was made of this GGUF file: converting it takes a minute."""
    return next((model for model in store.list() if model.source == source and not model.damaged_files()), None)


def _is_gguf_only(listing: Listing) -> bool:
    return has_gguf(listing) and not has_snapshot(listing)


def _take_stored(store: ModelStore, wanted: list[RemoteFile], directory: Path) -> None:
    """Begin with the files that other models of the store have, by links; they are checked as if fetched."""
    for file in wanted:
        part = directory / f"{file.key}.part"
        if file.sha256 and not (directory / file.key).exists() and (held := held_file(store, file.sha256)):
            part.unlink(missing_ok=True)
            part.hardlink_to(held)


def _bring(
    hub: HubProcess, listing: Listing, wanted: list[RemoteFile], directory: Path
) -> Generator[Progress, None, list[ManifestFile]]:
    """Leave the files in `directory`, each named by its key."""
    keys = {file.key for file in wanted}
    for leftover in directory.iterdir():  # of another commit that was pulled in part
        if leftover.name.removesuffix(".part") not in keys:
            leftover.unlink()
    _check_room(wanted, directory)
    known = {file.path: file for file in wanted}
    for at, fetched in hub.fetch(listing, wanted, directory):
        for path, size in at.items():
            if known[path].sha256:
                yield progress_of(known[path].sha256, known[path].size, size)
        if fetched:
            files = [ManifestFile(path, known[path].size, sha256) for path, sha256 in sorted(fetched.items())]
    for file in files:
        yield progress_of(file.sha256, file.size, file.size)
    return files


def _check_room(wanted: list[RemoteFile], directory: Path) -> None:
    """Raise StoreError where the disk has no room for what is still to come."""
    here = sum(path.stat().st_size for path in directory.iterdir())
    needed = sum({file.key: file.size for file in wanted}.values()) - here
    free = shutil.disk_usage(directory).free
    if needed + _SPARE > free:
        raise StoreError(
            f"no room for the model: {_gigabytes(needed)} are still to be fetched, {_gigabytes(free)} are free in "
            f"{directory.parents[1].parent}; remove models that are not needed, or set OLLAMA_MODELS to a larger disk"
        )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _wait_for_others(store: ModelStore, key: str) -> Iterator[Progress]:
    """Give a sign of life as long as another process pulls the same."""
    while store.is_staged(key):
        yield Progress("waiting for another pull of the same model")
        time.sleep(_LOOK_AGAIN_SECONDS)


def _staging_key(locator: str) -> str:
    digest = hashlib.sha256(locator.encode()).hexdigest()[:16]
    return f"hub-{re.sub(r'[^A-Za-z0-9_.-]', '--', locator)[:80]}-{digest}"
