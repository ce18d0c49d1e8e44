"""Access checks that need no key: Host and Origin (contract §6.2, §6.3)."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

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
_KEY_HEADERS = b",X-Api-Key,Anthropic-Version,Anthropic-Beta,Anthropic-Dangerous-Direct-Browser-Access"
"""Headers that clients of Anthropic's API also send from web pages; Ollama, which has no keys, does not allow it."""

_MAX_AGE = b"43200"
_IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
_PRIVATE = tuple(map(ipaddress.ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")))
_NO_NAME = dict.fromkeys(map(ord, "/?#@!$&'()*+,;=%~\\ "))
"""Characters that no name of a host and no address has; Go lets some of them pass in a Host header."""

_LONGEST_HOST = 255
"""Maximum characters of a local host's name: names have at most 253. Answers are kept, each with its name."""

_VARIES = (
    (b"vary", b"Origin"),
    (b"vary", b"Access-Control-Request-Method"),
    (b"vary", b"Access-Control-Request-Headers"),
)

Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The decision on a request: refuse it with `status`, or continue and add `headers` to the reply."""

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
        self._checks_host = settings.address.is_loopback
        self._names = {"localhost", socket.gethostname().lower()}
        local = [f"{scheme}://{name}" for scheme in ("http", "https") for name in _LOCAL_NAMES]
        patterns = [*settings.origins, *local, *(f"{origin}:*" for origin in local)]
        patterns += [f"{scheme}://*" for scheme in _APP_SCHEMES]
        self._any_origin = "*" in settings.origins
        self._origins = re.compile("|".join(_wildcards(pattern) for pattern in patterns), re.IGNORECASE)

    def judge(self, method: str, headers: Mapping[bytes, bytes], *, needs_key: bool = False) -> Verdict:
        """Decide on a request by its headers (names in lower case); `needs_key` says whether requests need keys."""
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
                (b"access-control-allow-headers", _ALLOWED_HEADERS + (_KEY_HEADERS if needs_key else b"")),
                (b"access-control-allow-methods", _ALLOWED_METHODS),
                allowed,
                (b"access-control-max-age", _MAX_AGE),
                *varies,
            ),
        )

    def _host_allowed(self, header: str) -> bool:
        host = _without_port(header).lower()
        if not host or host in self._names or (len(host) <= _LONGEST_HOST and _is_local(host)):
            return True
        return _address(host) is not None and host in _own_addresses()  # only for addresses: it may ask a name server


@lru_cache(maxsize=256)
def _is_local(host: str) -> bool:
    """Return whether a host's name or address is one of this machine or of a private network."""
    if host.translate(_NO_NAME) != host:
        return False
    if host.endswith((".localhost", ".local", ".internal")):
        return True
    address = _address(host)
    return address is not None and (address.is_loopback or _is_private(address) or address.is_unspecified)


def _wildcards(pattern: str) -> str:
    return ".*".join(re.escape(part) for part in pattern.split("*"))


def _is_same_origin(origin: bytes, host: bytes) -> bool:
    return origin in {b"http://" + host, b"https://" + host}


def _without_port(header: str) -> str:
    """Return the host of `host[:port]`; the whole text, which is no host, if something else stands after the colon."""
    host, port = header, ""
    if header.startswith("["):
        host, _, port = header[1:].partition("]")
        if port and not port.startswith(":"):
            return header
        port = port[1:]
    elif header.count(":") == 1:
        host, _, port = header.partition(":")
    return host if port.isdecimal() or not port else header


def _address(host: str) -> _IpAddress | None:
    """Return the address as which a host is stated; None for a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _is_private(address: _IpAddress) -> bool:
    """Return whether networks use the address internally, as Go's `netip.Addr.IsPrivate` does.

    Python counts link-local addresses, with which clouds tell machines their secrets, and those of documents.
    """
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return any(address.version == network.version and address in network for network in _PRIVATE)


def _own_addresses() -> Sequence[str]:
    try:
        return [str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), None)]
    except OSError:
        return []
