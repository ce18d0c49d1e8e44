"""Wheels of vllama and its dependencies, for a machine without a package index.

Collects the versions that are installed here: pip downloads each wheel from its configured index, or builds it. The
`requirements.txt` next to them pins each wheel by its checksum, which `pip install` verifies.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Container, Generator, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from email.parser import Parser
from importlib import metadata
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from vllama.errors import SourceUnavailable, StoreError
from vllama.store.hashing import hash_files
from vllama.store.manifest import ManifestFile
from vllama.store.model_store import write_atomically
from vllama.store.progress import Progress
from vllama.store.sources.wheels import opened, pip_wheel
from vllama.store.writes import disk_errors

ROOT = "vllama-server"
"""The distribution that depends on all others."""

REQUIREMENTS = "requirements.txt"
"""File for `pip install -r` in the directory of the wheels."""

UNFINISHED = ".fetched-"
"""Prefix of the directories that pip writes to."""

PYTORCH_INDEX = "https://download.pytorch.org/whl/"
"""Index of PyTorch builds that other indexes may lack, with a subdirectory per local version (after the +)."""

_LONGEST_METADATA = 1 << 20
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+!-]*\.whl")


@dataclass(frozen=True, slots=True)
class Pin:
    """An installed distribution. `place` is the URL that it was installed from, "" for an index."""

    name: str
    version: str
    place: str = ""

    @property
    def requirement(self) -> str:
        """The requirement to pass to pip."""
        return f"{self.name} @ {self.place}" if self.place else f"{self.name}=={self.version}"

    @property
    def local(self) -> str:
        """The local version of a build ("cpu", "cu129"); usually ""."""
        return self.version.partition("+")[2]


def is_ours(name: str) -> bool:
    """Return whether a file of this untrusted name may be among the wheels."""
    return name == REQUIREMENTS or _FILE.fullmatch(name) is not None


def installed(root: str = ROOT) -> list[Pin]:
    """Return the distribution and its installed dependencies, direct and indirect, sorted by name.

    All extras of the root count, since the installed engine decides. Raises StoreError if the root is not installed.
    """
    try:
        extras_of_root = metadata.metadata(root).get_all("Provides-Extra") or ()
    except metadata.PackageNotFoundError:
        raise StoreError(f"cannot collect wheels: {root} is not installed in this Python") from None
    found: dict[str, Pin] = {}
    waiting: list[tuple[str, frozenset[str]]] = [(root, frozenset(extras_of_root))]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        asked = waiting.pop()
        if asked in seen:
            continue
        seen.add(asked)
        name, extras = asked
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # it is for another platform, or was omitted on purpose
        found[name] = Pin(name, distribution.version, _place(distribution))
        waiting += _needed(name, distribution.requires or (), extras)
    return sorted(found.values(), key=lambda pin: pin.name)


def collect(directory: Path, pins: Iterable[Pin]) -> Generator[Progress, None, tuple[ManifestFile, ...]]:
    """Put one wheel of each pin, and nothing else, into the directory, plus REQUIREMENTS; return all files.

    Wheels that are there are kept; after a kill the next run goes on with them. Raises SourceUnavailable with pip's
    last lines, or StoreError.
    """
    pins = tuple(pins)
    with disk_errors(f"write to {directory}"):
        directory.mkdir(exist_ok=True)
    missing = [pin for pin in pins if pin.place or (pin.name, pin.version) not in _wheels(directory)]
    for alike in ([pin for pin in missing if not pin.local], *([pin] for pin in missing if pin.local)):
        if alike:
            yield from _fetch(directory, alike)
    wanted = {pin.name: pin for pin in pins}
    kept = {
        key[0]: path for key, path in _wheels(directory).items() if key[0] in wanted and _is_meant(key, wanted[key[0]])
    }
    if lacking := sorted(wanted.keys() - kept.keys()):
        raise SourceUnavailable(f"pip produced no wheel of {', '.join(lacking)}")
    for pin in pins:
        if pin.place:
            _check_up_to_date(kept[pin.name], wanted)
    files = yield from hash_files(directory, sorted(path.name for path in kept.values()))
    with disk_errors(f"write to {directory}"):
        write_atomically(directory / REQUIREMENTS, _requirements(files))
    listed = yield from hash_files(directory, [REQUIREMENTS])
    return (*files, *listed)


def _check_up_to_date(built: Path, wanted: Container[str]) -> None:
    """Raise StoreError if a new wheel is damaged, or has dependencies that the installed version does not have."""
    with opened(built) as archive:
        [path] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        with archive.open(path) as file:
            lines = Parser().parsestr(file.read(_LONGEST_METADATA).decode()).get_all("Requires-Dist", [])
    lacking = [name for name, _ in _needed(built.name, lines, frozenset()) if name not in wanted]
    if lacking:
        raise StoreError(
            f"{built.name} requires {', '.join(lacking)}, which is not installed here; install vllama again, then stage"
        )


def _fetch(directory: Path, pins: list[Pin]) -> Iterator[Progress]:
    """Let pip write the wheels to a separate directory, so that partial files are never used after a kill."""
    with ExitStack() as ending:
        with disk_errors(f"write to {directory}"):
            fetched = ending.enter_context(tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=directory))
            requirements = Path(fetched) / REQUIREMENTS
            requirements.write_text("".join(f"{pin.requirement}\n" for pin in pins), encoding="utf-8")
        try:
            yield from _steps(requirements, Path(fetched))
        except SourceUnavailable:
            if not pins[0].local:
                raise
            yield from _steps(requirements, Path(fetched), "--index-url", f"{PYTORCH_INDEX}{pins[0].local}")
        with disk_errors(f"write to {directory}"):
            for path in sorted(Path(fetched).glob("*.whl")):
                for old in (place for key, place in _wheels(directory).items() if key[0] == _key(path)[0]):
                    old.unlink()
                path.replace(directory / path.name)


def _steps(requirements: Path, directory: Path, *options: str) -> Iterator[Progress]:
    with closing(pip_wheel(requirements, directory, *options)) as fetching:
        for what, completed, total in fetching:
            yield Progress(f"wheels: {what}", total=total, completed=completed)


def _requirements(files: Iterable[ManifestFile]) -> bytes:
    lines = ["# pip install --no-index --find-links DIRECTORY --no-deps -r DIRECTORY/requirements.txt"]
    for file in files:
        name, version = _key(Path(file.path))
        lines.append(f"{name}=={version} --hash=sha256:{file.sha256}")
    return "".join(f"{line}\n" for line in lines).encode()


def _wheels(directory: Path) -> dict[tuple[str, str], Path]:
    """Return the existing wheels by name and version."""
    return {_key(path): path for path in directory.glob("*.whl")}


def _key(wheel: Path) -> tuple[str, str]:
    name, version, *_ = [*wheel.stem.split("-"), ""]
    return canonicalize_name(name), version


def _is_meant(key: tuple[str, str], pin: Pin) -> bool:
    """Return whether the wheel matches the pin; a wheel built from a directory may be newer than the installed one."""
    return bool(pin.place) or key[1] == pin.version


def _needed(of: str, requires: Iterable[str], extras: frozenset[str]) -> Iterator[tuple[str, frozenset[str]]]:
    """Yield the requirements that hold here with these extras, as names with extras of theirs.

    Raises StoreError where `of`, the distribution, states one that cannot be read.
    """
    for line in requires:
        try:
            requirement = Requirement(line)
        except InvalidRequirement as error:
            raise StoreError(f"{of} has a requirement that cannot be read, {line!r}: install it again") from error
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield canonicalize_name(requirement.name), frozenset(requirement.extras)


def _place(distribution: metadata.Distribution) -> str:
    """Return the URL that it was installed from, as recorded by pip (PEP 610)."""
    text = distribution.read_text("direct_url.json")
    if not text:
        return ""
    record = json.loads(text)
    if commit := record.get("vcs_info", {}).get("commit_id"):
        return f"{record['vcs_info']['vcs']}+{record['url']}@{commit}"
    return str(record["url"])
