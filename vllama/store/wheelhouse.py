"""The wheels of vllama and of all that it runs on, for a machine without a package index.

What is installed here is what is collected, in these versions: pip fetches each wheel from where it is configured to
look, or builds it. `requirements.txt` beside them pins every one by its checksum, which `pip install` heeds.
"""

from __future__ import annotations

import json
import re
import tempfile
import zipfile
from collections.abc import Container, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from email.parser import Parser
from importlib import metadata
from pathlib import Path

from vllama.errors import SourceUnavailable, StoreError
from vllama.store.hashing import hash_files
from vllama.store.manifest import ManifestFile
from vllama.store.model_store import write_atomically
from vllama.store.progress import Progress
from vllama.store.sources.wheels import pip_wheel

ROOT = "vllama-server"
"""The distribution that the others are needed by."""

REQUIREMENTS = "requirements.txt"
"""What `pip install -r` takes, in the directory of the wheels."""

UNFINISHED = ".fetched-"
"""How the directories begin that pip writes to."""

PYTORCH_INDEX = "https://download.pytorch.org/whl/"
"""Where PyTorch keeps the builds that other indexes may lack, below it by what follows the + of their version."""

_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+!-]*\.whl")
_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)\s*(?:\[([^]]*)\])?")
_EXTRA = re.compile(r"extra\s*==\s*['\"]([^'\"]+)['\"]")


@dataclass(frozen=True, slots=True)
class Pin:
    """A distribution as it is installed. `place` is the URL that it was installed from, "" where that is an index."""

    name: str
    version: str
    place: str = ""

    @property
    def requirement(self) -> str:
        """What pip is asked for."""
        return f"{self.name} @ {self.place}" if self.place else f"{self.name}=={self.version}"

    @property
    def local(self) -> str:
        """What tells a build from others of the same version ("cpu", "cu129"); "" mostly."""
        return self.version.partition("+")[2]


def is_ours(name: str) -> bool:
    """Whether a file of this name can lie among the wheels. Names come from elsewhere."""
    return name == REQUIREMENTS or _FILE.fullmatch(name) is not None


def installed(root: str = ROOT) -> list[Pin]:
    """Return the distribution and all that it needs, directly or not, as far as it is installed; sorted by name.

    Of the root, all extras count: which engine there is decides. Raises StoreError where the root is not installed.
    """
    found: dict[str, Pin] = {}
    waiting: list[tuple[str, frozenset[str] | None]] = [(root, None)]
    seen: set[tuple[str, frozenset[str] | None]] = set()
    while waiting:
        asked = waiting.pop()
        if asked in seen:
            continue
        seen.add(asked)
        name, extras = asked
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # it is for another platform, or was left out on purpose
        found[name] = Pin(name, distribution.version, _place(distribution))
        waiting += _needed(distribution.requires or (), extras)
    if root not in found:
        raise StoreError(f"{root} is not installed in this Python: no wheels can be collected")
    return sorted(found.values(), key=lambda pin: pin.name)


def collect(directory: Path, pins: Iterable[Pin]) -> Generator[Progress, None, tuple[ManifestFile, ...]]:
    """Have a wheel of each in the directory, nothing else, and REQUIREMENTS; return all these files.

    Wheels that are there are kept; after a kill the next run goes on with them. Raises SourceUnavailable with pip's
    last lines, StoreError or OSError.
    """
    pins = tuple(pins)
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
        raise SourceUnavailable(f"pip left no wheel of {', '.join(lacking)}")
    for pin in pins:
        if pin.place:
            _check_up_to_date(kept[pin.name], wanted)
    files = yield from hash_files(directory, sorted(path.name for path in kept.values()))
    write_atomically(directory / REQUIREMENTS, _requirements(files))
    listed = yield from hash_files(directory, [REQUIREMENTS])
    return (*files, *listed)


def _check_up_to_date(built: Path, wanted: Container[str]) -> None:
    """Raise StoreError where a wheel that was just built needs more than did what is installed of it."""
    with zipfile.ZipFile(built) as archive:
        [path] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        lines = Parser().parsestr(archive.read(path).decode()).get_all("Requires-Dist", [])
    lacking = [name for name, _ in _needed((line for line in lines if ";" not in line), None) if name not in wanted]
    if lacking:
        raise StoreError(
            f"{built.name} needs {', '.join(lacking)}, not installed here: install vllama again, then stage"
        )


def _fetch(directory: Path, pins: list[Pin]) -> Iterator[Progress]:
    """Let pip leave the wheels in a directory of its own: what it was writing when it was killed is never taken."""
    with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=directory) as fetched:
        requirements = Path(fetched) / REQUIREMENTS
        requirements.write_text("".join(f"{pin.requirement}\n" for pin in pins), encoding="utf-8")
        try:
            yield from _steps(requirements, Path(fetched))
        except SourceUnavailable:
            if not pins[0].local:
                raise
            yield from _steps(requirements, Path(fetched), "--index-url", f"{PYTORCH_INDEX}{pins[0].local}")
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
    """The wheels that are there, by name and version."""
    return {_key(path): path for path in directory.glob("*.whl")}


def _key(wheel: Path) -> tuple[str, str]:
    name, version, *_ = [*wheel.stem.split("-"), ""]
    return _normal(name), version


def _is_meant(key: tuple[str, str], pin: Pin) -> bool:
    """Whether the wheel is that of the pin; what was built of a directory may be newer than what is installed."""
    return bool(pin.place) or key[1] == pin.version


def _needed(requires: Iterable[str], extras: frozenset[str] | None) -> Iterator[tuple[str, frozenset[str]]]:
    """The requirements that hold with these extras, or with all where that is None, as names with extras of theirs."""
    for line in requires:
        conditions = set(_EXTRA.findall(line.partition(";")[2]))
        if conditions and extras is not None and not conditions & extras:
            continue
        if match := _REQUIREMENT.match(line):
            more = (extra.strip() for extra in (match[2] or "").split(","))
            yield _normal(match[1]), frozenset(filter(None, more))


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _place(distribution: metadata.Distribution) -> str:
    """The URL that it was installed from, as pip notes it (PEP 610)."""
    text = distribution.read_text("direct_url.json")
    if not text:
        return ""
    record = json.loads(text)
    if commit := record.get("vcs_info", {}).get("commit_id"):
        return f"{record['vcs_info']['vcs']}+{record['url']}@{commit}"
    return str(record["url"])
