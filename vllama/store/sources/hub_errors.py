"""Error messages for failed requests to the Hub, with advice."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass

TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})
"""Statuses after which a retry may succeed."""

LONGEST_WAIT = 60.0
"""Maximum wait in seconds; if the server demands a longer one, the user gets an error instead."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The request, and whether it had a token. `is_gated` comes from the catalogue."""

    endpoint: str
    repository: str
    revision: str
    has_token: bool
    is_gated: bool = False


def explain(asked: Asked, status: int, headers: Mapping[str, str]) -> str:
    """Return the error message for a reply with an error status; `headers` have lower-case names."""
    code, said = headers.get("x-error-code", ""), headers.get("x-error-message", "")
    if code == "RevisionNotFound":
        return f"pull model manifest: file does not exist: '{asked.repository}' has no revision '{asked.revision}'"
    if code == "EntryNotFound":
        return f"pull model manifest: file does not exist: {said or 'a listed file is gone'}; pull again"
    if code == "GatedRepo" or (asked.is_gated and not code and not said and status in {401, 403}):
        return _gated(asked)  # mirrors often omit the code
    if said == "Access to this resource is disabled.":
        return f"'{asked.repository}' was disabled by the Hub or its author"
    if status == 401 and said == "Invalid credentials in Authorization header":
        return f"{asked.endpoint} rejected the token: set HF_TOKEN to a valid token, or unset it"
    if code == "RepoNotFound" or status in {401, 404}:
        private = "" if asked.has_token else "; if it is private, set HF_TOKEN to a token with read access"
        return f"pull model manifest: file does not exist: {asked.endpoint} has no '{asked.repository}'{private}"
    if status == 403:
        return f"{asked.endpoint} denied access to '{asked.repository}' (403){f': {said}' if said else ''}"
    if status == 429:
        when = f"in {headers['retry-after']} s" if headers.get("retry-after", "").isdigit() else "later"
        more = "" if asked.has_token else ", or set HF_TOKEN: signed-in users have higher rate limits"
        return f"{asked.endpoint} rate limit reached (429): try again {when}{more}"
    return f"{asked.endpoint} answered {status} for '{asked.repository}'{f': {said}' if said else ''}; try again later"


def is_unresolved(error: BaseException | None) -> bool:
    """Return whether a request failed because a host name does not resolve: the Hub's, or that of a proxy."""
    while error is not None:
        if isinstance(error, socket.gaierror):
            return True
        error = error.__cause__ or error.__context__
    return False


def unreachable(asked: Asked, error: Exception) -> str:
    """Return the error message for a Hub that cannot be reached."""
    reason = str(error) or type(error).__name__
    if is_unresolved(error):
        reason = f"its host name, or that of the proxy, does not resolve ({reason})"
    return (
        f"cannot reach {asked.endpoint}: {reason}; check the network and its proxy, set "
        "HF_ENDPOINT to a mirror, or copy a snapshot to this machine and pull it with --from DIRECTORY"
    )


def undeliverable(asked: Asked, path: str, error: Exception) -> str:
    """Return what to do where a file cannot be had however often it is asked for."""
    return (
        f"cannot fetch {path} of '{asked.repository}' from {asked.endpoint}: {str(error) or type(error).__name__}; "
        "check HF_ENDPOINT and the proxy"
    )


def offline(asked: Asked) -> str:
    """Return the error message for HF_HUB_OFFLINE."""
    return (
        f"HF_HUB_OFFLINE is set, so '{asked.repository}' cannot be downloaded from {asked.endpoint}: unset it, or "
        "pull a local snapshot with --from DIRECTORY"
    )


def _gated(asked: Asked) -> str:
    page = f"{asked.endpoint}/{asked.repository}"
    if asked.has_token:
        return f"'{asked.repository}' is gated, and the account of HF_TOKEN has no access: request it at {page}"
    return (
        f"'{asked.repository}' is gated: accept its licence at {page}, create a token at "
        f"{asked.endpoint}/settings/tokens and set HF_TOKEN to it (for `vllama serve` too, if the server pulls)"
    )
