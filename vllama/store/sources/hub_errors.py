"""What the Hub answers where it does not deliver, in words that say what to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})
"""Statuses after which asking again may help."""

LONGEST_WAIT = 60.0
"""Seconds; whoever is told to wait longer is told so, instead of waiting."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked for, and whether with a token. `is_gated` is what the catalogue knows of the repository."""

    endpoint: str
    repository: str
    revision: str
    has_token: bool
    is_gated: bool = False


def explain(asked: Asked, status: int, headers: Mapping[str, str]) -> str:
    """Return what an answer with an error status means for the user; `headers` have names in lower case."""
    code, said = headers.get("x-error-code", ""), headers.get("x-error-message", "")
    if code == "RevisionNotFound":
        return f"pull model manifest: file does not exist: '{asked.repository}' has no revision '{asked.revision}'"
    if code == "EntryNotFound":
        return f"pull model manifest: file does not exist: {said or 'a file that was listed is gone'}; pull again"
    if code == "GatedRepo" or (asked.is_gated and not code and not said and status in {401, 403}):
        return _gated(asked)  # mirrors tend to leave out the code
    if said == "Access to this resource is disabled.":
        return f"'{asked.repository}' was disabled by the Hub or by its author"
    if status == 401 and said == "Invalid credentials in Authorization header":
        return f"{asked.endpoint} does not accept the token in use: set HF_TOKEN to a valid one, or unset it"
    if code == "RepoNotFound" or status in {401, 404}:
        private = "" if asked.has_token else "; if it is private, set HF_TOKEN to a token that may read it"
        return f"pull model manifest: file does not exist: {asked.endpoint} has no '{asked.repository}'{private}"
    if status == 403:
        return f"{asked.endpoint} refuses access to '{asked.repository}' (403){f': {said}' if said else ''}"
    if status == 429:
        when = f"in {headers['retry-after']} s" if headers.get("retry-after", "").isdigit() else "later"
        more = "" if asked.has_token else ", or set HF_TOKEN: who is signed in may ask more often"
        return f"{asked.endpoint} limits how often it is asked (429): try again {when}{more}"
    return f"{asked.endpoint} answered {status} for '{asked.repository}'{f': {said}' if said else ''}; try again later"


def unreachable(asked: Asked, error: Exception) -> str:
    """Return what to do where nobody answers."""
    return (
        f"cannot reach {asked.endpoint}: {str(error) or type(error).__name__}; check the network and its proxy, set "
        "HF_ENDPOINT to a mirror, or bring a snapshot here by other means and pull it with --from DIRECTORY"
    )


def offline(asked: Asked) -> str:
    """Return what to do where the user forbade the network."""
    return (
        f"HF_HUB_OFFLINE is set, so '{asked.repository}' is not fetched from {asked.endpoint}: unset it, or pull a "
        "local snapshot with --from DIRECTORY"
    )


def _gated(asked: Asked) -> str:
    page = f"{asked.endpoint}/{asked.repository}"
    if asked.has_token:
        return f"'{asked.repository}' is gated, and the account of the token in use has no access: ask for it at {page}"
    return (
        f"'{asked.repository}' is gated: accept its licence at {page}, make a token at "
        f"{asked.endpoint}/settings/tokens and set HF_TOKEN to it (for `vllama serve` too, if that is to pull)"
    )
