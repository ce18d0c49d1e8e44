"""The download process for the Hub: `python -m vllama.store.sources.hub_child`, one JSON object per line in and out.

In a separate process a transfer can be stopped at any moment, takes no time from a server that is answering clients,
and huggingface_hub reads the current environment. The process ends with its parent, because its input is closed then.

    {"do": "list", "repository": …, "revision": …, "patience": …, "gated": …}
        → {"listing": …}
    {"do": "fetch", "listing": …, "files": [path …], "directory": …, "patience": …, "gated": …}
        → {"at": {path: bytes}} …, {"fetched": {path: sha256}}

Failures are answered with {"error": message}.
"""

from __future__ import annotations

import math
import os
import queue
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import orjson

from vllama import __version__
from vllama.errors import SourceUnavailable, VllamaError
from vllama.store.sources.hub_errors import TRANSIENT, Asked, explain, offline, undeliverable, unreachable
from vllama.store.sources.hub_listing import SHA1, SHA256, Listing, RemoteFile
from vllama.store.sources.hub_transfer import LINKED, PART, Patience, Transfer, beside

_AT_ONCE = 4
"""Maximum number of simultaneous downloads."""

_REPORT_SECONDS = 0.08
_TIMEOUT = 30.0
"""Seconds without a byte after which a connection is given up."""


def main() -> None:
    """Answer requests until the input ends."""
    for package in ("httpx", "httpx2"):
        # Each imports its own command where it can, and with it rich and pygments: 0.3 s of each pull for nothing.
        sys.modules.setdefault(f"{package}._main", None)  # type: ignore[arg-type]
    requests: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=_read, args=(requests,), daemon=True).start()
    while True:
        request = orjson.loads(requests.get())
        try:
            for answer in _ACTIONS[request.pop("do")](**request):
                _write(answer)
        except Exception as error:  # noqa: BLE001 - whatever it is, the parent has to be told
            _end(error)


def _read(requests: queue.Queue[bytes]) -> None:
    for line in sys.stdin.buffer:
        requests.put(line)
    os._exit(0)  # abandon running transfers: the parent is gone


def _write(answer: Mapping[str, Any]) -> None:
    sys.stdout.buffer.write(orjson.dumps(answer) + b"\n")
    sys.stdout.buffer.flush()


def _end(error: BaseException) -> NoReturn:
    """Tell the parent why it gets no more, and exit without waiting for unfinished downloads, whose parts are kept."""
    if isinstance(error, VllamaError):
        message = str(error)
    else:
        message = f"the process that fetches from the Hub failed: {type(error).__name__}: {error}"
        traceback.print_exception(error)
    _write({"error": message})
    os._exit(1)


def _list(repository: str, revision: str, patience: Mapping[str, Any], *, gated: bool) -> Iterator[dict[str, Any]]:
    from huggingface_hub import HfApi

    api = HfApi(library_name="vllama", library_version=__version__)
    asked = Asked(str(api.endpoint), repository, revision, _has_token(), gated)
    persistent = Patience(**patience)
    info = _patiently(
        lambda: api.model_info(repository, revision=revision, files_metadata=True, timeout=30.0), asked, persistent
    )
    files = [_remote_file(str(info.sha), sibling, asked, persistent) for sibling in info.siblings or ()]
    tags = info.tags or ()
    stated = next((tag.partition(":")[2] for tag in tags if tag.startswith("license:")), "")
    base = next((tag.rpartition(":")[2] for tag in tags if tag.startswith("base_model:quantized:")), "")
    yield {"listing": asdict(Listing(repository, str(info.sha), tuple(files), stated, base))}


def _fetch(
    listing: Mapping[str, Any], files: list[str], directory: str, patience: Mapping[str, Any], *, gated: bool
) -> Iterator[dict[str, Any]]:
    import httpx
    from huggingface_hub import HfApi, hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    known = Listing.from_record(listing)
    wanted = [file for file in known.files if file.path in set(files)]
    asked = Asked(str(HfApi().endpoint), known.repository, known.commit, _has_token(), gated)
    headers = build_hf_headers(library_name="vllama", library_version=__version__)
    at: dict[str, int] = {}
    with httpx.Client(timeout=_TIMEOUT, follow_redirects=True) as client, ThreadPoolExecutor(_AT_ONCE) as pool:
        transfer = Transfer(client, asked, headers, Patience(**patience))

        def fetch(file: RemoteFile) -> str:
            place = Path(directory) / file.key
            _take_from_cache(known, file, place)
            url = hf_hub_url(known.repository, file.path, revision=known.commit)
            return transfer.fetch(file, url, place, lambda size: at.__setitem__(file.path, size))

        # Each content once, under any number of names; small files first, because they may reveal a useless model.
        contents = {file.key: file for file in sorted(wanted, key=_size_for_order)}
        futures = {key: pool.submit(fetch, file) for key, file in contents.items()}
        yield from _progress(set(futures.values()), at)
        yield {"fetched": {file.path: futures[file.key].result() for file in wanted}}


def _progress(futures: set[Future[str]], at: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    """Report the progress of the files until all are done. Raises the first error and cancels the others."""
    told: dict[str, int] = {}
    while futures:
        done, futures = wait_for(futures, timeout=_REPORT_SECONDS, return_when=FIRST_COMPLETED)
        for future in done:
            if (error := future.exception()) is not None:
                _end(error)
        if news := {path: size for path, size in dict(at).items() if told.get(path) != size}:
            told |= news
            yield {"at": news}


def _take_from_cache(listing: Listing, file: RemoteFile, place: Path) -> None:
    """Link the file from Hugging Face's own cache if it is there; it is verified like a download."""
    from huggingface_hub import try_to_load_from_cache

    link, part = beside(place, LINKED), beside(place, PART)
    cached = try_to_load_from_cache(listing.repository, file.path, revision=listing.commit)
    if not isinstance(cached, str) or any(path.exists() for path in (place, link, part)):
        return
    source = Path(cached).resolve()
    if not source.is_file() or file.size not in {None, source.stat().st_size}:
        return
    try:
        link.hardlink_to(source)
    except OSError:  # another file system, or no support for links
        with suppress(OSError):  # what the copy lacks is fetched
            shutil.copyfile(source, part)


def _size_for_order(file: RemoteFile) -> float:
    return math.inf if file.size is None else file.size


def _remote_file(commit: str, sibling: Any, asked: Asked, patience: Patience) -> RemoteFile:
    """Read one entry of a listing; if a mirror omits sizes, request them per file. Raises SourceUnavailable."""
    lfs = sibling.lfs
    if sibling.size is not None:
        return RemoteFile(
            sibling.rfilename, sibling.size, lfs.sha256 if lfs else "", "" if lfs else sibling.blob_id or ""
        )
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    url = hf_hub_url(asked.repository, sibling.rfilename, revision=commit)
    metadata = _patiently(lambda: get_hf_file_metadata(url, timeout=30.0), asked, patience)
    etag = metadata.etag or ""
    # Older versions of huggingface_hub take the length of a redirect's own body, mostly 0, for that of the file.
    size = metadata.size or None if metadata.location != url else metadata.size
    return RemoteFile(
        sibling.rfilename,
        size,
        sha256=etag if SHA256.fullmatch(etag) else "",
        git_sha1=etag if SHA1.fullmatch(etag) else "",
    )


def _patiently(ask: Callable[[], Any], asked: Asked, patience: Patience) -> Any:
    """Retry a request until it succeeds. Raises SourceUnavailable with advice."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    attempt, since = 0, time.monotonic()
    while True:
        attempt += 1
        retry_after = ""
        try:
            return ask()
        except OfflineModeIsEnabled as error:
            raise SourceUnavailable(offline(asked)) from error
        except HFValidationError as error:
            raise SourceUnavailable(
                f"'{asked.repository}' is not a valid repository name on the Hub: {error}"
            ) from error
        except HfHubHTTPError as error:
            status, headers = error.response.status_code, error.response.headers
            failure = SourceUnavailable(explain(asked, status, headers))
            if status not in TRANSIENT:
                raise failure from error
            retry_after = headers.get("retry-after", "")
        except _request_errors("TransportError") as error:
            failure = SourceUnavailable(unreachable(asked, error))
            failure.__cause__ = error
        except _request_errors("RequestError") as error:
            raise SourceUnavailable(undeliverable(asked, "what is known", error)) from error
        wait = patience.wait(attempt, retry_after)
        if patience.is_over(attempt, wait, failure, time.monotonic() - since):
            raise failure
        time.sleep(wait)


def _request_errors(name: str) -> tuple[type[Exception], ...]:
    """Return httpx's class of this name, and that of the fork of it that newer versions of huggingface_hub use."""
    modules = (sys.modules.get(package) for package in ("httpx", "httpx2"))
    return tuple(getattr(module, name) for module in modules if module)


def _has_token() -> bool:
    from huggingface_hub import get_token

    return bool(get_token())


_ACTIONS: Mapping[str, Callable[..., Iterator[dict[str, Any]]]] = {"list": _list, "fetch": _fetch}


if __name__ == "__main__":
    main()
