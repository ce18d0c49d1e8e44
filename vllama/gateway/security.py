"""Who may talk to an unauthenticated local server: Host and Origin (contract §6.2, §6.3)."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vllama.settings import Settings

_LOCAL_NAMES = ("localhost", "127.0.0.1", "0.0.0.0")  # noqa: S104 - origins to recognise, not to bind
_APP_SCHEMES = ("app", "file", "tauri", "vscode-webview", "vscode-file")

_ALLOWED_METHODS = b"GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS"
_ALLOWED_HEADERS = (
    b"Authorization,Content-Type,User-Agent,Accept,X-Requested-With,Openai-Beta,X-Stainless-Arch,X-Stainless-Async,"
    b"X-Stainless-Custom-Poll-Interval,X-Stainless-Helper-Method,X-Stainless-Lang,X-Stainless-Os,"
    b"X-Stainless-Package-Version,X-Stainless-Poll-Helper,X-Stainless-Retry-Count,X-Stainless-Runtime,"
    b"X-Stainless-Runtime-Version,X-Stainless-Timeout"
)
_MAX_AGE = b"43200"
_VARIES = (
    (b"vary", b"Origin"),
    (b"vary", b"Access-Control-Request-Method"),
    (b"vary", b"Access-Control-Request-Headers"),
)

Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do with a request: refuse it with `status`, or go on and add `headers` to the reply."""

    status: int = 0
    headers: tuple[tuple[bytes, bytes], ...] = ()

    @property
    def refused(self) -> bool:
        """Whether the request ends here, with an empty body."""
        return self.status != 0


_PASS = Verdict()
_FORBIDDEN = Verdict(403)


class Guard:
    """Checks Host against DNS rebinding, and Origin against foreign web pages."""

    def __init__(self, settings: Settings) -> None:
        self._checks_host = _is_loopback(settings.address.host)
        self._names = {"localhost", socket.gethostname().lower()}
        local = [f"{scheme}://{name}" for scheme in ("http", "https") for name in _LOCAL_NAMES]
        patterns = [*settings.origins, *local, *(f"{origin}:*" for origin in local)]
        patterns += [f"{scheme}://*" for scheme in _APP_SCHEMES]
        self._any_origin = "*" in settings.origins
        self._origins = re.compile("|".join(_wildcards(pattern) for pattern in patterns), re.IGNORECASE)

    def judge(self, method: str, headers: Mapping[bytes, bytes]) -> Verdict:
        """Decide on a request by its headers (names in lower case)."""
        if self._checks_host and not self._host_allowed(headers.get(b"host", b"").decode("latin-1")):
            return _FORBIDDEN
        origin = headers.get(b"origin")
        if not origin or _is_same_origin(origin, headers.get(b"host", b"")):
            return _PASS
        if not (self._any_origin or self._origins.fullmatch(origin.decode("latin-1"))):
            return _FORBIDDEN
        allowed = (b"access-control-allow-origin", b"*" if self._any_origin else origin)
        varies = () if self._any_origin else _VARIES
        if method != "OPTIONS":
            return Verdict(headers=(allowed, *varies[:1]))
        return Verdict(
            status=204,
            headers=(
                (b"access-control-allow-headers", _ALLOWED_HEADERS),
                (b"access-control-allow-methods", _ALLOWED_METHODS),
                allowed,
                (b"access-control-max-age", _MAX_AGE),
                *varies,
            ),
        )

    def _host_allowed(self, header: str) -> bool:
        host = _without_port(header).lower()
        if not host or host in self._names or host.endswith((".localhost", ".local", ".internal")):
            return True
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return False
        return address.is_loopback or address.is_private or address.is_unspecified or host in _own_addresses()


def _wildcards(pattern: str) -> str:
    return ".*".join(re.escape(part) for part in pattern.split("*"))


def _is_same_origin(origin: bytes, host: bytes) -> bool:
    return origin in {b"http://" + host, b"https://" + host}


def _without_port(header: str) -> str:
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0] if header.count(":") == 1 else header


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _own_addresses() -> Sequence[str]:
    try:
        return [str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), None)]
    except OSError:
        return []
