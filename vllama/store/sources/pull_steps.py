"""What all sources have in common: what is stored already, and the steps that they report."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

from vllama.errors import ManifestCorrupt, ModelNotFound
from vllama.names import ModelName
from vllama.store.description import gguf_precision
from vllama.store.manifest import Manifest, ManifestFile
from vllama.store.model_store import ModelStore
from vllama.store.progress import Progress
from vllama.store.remote_code import TRUST, check_can_run, is_code, own_modules


def stored_whole(store: ModelStore, name: ModelName) -> Manifest | None:
    """Return the manifest stored under the name if its files exist and it is unchanged since its pull.

    A model that was created under the name, with its own system message or template, does not count, and neither does
    one of another precision than the one that was asked for.
    """
    try:
        stored = store.get(name)
    except (ModelNotFound, ManifestCorrupt):
        return None
    if stored.system or stored.template or stored.messages or stored.damaged_files():
        return None
    return stored if has_precision(store, stored) else None


def has_precision(store: ModelStore, manifest: Manifest) -> bool:
    """Return whether the weights of a GGUF file were converted as asked for; without a wish all other models pass."""
    return not store.insists or gguf_precision(manifest.snapshot) in {"", store.precision}


def bars(manifest: Manifest) -> Iterator[Progress]:
    """Yield the completed step of each file."""
    return map(bar, manifest.files)


def bar(file: ManifestFile) -> Progress:
    """Return the completed step of a file."""
    return progress_of(file.sha256, file.size, file.size)


def progress_of(sha256: str, total: int | None = None, completed: int = 0) -> Progress:
    """Return the progress of a file; clients identify its progress bar by the checksum (contract §1.7)."""
    return Progress(f"pulling {sha256[:12]}", f"sha256:{sha256}", total, completed)


def put(store: ModelStore, manifest: Manifest) -> Iterator[Progress]:
    """Store the manifest with the requested name, and yield the steps."""
    yield Progress("writing manifest")
    store.put(replace(manifest, asked=manifest.name.display))


def tell_of_code(
    name: ModelName, origin: str, snapshot: Path, files: Collection[str], *, trusted: bool
) -> Iterator[Progress]:
    """Yield a step that says whether the snapshot's code is skipped, or is among the `files` to store.

    Raises SourceUnavailable if trusted code is missing.
    """
    if trusted:
        check_can_run(origin, snapshot, files)
        yield Progress(f"the model's worker will run its own code: {', '.join(sorted(filter(is_code, files)))}")
    elif code := own_modules(snapshot):
        yield Progress(
            f"skipped the model's own code ({', '.join(code)}); if the model does not load without it, "
            f"and you trust {origin}, run vllama pull {TRUST} {name.display}"
        )
