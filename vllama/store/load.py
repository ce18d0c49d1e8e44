"""Loading of models from a bundle into the store, with verification of every file."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from vllama.errors import RequestError, StoreError, VllamaError
from vllama.names import ModelName
from vllama.store import adapter
from vllama.store.bundle import FILES, WHEELS, Bundle, open_inside, read_bundle, read_manifest, size_of, stored_as
from vllama.store.bundled_caches import load_cache
from vllama.store.caches import key_of
from vllama.store.copying import check_room, copy_checked, is_whole, link_checked
from vllama.store.description import describe
from vllama.store.manifest import Manifest, ManifestFile, content_digest
from vllama.store.model_store import ModelStore
from vllama.store.progress import Progress
from vllama.store.writes import store_writes


def load(
    store: ModelStore,
    directory: Path,
    names: Iterable[ModelName] = (),
    *,
    link: bool = False,
    trust_remote_code: bool = False,
    compile_cache: bool = False,
) -> Generator[Progress, None, None]:
    """Load these models, or all, from the bundle into the store; the last step is "success".

    A name is stored when all its files are complete and verified; until then, and after a kill, it is unchanged, and
    the next run continues with the copied files. With `link`, files are hard-linked to the bundle.
    With `trust_remote_code`, models may have code, which their workers will run; with `compile_cache`, compiled code.
    Raises StoreError, which names the file, if the bundle is damaged or untrusted.
    """
    yield Progress("reading the bundle")
    bundle = read_bundle(directory)
    manifests = [read_manifest(directory, bundle, model, trusted=trust_remote_code) for model in bundle.choose(names)]
    groups: dict[str, list[Manifest]] = {}
    for manifest in manifests:
        groups.setdefault(manifest.weights_digest, []).append(manifest)
    if not link:
        _check_room(store, manifests)
    for identity, group in groups.items():
        with store.session() as session:
            bring = partial(_snapshot, session, directory, link=link)
            place = yield from bring(group[0].name, group[0].files)
            for manifest in group:
                brought = replace(manifest, snapshot=place, modified_at=datetime.now(UTC))
                if manifest.adapter:
                    there = yield from bring(manifest.name, manifest.adapter.files)
                    brought = replace(brought, adapter=replace(manifest.adapter, snapshot=there))
                yield Progress(f"writing manifest of {manifest.name}")
                _put(session, brought)
            if compiled := bundle.caches.get(identity):
                yield from _load_cache(
                    session, replace(group[0], snapshot=place), compiled, directory, trusted=compile_cache
                )
    yield from _check_wheels(directory, bundle)
    yield Progress("success")


def _load_cache(
    store: ModelStore, manifest: Manifest, files: tuple[ManifestFile, ...], directory: Path, *, trusted: bool
) -> Iterator[Progress]:
    if not trusted:
        yield Progress(
            f"skipped the compiled code of {manifest.name}; if you trust its author, load it with --compile-cache"
        )
        return
    try:
        with store.staging(f"cache-{manifest.weights_digest}") as staging:
            yield from load_cache(store.root, key_of(manifest), files, directory, staging / "part")
    except (OSError, StoreError) as error:
        raise StoreError(f"loaded '{manifest.name}', but not its compiled code: {error}") from error


def _check_wheels(directory: Path, bundle: Bundle) -> Iterator[Progress]:
    """Verify the wheels, which pip will install. Raises StoreError if one is damaged."""
    for wheel in bundle.wheels:
        yield Progress(f"checking {WHEELS}/{wheel.path}", f"sha256:{wheel.sha256}", wheel.size)
        try:
            open_inside(directory, WHEELS, wheel.path).close()
            whole = yield from is_whole(directory / WHEELS / wheel.path, wheel)
        except OSError as error:
            raise StoreError(f"cannot read {WHEELS}/{wheel.path} in the bundle: {error.strerror}") from error
        if not whole:
            raise StoreError(
                f"{WHEELS}/{wheel.path} in the bundle is damaged. The models were loaded. Do not install "
                "this wheel; stage the wheels again"
            )


def _key(identity: str) -> str:
    return f"bundle-{identity}"


def _check_room(store: ModelStore, manifests: Iterable[Manifest]) -> None:
    snapshots = {content_digest(files): files for each in manifests for files in each.snapshots.values()}
    needed = 0
    for identity, files in snapshots.items():
        begun = store.root / "staging" / f"{_key(identity)}@resume" / "snapshot"
        places = (store.snapshot_directory(identity), begun)
        needed += sum(file.size for file in files if all(size_of(place / file.path) != file.size for place in places))
    check_room(
        store.root, needed, "remove models that you do not need, or set OLLAMA_MODELS to a directory on a larger disk"
    )


def _snapshot(
    store: ModelStore, directory: Path, name: ModelName, files: tuple[ManifestFile, ...], *, link: bool
) -> Generator[Progress, None, Path]:
    """Bring these files of a model into the store and return their directory."""
    identity = content_digest(files)
    place = store.snapshot_directory(identity)
    with store.staging(_key(identity), resume=True) as staging:
        part, growing = staging / "part", staging / "snapshot"
        store.hold(place)
        for file in files:
            if (yield from is_whole(place / file.path, file)) or (yield from is_whole(growing / file.path, file)):
                continue
            target = growing / file.path
            with store_writes():
                target.parent.mkdir(parents=True, exist_ok=True)
            try:
                yield from _bring(directory, file, part, target, link=link)
            except OSError as error:
                raise StoreError(f"cannot load '{name}': {file.path}: {error.strerror}") from error
            except StoreError as error:
                raise StoreError(f"cannot load '{name}' from the bundle: {error}") from error
        return store.adopt(growing, identity) if growing.exists() else place


def _bring(
    directory: Path, file: ManifestFile, part: Path, target: Path, *, link: bool
) -> Generator[Progress, None, None]:
    with open_inside(directory, FILES, stored_as(file.sha256)) as source:
        if not link:
            yield from copy_checked(source, file, part, target, "loading")
            return
    linked = yield from link_checked(directory / FILES / stored_as(file.sha256), file, part, target, "loading")
    if not linked:
        raise StoreError(
            "cannot hard-link the bundle's files into the model store, which is on another file system; "
            "load without --link"
        )


def _put(store: ModelStore, manifest: Manifest) -> None:
    """Store the manifest unless it is already stored; refuse one that cannot be served."""
    describe(manifest)
    try:
        adapter.check(manifest)
    except RequestError as error:
        raise StoreError(f"cannot load '{manifest.name}' from the bundle: {error}") from error
    try:
        stored = store.get(manifest.name)
        if (stored.digest, stored.snapshot) == (manifest.digest, manifest.snapshot):
            return
    except VllamaError:
        pass  # missing or damaged: replaced
    store.put(manifest)
