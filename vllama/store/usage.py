"""Disk usage of the models of a store in bytes; a file with several links counts once."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vllama.names import ModelName
from vllama.store import caches
from vllama.store.manifest import Manifest
from vllama.store.model_store import ModelStore

_Sizes = dict[tuple[int, int], int]
"""Sizes of files in bytes, by device and inode."""


@dataclass(frozen=True, slots=True)
class ModelUsage:
    """Bytes of one model: files that only this name has, files shared with other names, and files elsewhere.

    `outside` are the files of a snapshot that is served in place; they are not part of the store.
    """

    name: ModelName
    own: int
    shared: int
    outside: int


@dataclass(frozen=True, slots=True)
class Usage:
    """Bytes of a store: of each model (largest first), in total, and of files that no model needs.

    `caches` is the compiled code of the models.
    """

    models: tuple[ModelUsage, ...]
    total: int
    unused: int
    caches: int


def measure(store: ModelStore) -> Usage:
    """Return the current disk usage; missing files count as 0."""
    manifests = store.list()
    held, outside = ({m.name: _sizes(_paths(store, m, held=held)) for m in manifests} for held in (True, False))
    names: dict[tuple[int, int], set[ModelName]] = defaultdict(set)
    for name, sizes in held.items():
        for inode in sizes:
            names[inode].add(name)

    def usage(name: ModelName) -> ModelUsage:
        size = sum(held[name].values())
        own = sum(bytes_ for inode, bytes_ in held[name].items() if len(names[inode]) == 1)
        return ModelUsage(name, own, size - own, sum(outside[name].values()))

    models = [usage(manifest.name) for manifest in manifests]
    everything = _sizes(Path(folder) / name for folder, _, found in os.walk(store.root) for name in found)
    manifests_apart = _sizes((store.root / "names").glob("*/*/*/*.json"))
    compiled = _sizes(
        path for folder in caches.all_of(store.root).values() for path in folder.rglob("*") if path.is_file()
    )
    known = names.keys() | manifests_apart.keys() | compiled.keys()
    unused = sum(everything[inode] for inode in everything.keys() - known)
    return Usage(
        models=tuple(sorted(models, key=lambda m: (-(m.own + m.shared + m.outside), m.name.display))),
        total=sum(everything.values()),
        unused=unused,
        caches=sum(compiled.values()),
    )


def _paths(store: ModelStore, manifest: Manifest, *, held: bool) -> Iterator[Path]:
    """Yield the files of the model that are in the store, or those that are elsewhere."""
    for snapshot, files in manifest.snapshots.items():
        if (store.identity(snapshot) is not None) is held:
            yield from (snapshot / file.path for file in files)


def _sizes(paths: Iterable[Path]) -> _Sizes:
    found = {}
    for path in paths:
        try:
            state = path.stat()
        except OSError:
            continue
        found[state.st_dev, state.st_ino] = state.st_size
    return found
