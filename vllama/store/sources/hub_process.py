"""Client of the download process, `hub_child`."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, cast

import orjson

from vllama.errors import SourceUnavailable
from vllama.machine.interruption import interruptible
from vllama.store.sources.hub_listing import Listing, RemoteFile
from vllama.store.sources.hub_transfer import Patience

_ENVIRONMENT = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "HF_HUB_DISABLE_XET": "1",  # Xet's client cannot resume and has no checksums; HTTP serves the same files
}
_DEFAULTS = {"RES_OPTIONS": "timeout:1 attempts:2"}
"""Without an answer from a name server, glibc would wait 10 s before it says that a name does not resolve."""

_LAST_LINES = 8


class HubProcess:
    """Requests to the Hub in a process that ends with the `with` block."""

    def __init__(self, patience: Patience, *, gated: bool = False) -> None:
        self._always = {"patience": asdict(patience), "gated": gated}

    def __enter__(self) -> Self:
        self._complaints = tempfile.TemporaryFile()
        # -P: modules must not be imported from the working directory.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "vllama.store.sources.hub_child"],
            env=_DEFAULTS | os.environ | _ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
        )
        self._interruptible = ExitStack()
        self._interruptible.enter_context(interruptible(self._process))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._interruptible.close()
        self._process.kill()
        self._process.communicate()
        self._complaints.close()

    def list_files(self, repository: str, revision: str) -> Listing:
        """Return the listing of the repository at a branch, tag or commit. Raises SourceUnavailable."""
        for answer in self._ask("list", repository=repository, revision=revision):
            return Listing.from_record(answer["listing"])
        raise AssertionError  # _ask ends with a reply or an error

    def fetch(
        self, listing: Listing, files: list[RemoteFile], directory: Path
    ) -> Iterator[tuple[Mapping[str, int], Mapping[str, str]]]:
        """Download the files to `directory`, each named by its `key`.

        Yields (bytes so far by path, {}) for paths with progress, and at the end ({}, sha256 by path).
        Raises SourceUnavailable.
        """
        paths = [file.path for file in files]
        for answer in self._ask("fetch", listing=asdict(listing), files=paths, directory=str(directory)):
            yield answer.get("at", {}), answer.get("fetched", {})

    def _ask(self, action: str, **request: Any) -> Iterator[dict[str, Any]]:
        """Send an action and yield its replies."""
        stdin, stdout = cast("IO[bytes]", self._process.stdin), cast("IO[bytes]", self._process.stdout)
        record = {"do": action, **self._always, **request}
        with suppress(BrokenPipeError):  # the process has ended: below it is said why
            stdin.write(orjson.dumps(record) + b"\n")
            stdin.flush()
        for line in stdout:
            answer: dict[str, Any] = orjson.loads(line)
            if "error" in answer:
                raise SourceUnavailable(answer["error"])
            yield answer
            if "listing" in answer or "fetched" in answer:
                return
        status = self._process.wait()
        self._complaints.seek(0)
        last = self._complaints.read().decode(errors="replace").strip().splitlines()[-_LAST_LINES:]
        raise SourceUnavailable(f"the download process exited with status {status}:\n" + "\n".join(last))
