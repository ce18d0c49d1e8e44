"""The handle on the process that talks to the Hub, `hub_child`."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, cast

import orjson

from vllama.errors import SourceUnavailable
from vllama.store.sources.hub_listing import Listing, RemoteFile
from vllama.store.sources.hub_transfer import Patience

_ENVIRONMENT = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "HF_HUB_DISABLE_XET": "1",  # its client resumes nothing and says nothing of sums; the same files come over HTTP
}
_LAST_LINES = 8


class HubProcess:
    """Asks the Hub, in a process that ends with the `with` block."""

    def __init__(self, patience: Patience, *, gated: bool = False) -> None:
        self._always = {"patience": asdict(patience), "gated": gated}

    def __enter__(self) -> Self:
        self._complaints = tempfile.TemporaryFile()
        # -P: nothing in the working directory may stand in for a module.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "vllama.store.sources.hub_child"],
            env=os.environ | _ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._complaints.close()

    def list_files(self, repository: str, revision: str) -> Listing:
        """Return what the repository holds at a branch, tag or commit. Raises SourceUnavailable."""
        for answer in self._ask("list", repository=repository, revision=revision):
            return Listing.from_record(answer["listing"])
        raise AssertionError  # _ask ends with an answer or an error

    def fetch(
        self, listing: Listing, files: list[RemoteFile], directory: Path
    ) -> Iterator[tuple[Mapping[str, int], Mapping[str, str]]]:
        """Leave the files in `directory`, each named by its `key`.

        Yields the bytes that are there of each path that made progress, and at the end their sha256; the other
        mapping is empty. Raises SourceUnavailable.
        """
        paths = [file.path for file in files]
        for answer in self._ask("fetch", listing=asdict(listing), files=paths, directory=str(directory)):
            yield answer.get("at", {}), answer.get("fetched", {})

    def _ask(self, action: str, **request: Any) -> Iterator[dict[str, Any]]:
        """Yield the answers up to the last one of the action."""
        stdin, stdout = cast("IO[bytes]", self._process.stdin), cast("IO[bytes]", self._process.stdout)
        record = {"do": action, **self._always, **request}
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
        raise SourceUnavailable(
            f"the process that fetches from the Hub ended with status {status}:\n" + "\n".join(last)
        )
