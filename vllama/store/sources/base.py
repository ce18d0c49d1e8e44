"""What all sources have in common: how a pull asks them, and what is stored already."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from vllama.errors import ManifestCorrupt, ModelNotFound
from vllama.names import ModelName
from vllama.store.manifest import Manifest, ManifestFile
from vllama.store.model_store import ModelStore
from vllama.store.progress import Progress
from vllama.store.remote_code import TRUST, check_can_run, is_code, own_modules


class PullSource(Protocol):
    """A place that one model can be pulled from."""

    def pull(self, store: ModelStore, name: ModelName, *, force: bool) -> Generator[Progress, None, None]:
        """Bring the files here and store the manifest under this name, unless both are there; `force` does it anyway.

        Raises SourceUnavailable or StoreError. Closing the generator ends the work; the name stays as it was.
        """
        ...


def stored_whole(store: ModelStore, name: ModelName) -> Manifest | None:
    """Return what is stored under the name, if its files are there and it is a model as pulled.

    One that was created under the name, with a system message or a template of its own, is not.
    """
    try:
        stored = store.get(name)
    except (ModelNotFound, ManifestCorrupt):
        return None
    if stored.system or stored.template or stored.messages or stored.damaged_files():
        return None
    return stored


def bars(manifest: Manifest) -> Iterator[Progress]:
    """Tell of each file that it is here."""
    return map(bar, manifest.files)


def bar(file: ManifestFile) -> Progress:
    """Tell of a file that it is here."""
    return progress_of(file.sha256, file.size, file.size)


def progress_of(sha256: str, total: int = 0, completed: int = 0) -> Progress:
    """Return the step of a file under way; its checksum is what clients know its bar by (contract §1.7)."""
    return Progress(f"pulling {sha256[:12]}", f"sha256:{sha256}", total, completed)


def put(store: ModelStore, manifest: Manifest) -> Iterator[Progress]:
    """Store the manifest with the name that was asked for, and say so."""
    yield Progress("writing manifest")
    store.put(replace(manifest, asked=manifest.name.display))


def tell_of_code(
    name: ModelName, origin: str, snapshot: Path, files: Collection[str], *, trusted: bool
) -> Iterator[Progress]:
    """Say what becomes of the code that the snapshot brings: left out, or one of the `files` that are taken.

    Raises SourceUnavailable where code is trusted that is not there.
    """
    if trusted:
        check_can_run(origin, snapshot, files)
        yield Progress(f"the model's worker will run its own code: {', '.join(sorted(filter(is_code, files)))}")
    elif code := own_modules(snapshot):
        yield Progress(
            f"left out its own code ({', '.join(code)}), which is never run; if the model does not load without it, "
            f"and you trust {origin}: vllama pull {TRUST} {name.display}"
        )
