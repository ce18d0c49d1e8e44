"""Verification of stored files against their checksums."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllama.errors import ManifestCorrupt, StoreError
from vllama.names import ModelName
from vllama.store.copying import difference
from vllama.store.hashing import hash_file
from vllama.store.manifest import Manifest, ManifestFile
from vllama.store.model_store import ModelStore
from vllama.store.progress import Progress


@dataclass(frozen=True, slots=True)
class Verdict:
    """A name (or the path of an unreadable manifest) and the problem of each damaged file."""

    name: str
    files: int
    size: int
    problems: dict[str, str]

    def to_record(self) -> dict[str, Any]:
        """Return the verdict as a JSON object."""
        problems = [{"file": path, "problem": problem} for path, problem in self.problems.items()]
        return {
            "name": self.name,
            "ok": not self.problems,
            "files": self.files,
            "size": self.size,
            "problems": problems,
        }


def verify(store: ModelStore, names: Iterable[ModelName] = ()) -> Generator[Progress, None, list[Verdict]]:
    """Return a verdict on each of these names, or on all stored models. Raises ModelNotFound.

    Files that several names share are read once.
    """
    verdicts, manifests = [], []
    asked = list(names)
    for name in asked:
        try:
            manifests.append(store.get(name))
        except ManifestCorrupt as error:
            verdicts.append(Verdict(name.display, 0, 0, {"manifest": str(error)}))
    if not asked:
        manifests = sorted(store.list(), key=lambda manifest: manifest.name.key)
        verdicts = [Verdict(path, 0, 0, {"manifest": problem}) for path, problem in store.unreadable().items()]
    known: dict[tuple[Path, ManifestFile], str] = {}
    for manifest in manifests:
        verdicts.append((yield from _verdict(manifest, known)))
    return verdicts


def _verdict(manifest: Manifest, known: dict[tuple[Path, ManifestFile], str]) -> Generator[Progress, None, Verdict]:
    problems = {}
    placed = [(place, file) for place, files in manifest.snapshots.items() for file in files]
    for place, file in placed:
        key = (place, file)
        if key not in known:
            yield Progress(f"reading {file.path}", f"sha256:{file.sha256}", file.size, 0)
            known[key] = yield from _problem(place, file)
            yield Progress(f"reading {file.path}", f"sha256:{file.sha256}", file.size, file.size)
        if known[key]:
            problems[file.path] = known[key]
    return Verdict(manifest.name.display, len(placed), manifest.size, problems)


def _problem(snapshot: Path, file: ManifestFile) -> Generator[Progress, None, str]:
    if not (snapshot / file.path).exists():
        return f"{file.path} is missing"
    try:
        found = yield from hash_file(snapshot, file.path)
    except StoreError as error:
        return str(error)
    if (found.size, found.sha256) == (file.size, file.sha256):
        return ""
    return difference(file, found.size, found.sha256)
