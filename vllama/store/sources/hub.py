"""Source of models on the Hugging Face Hub or a mirror (HF_ENDPOINT): pinned, resumable and verified."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from vllama.errors import SourceUnavailable, StoreError
from vllama.names import ModelName
from vllama.store.catalogue import catalogue
from vllama.store.description import describe
from vllama.store.gguf.header import check_projector
from vllama.store.loadable import check_loadable
from vllama.store.manifest import Manifest, ManifestFile, Source, content_digest
from vllama.store.model_import import Steps, from_path, held_file, plain_manifest
from vllama.store.model_store import ModelStore
from vllama.store.progress import Progress
from vllama.store.remote_code import TRUST, is_trusted
from vllama.store.snapshot import find_files
from vllama.store.sources.hub_listing import (
    Listing,
    RemoteFile,
    gguf_file,
    has_gguf,
    has_snapshot,
    label_of,
    projector_file,
    snapshot_files,
)
from vllama.store.sources.hub_process import HubProcess
from vllama.store.sources.hub_transfer import LINKED, PART, Patience, beside
from vllama.store.sources.pull_steps import bars, has_precision, progress_of, put, stored_whole, tell_of_code
from vllama.store.writes import store_writes

MAIN = "main"
"""The default branch for names without a revision."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SPARE = 256 << 20
"""Bytes that a pull leaves free on the disk."""


@dataclass(frozen=True, slots=True)
class HubSource:
    """A repository. `revision` is a branch, tag or commit, or the quantization of a GGUF file ("Q4_K_M").

    `license` is used if neither a file nor the repository's card has one; `gated` comes from the catalogue.
    `trusted` pulls the repository's own code too, and lets the model's worker run it.
    """

    repository: str
    revision: str = MAIN
    license: str = ""
    gated: bool = False
    trusted: bool = False
    patience: Patience = field(default=Patience())

    def pull(self, store: ModelStore, name: ModelName, *, force: bool) -> Generator[Progress, None, None]:
        """Bring the model here and store its manifest under this name, unless both are there; `force` does it anyway.

        Raises SourceUnavailable or StoreError. Closing the generator ends the work; the name stays as it was.
        """
        is_pinned = _COMMIT.fullmatch(self.revision) is not None
        pinned = Source("hub", self.repository, self.revision)
        if is_pinned and not force and (stored := self._current(store, name, pinned)):
            yield from bars(stored)  # no request is needed
            return
        label = label_of(self.revision)
        with HubProcess(self.patience, gated=self.gated) as hub:
            listing = hub.list_files(self.repository, MAIN if label else self.revision)
            gguf = gguf_file(listing, label) if label or _is_gguf_only(listing) else None
            if gguf and self.trusted:
                raise SourceUnavailable(f"a GGUF file has no code of its own; omit {TRUST}")
            projector = projector_file(listing) if gguf else None
            ggufs = [file for file in (gguf, projector) if file]
            wanted = ggufs or snapshot_files(listing, code=self.trusted)
            locator = "/".join([self.repository, "+".join(file.path for file in ggufs)]) if gguf else self.repository
            source = Source("hub", locator, listing.commit)
            key = _staging_key(locator)
            with (yield from store.turn(key, resume=True)) as staging:
                if not force and (stored := self._current(store, name, source)):
                    yield from bars(stored)
                    return
                if gguf and not force and (twin := _converted(store, source)):
                    yield from bars(twin)
                    plain = plain_manifest(name, twin.snapshot, twin.files, source, datetime.now(UTC))
                    yield from put(store, replace(plain, license=twin.license))
                    return
                with store_writes():
                    (staging / "files").mkdir(exist_ok=True)
                if not force:
                    _take_stored(store, wanted, staging / "files")
                _make_ready(wanted, staging / "files")
                if not gguf and not force:
                    yield from self._check_loadable(hub, listing, wanted, staging / "files", store.root)
                files = yield from _bring(hub, listing, wanted, staging / "files")
                if gguf:
                    places = [staging / "files" / file.key for file in ggufs]
                    manifest = yield from _from_ggufs(store, name, *places)
                else:
                    manifest = yield from self._make_snapshot(store, name, files, wanted, staging)
                described = describe(manifest)  # refuse damaged settings now, not at the first request
                stated = "" if described.license else listing.license or self.license
                yield from put(store, replace(manifest, source=source, license=stated))

    def _check_loadable(
        self, hub: HubProcess, listing: Listing, wanted: list[RemoteFile], directory: Path, root: Path
    ) -> Iterator[Progress]:
        """Fetch config.json before all else, and refuse what the installed vLLM cannot load."""
        settings = next(file for file in wanted if file.path == "config.json")
        yield from _bring(hub, listing, [settings], directory)
        place = directory / settings.key
        check_loadable(place, self.repository, listing.base, catalogue(root), trusted=self.trusted)

    def _current(self, store: ModelStore, name: ModelName, source: Source) -> Manifest | None:
        """Return the stored manifest if it is this model; trust in its code need not be repeated."""
        stored = stored_whole(store, name)
        is_enough = stored and stored.source == source and (is_trusted(stored.engine_flags) or not self.trusted)
        return stored if is_enough else None

    def _make_snapshot(
        self, store: ModelStore, name: ModelName, files: list[ManifestFile], wanted: list[RemoteFile], staging: Path
    ) -> Generator[Progress, None, Manifest]:
        """Link the files to their paths; after a kill this is repeated."""
        snapshot = staging / "snapshot"
        with store_writes():
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


def _from_ggufs(store: ModelStore, name: ModelName, text: Path, projector: Path | None = None) -> Steps:
    """Convert a GGUF file, with its vision tower if that can be converted."""
    if projector is not None:
        try:
            check_projector(text, projector)
        except StoreError as error:
            yield Progress(f"the model will take no images: {error}")
            projector = None
    return (yield from from_path(store, name, text, projector))


def _converted(store: ModelStore, source: Source) -> Manifest | None:
    """Return a model of any name that was converted from this GGUF file, because a conversion takes a minute."""
    for model in store.list():
        if model.source == source and not model.damaged_files() and has_precision(store, model):
            return model
    return None


def _is_gguf_only(listing: Listing) -> bool:
    return has_gguf(listing) and not has_snapshot(listing)


def _take_stored(store: ModelStore, wanted: list[RemoteFile], directory: Path) -> None:
    """Link the files that other stored models have; they are verified like downloads."""
    for file in wanted:
        place = directory / file.key
        if file.sha256 and not place.exists() and (held := held_file(store, file.sha256)):
            with store_writes():
                beside(place, PART).unlink(missing_ok=True)
                beside(place, LINKED).unlink(missing_ok=True)
                beside(place, LINKED).hardlink_to(held)


def _make_ready(wanted: list[RemoteFile], directory: Path) -> None:
    """Remove leftovers of a pull of another commit. Raises StoreError where the disk has no room for the files."""
    keys = {file.key for file in wanted}
    with store_writes():
        for leftover in directory.iterdir():
            if leftover.name.removesuffix(PART).removesuffix(LINKED) not in keys:
                leftover.unlink()
    _check_room(wanted, directory)


def _bring(
    hub: HubProcess, listing: Listing, wanted: list[RemoteFile], directory: Path
) -> Generator[Progress, None, list[ManifestFile]]:
    """Download the files to `directory`, each named by its key."""
    known = {file.path: file for file in wanted}
    for at, fetched in hub.fetch(listing, wanted, directory):
        for path, size in at.items():
            if known[path].sha256:
                yield progress_of(known[path].sha256, known[path].size, size)
        if fetched:
            sizes = {path: (directory / known[path].key).stat().st_size for path in fetched}
            files = [ManifestFile(path, sizes[path], sha256) for path, sha256 in sorted(fetched.items())]
    for file in files:
        yield progress_of(file.sha256, file.size, file.size)
    return files


def _check_room(wanted: list[RemoteFile], directory: Path) -> None:
    """Raise StoreError where the disk has no room for what is still to come, as far as sizes are known."""
    here = sum(path.stat().st_size for path in directory.iterdir())
    needed = sum({file.key: file.size or 0 for file in wanted}.values()) - here
    free = shutil.disk_usage(directory).free
    if needed + _SPARE > free:
        raise StoreError(
            f"not enough disk space: {_gigabytes(needed)} to download, {_gigabytes(free)} free in "
            f"{directory.parents[1].parent}; remove models that you do not need, or set OLLAMA_MODELS to a directory "
            "on a larger disk"
        )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _staging_key(locator: str) -> str:
    digest = hashlib.sha256(locator.encode()).hexdigest()[:16]
    return f"hub-{re.sub(r'[^A-Za-z0-9_.-]', '--', locator)[:80]}-{digest}"
