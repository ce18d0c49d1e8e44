"""A server on loopback that speaks as much of the Hugging Face Hub's API as a pull needs, and misbehaves on demand.

Large files are answered as the Hub does: a redirect that tells size and checksum, to another place that has the bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = 100_000
"""From this size on a file is LFS."""


@dataclass
class Repository:
    """The files at one commit. `token` is the only one that may read it; a gated one still tells what it holds."""

    files: Mapping[str, bytes]
    commit: str = "a" * 40
    revisions: frozenset[str] = frozenset({"main"})
    gated: bool = False
    private: bool = False
    token: str = ""
    tags: tuple[str, ...] = ()
    tells_sizes: bool = True
    """Whether the listing has sizes and checksums."""
    is_sizeless: bool = False
    """Whether no answer states a size either: redirects have no X-Linked-Size, and bodies are chunked."""


@dataclass
class Fault:
    """What happens to one request for a file, instead of the whole answer.

    `status` is answered at once; or the answer ends after `after` bytes: with the connection, or when `go_on` is set.
    `flips` changes a byte of it; `ignores_ranges` sends the file from its beginning. `drops` closes the connection
    without an answer.
    """

    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    after: int | None = None
    go_on: threading.Event | None = None
    flips: bool = False
    ignores_ranges: bool = False
    drops: bool = False


@dataclass
class Request:
    """What was asked."""

    method: str
    path: str
    range: str
    authorization: str
    user_agent: str


class HubStandIn:
    """The server's state: what it serves, what it was asked, and how it will misbehave."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Request] = []
        self.api_faults: deque[Fault] = deque()
        self.faults: dict[str, deque[Fault]] = {}
        self.head_faults: deque[Fault] = deque()
        self.url = ""

    def variables(self, home: Path) -> dict[str, str]:
        """Return the variables with which the stand-in is the only Hub there is, and `home` has all that is kept."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_TOKEN": "",
            "HF_TOKEN_PATH": str(home / "token"),
            "HF_HUB_OFFLINE": "0",
            "TRANSFORMERS_OFFLINE": "0",
            "NO_PROXY": "127.0.0.1",
        }

    def misbehave(self, path: str, *faults: Fault) -> None:
        """Let the next requests for the bytes of this file fail, one after another."""
        self.faults.setdefault(path, deque()).extend(faults)

    def ranges(self, path: str) -> list[str]:
        """Return the ranges in which the bytes of this file were asked for."""
        return [request.range for request in self.requests if request.path.endswith(f"/{path}") and request.range]

    def bytes_requests(self) -> int:
        """Return how many requests for bytes there were."""
        return sum(1 for request in self.requests if request.method == "GET" and "/resolve/" in request.path)

    def fault(self, path: str) -> Fault | None:
        waiting = self.faults.get(path)
        return waiting.popleft() if waiting else None


@contextmanager
def hub_stand_in() -> Iterator[HubStandIn]:
    """Serve on a free port of loopback until the block ends."""
    state = HubStandIn()
    handler = type("Handler", (_Handler,), {"hub": state})
    server = _Server(("127.0.0.1", 0), handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield state
    finally:
        for faults in state.faults.values():
            for fault in faults:
                if fault.go_on:
                    fault.go_on.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Keep quiet: clients are killed on purpose."""


class _Handler(BaseHTTPRequestHandler):
    hub: HubStandIn
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Keep quiet."""

    def _answer(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        header = {key.lower(): value for key, value in self.headers.items()}
        self.hub.requests.append(
            Request(
                self.command,
                path,
                header.get("range", ""),
                header.get("authorization", ""),
                header.get("user-agent", ""),
            )
        )
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/(.+)", path):
            self._info(match[1], match[2], blobs="blobs" in parse_qs(url.query))
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(match[1], match[2], match[3])
        elif match := re.fullmatch(r"/cdn/([^/]+/[^/]+)/(.+)", path):
            repository = self.hub.repositories[match[1]]
            content = repository.files[match[2]]
            self._bytes(match[2], content, {"ETag": f'"{sha256(content)}"'}, tells_size=not repository.is_sizeless)
        else:
            self._refuse(404, "", "not found")

    def _info(self, name: str, revision: str, *, blobs: bool) -> None:
        if self.hub.api_faults:
            self._fail(self.hub.api_faults.popleft())
            return
        repository = self._repository(name, revision)
        if repository is None:
            return
        siblings = [
            {"rfilename": path} | (_blob(content) if blobs and repository.tells_sizes else {})
            for path, content in repository.files.items()
        ]
        self._json(
            {
                "id": name,
                "modelId": name,
                "sha": repository.commit,
                "private": repository.private,
                "gated": "manual" if repository.gated else False,
                "tags": list(repository.tags),
                "siblings": siblings,
            }
        )

    def _resolve(self, name: str, revision: str, path: str) -> None:
        if self.command == "HEAD" and self.hub.head_faults:
            self._fail(self.hub.head_faults.popleft())
            return
        repository = self._repository(name, revision)
        if repository is None:
            return
        if repository.gated and not self._has(repository.token):
            self._refuse(403 if self.headers["authorization"] else 401, "GatedRepo", f"Access to {name} is restricted")
            return
        content = repository.files.get(path)
        if content is None:
            self._refuse(404, "EntryNotFound", "Entry not found")
            return
        if len(content) < LARGE:
            headers = {"ETag": f'"{git_sha1(content)}"', "X-Repo-Commit": repository.commit}
            self._bytes(path, content, headers, tells_size=not repository.is_sizeless)
            return
        self.send_response(302)
        self.send_header("Location", f"{self.hub.url}/cdn/{name}/{path}")
        self.send_header("X-Repo-Commit", repository.commit)
        self.send_header("X-Linked-Etag", f'"{sha256(content)}"')
        if not repository.is_sizeless:
            self.send_header("X-Linked-Size", str(len(content)))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _repository(self, name: str, revision: str) -> Repository | None:
        """Return the repository, or answer that there is none."""
        repository = self.hub.repositories.get(name)
        authorization = self.headers["authorization"]
        if (
            authorization
            and (repository is None or authorization != f"Bearer {repository.token}")
            and not (repository is not None and repository.gated)
        ):
            self._refuse(401, "", "Invalid credentials in Authorization header")
        elif repository is None or (repository.private and not self._has(repository.token)):
            self._refuse(404 if authorization else 401, "RepoNotFound", "Repository not found")
        elif revision not in {*repository.revisions, repository.commit}:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            return repository
        return None

    def _has(self, token: str) -> bool:
        return bool(token) and self.headers["authorization"] == f"Bearer {token}"

    def _bytes(self, path: str, content: bytes, headers: Mapping[str, str], *, tells_size: bool) -> None:
        fault = (self.hub.fault(path) if self.command == "GET" else None) or Fault()
        if fault.status or fault.drops:
            self._fail(fault)
            return
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers["range"] or "")
        if asked and not fault.ignores_ranges:
            first = int(asked[1])
            last = min(int(asked[2] or len(content) - 1), len(content) - 1)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content) if tells_size else '*'}")
            body = content[first : last + 1]
        else:
            self.send_response(200)
            body = content
        if fault.flips:
            body = bytes([body[0] ^ 1]) + body[1:]
        for key, value in headers.items():
            self.send_header(key, value)
        if tells_size:
            self.send_header("Content-Length", str(len(body)))
        else:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if self.command == "HEAD":
            return
        sent = body[: fault.after]
        if not tells_size:
            sent = b"%x\r\n%b\r\n" % (len(sent), sent) if sent else b""
            sent += b"0\r\n\r\n" if fault.after is None else b""
        self._send(sent)
        if fault.after is None:
            return
        self.close_connection = True
        if fault.go_on is not None:
            fault.go_on.wait(60)

    def _fail(self, fault: Fault) -> None:
        """Answer with the status of the fault, or not at all."""
        if fault.drops:
            self.close_connection = True
        else:
            self._refuse(fault.status, "", "", fault.headers)

    def _send(self, body: bytes) -> None:
        try:
            self.wfile.write(body)
            self.wfile.flush()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _json(self, record: object) -> None:
        body = json.dumps(record).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self._send(body)

    def _refuse(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"X-Error-Code": code, "X-Error-Message": message, **(headers or {})}.items():
            if value:
                self.send_header(key, value)
        self.send_header("Content-Length", "0")
        self.end_headers()


def sha256(content: bytes) -> str:
    """Return the checksum of a large file, as the Hub tells it."""
    return hashlib.sha256(content).hexdigest()


def git_sha1(content: bytes) -> str:
    """Return the checksum of a small file, as the Hub tells it."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _blob(content: bytes) -> dict[str, object]:
    if len(content) < LARGE:
        return {"size": len(content), "blobId": git_sha1(content)}
    pointer = {"sha256": sha256(content), "size": len(content), "pointerSize": 134}
    return {"size": len(content), "blobId": "f" * 40, "lfs": pointer}
