"""The process that talks to the Hub: `python -m vllama.store.sources.hub_child`, one JSON object a line in and out.

In a process of its own a transfer can be stopped at any instant, takes no time from a server that is answering clients,
and huggingface_hub reads the environment that is in force now. It ends when its parent does: then its input is closed.

    {"do": "list", "repository": …, "revision": …, "patience": …, "gated": …}
        → {"listing": …}
    {"do": "fetch", "listing": …, "files": [path …], "directory": …, "patience": …, "gated": …}
        → {"at": {path: bytes}} …, {"fetched": {path: sha256}}

What cannot be done is answered with {"error": message}.
"""

from __future__ import annotations

import os
import queue
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import orjson

from vllama import __version__
from vllama.errors import SourceUnavailable, VllamaError
from vllama.store.sources.hub_errors import LONGEST_WAIT, TRANSIENT, Asked, explain, offline, unreachable
from vllama.store.sources.hub_listing import Listing, RemoteFile
from vllama.store.sources.hub_transfer import Patience, Transfer

_AT_ONCE = 4
"""Files under way at a time."""

_REPORT_SECONDS = 0.08
_TIMEOUT = httpx.Timeout(30.0)


def main() -> None:
    """Answer requests until the input ends."""
    requests: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=_read, args=(requests,), daemon=True).start()
    while True:
        request = orjson.loads(requests.get())
        try:
            for answer in _ACTIONS[request.pop("do")](**request):
                _write(answer)
        except VllamaError as error:
            _write({"error": str(error)})
        except OSError as error:
            _write({"error": f"cannot write to the model store: {error}"})


def _read(requests: queue.Queue[bytes]) -> None:
    for line in sys.stdin.buffer:
        requests.put(line)
    os._exit(0)  # whatever is under way: nobody is left who wants it


def _write(answer: Mapping[str, Any]) -> None:
    sys.stdout.buffer.write(orjson.dumps(answer) + b"\n")
    sys.stdout.buffer.flush()


def _list(repository: str, revision: str, patience: Mapping[str, Any], *, gated: bool) -> Iterator[dict[str, Any]]:
    from huggingface_hub import HfApi

    api = HfApi(library_name="vllama", library_version=__version__)
    asked = Asked(str(api.endpoint), repository, revision, _has_token(), gated)
    info = _patiently(
        lambda: api.model_info(repository, revision=revision, files_metadata=True, timeout=30.0),
        asked,
        Patience(**patience),
    )
    files = [_remote_file(repository, str(info.sha), sibling) for sibling in info.siblings or ()]
    stated = next((tag.partition(":")[2] for tag in info.tags or () if tag.startswith("license:")), "")
    yield {"listing": asdict(Listing(repository, str(info.sha), tuple(files), stated))}


def _fetch(
    listing: Mapping[str, Any], files: list[str], directory: str, patience: Mapping[str, Any], *, gated: bool
) -> Iterator[dict[str, Any]]:
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

        # Each content once, however many names it has; the small ones first: they tell whether the rest is worth it.
        contents = {file.key: file for file in sorted(wanted, key=lambda file: file.size)}
        futures = {key: pool.submit(fetch, file) for key, file in contents.items()}
        yield from _progress(set(futures.values()), at)
        yield {"fetched": {file.path: futures[file.key].result() for file in wanted}}


def _progress(futures: set[Future[str]], at: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    """Tell how far the files are until all are done. Raises what the first that fails raised, and ends the others."""
    told: dict[str, int] = {}
    while futures:
        done, futures = wait(futures, timeout=_REPORT_SECONDS, return_when=FIRST_COMPLETED)
        for future in done:
            if (error := future.exception()) is not None:
                _write({"error": _message(error)})
                os._exit(1)  # without waiting for those that are under way: what they have is kept
        if news := {path: size for path, size in dict(at).items() if told.get(path) != size}:
            told |= news
            yield {"at": news}


def _message(error: BaseException) -> str:
    if isinstance(error, VllamaError):
        return str(error)
    if isinstance(error, OSError):
        return f"cannot write to the model store: {error}"
    raise error


def _take_from_cache(listing: Listing, file: RemoteFile, place: Path) -> None:
    """Begin with the file of Hugging Face's own cache, if it is there: it is checked as one that was fetched."""
    from huggingface_hub import try_to_load_from_cache

    part = place.with_name(f"{place.name}.part")
    cached = try_to_load_from_cache(listing.repository, file.path, revision=listing.commit)
    if not isinstance(cached, str) or place.exists() or part.exists():
        return
    source = Path(cached).resolve()
    if not source.is_file() or source.stat().st_size != file.size:
        return
    try:
        part.hardlink_to(source)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, part)


def _remote_file(repository: str, commit: str, sibling: Any) -> RemoteFile:
    """Read one entry of a listing; a mirror that leaves out sizes is asked for each file."""
    lfs = sibling.lfs
    if sibling.size is not None:
        return RemoteFile(
            sibling.rfilename, sibling.size, lfs.sha256 if lfs else "", "" if lfs else sibling.blob_id or ""
        )
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    metadata = get_hf_file_metadata(hf_hub_url(repository, sibling.rfilename, revision=commit), timeout=30.0)
    etag = metadata.etag or ""
    return RemoteFile(
        sibling.rfilename,
        metadata.size or 0,
        sha256=etag if len(etag) == 64 else "",
        git_sha1=etag if len(etag) == 40 else "",
    )


def _patiently(ask: Callable[[], Any], asked: Asked, patience: Patience) -> Any:
    """Ask until there is an answer. Raises SourceUnavailable, which says what to do."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    attempt = 0
    while True:
        attempt += 1
        retry_after = ""
        try:
            return ask()
        except OfflineModeIsEnabled as error:
            raise SourceUnavailable(offline(asked)) from error
        except HFValidationError as error:
            raise SourceUnavailable(f"'{asked.repository}' is no name of a repository on the Hub: {error}") from error
        except HfHubHTTPError as error:
            status, headers = error.response.status_code, error.response.headers
            failure = SourceUnavailable(explain(asked, status, headers))
            if status not in TRANSIENT:
                raise failure from error
            retry_after = headers.get("retry-after", "")
        except _transport_errors() as error:
            failure = SourceUnavailable(unreachable(asked, error))
        if attempt > patience.attempts or patience.wait(attempt, retry_after) > LONGEST_WAIT:
            raise failure
        time.sleep(patience.wait(attempt, retry_after))


def _transport_errors() -> tuple[type[Exception], ...]:
    """Those of httpx, and of the fork of it that newer versions of huggingface_hub use."""
    modules = (sys.modules.get(name) for name in ("httpx", "httpx2"))
    return tuple(module.TransportError for module in modules if module)


def _has_token() -> bool:
    from huggingface_hub import get_token

    return bool(get_token())


_ACTIONS: Mapping[str, Callable[..., Iterator[dict[str, Any]]]] = {"list": _list, "fetch": _fetch}


if __name__ == "__main__":
    main()
