"""One API key: what it allows, and how it is stored.

Only the SHA-256 of a key's secret is stored. A slow password hash would add nothing: a secret has 256 random bits, so
they cannot all be tried, however fast the hash is. It would add milliseconds to each request instead.
"""

from __future__ import annotations

import fnmatch
import hashlib
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from vllama.errors import InvalidName, KeysError
from vllama.names import ModelName

CLASSES: Mapping[str, int] = {"high": 4, "normal": 2, "low": 1}
"""Priority classes, and the share of a busy model that a key of each class gets."""

PREFIX = "vllama-"
"""Beginning of each secret, by which scanners for leaked secrets can find them."""

LONGEST_SECRET = 256
"""Maximum length of what is compared with the stored digests; our own secrets have 50 characters."""

MOST_MODELS = 256
_SECRET_BYTES = 32
_LARGEST_NUMBER = 2**53
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}")
_PATTERN = re.compile(r"[A-Za-z0-9_.:/*?\[\]!-]{1,350}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Key:
    """A key as it is stored. `models` are glob patterns (none: all models); a limit of 0 is no limit.

    `digest` is the SHA-256 of the secret in hexadecimal; `created` is an RFC 3339 time. Raises KeysError for values
    out of range.
    """

    name: str
    digest: str
    models: tuple[str, ...] = ()
    requests_per_minute: int = 0
    tokens_per_day: int = 0
    priority: str = "normal"
    is_admin: bool = False
    created: str = ""
    _allowed: re.Pattern[str] | None = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        _check(self)
        patterns = [fnmatch.translate(pattern.lower()) for pattern in self.models]
        object.__setattr__(self, "_allowed", re.compile("|".join(patterns)) if patterns else None)

    def permits(self, name: ModelName) -> bool:
        """Return whether the key may use a model.

        A pattern is compared with the short name, with it without the tag `latest`, and with the full name.
        """
        allowed = self._allowed
        if allowed is None:
            return True
        display = name.display.lower()
        if allowed.fullmatch(display) or allowed.fullmatch(name.key):
            return True
        return allowed.fullmatch(display.removesuffix(":latest")) is not None

    @property
    def weight(self) -> int:
        """The share of a busy model, relative to that of other keys."""
        return CLASSES[self.priority]

    def to_record(self) -> dict[str, Any]:
        """Return the key as JSON values."""
        return {
            "name": self.name,
            "sha256": self.digest,
            "models": list(self.models),
            "requests_per_minute": self.requests_per_minute,
            "tokens_per_day": self.tokens_per_day,
            "class": self.priority,
            "admin": self.is_admin,
            "created": self.created,
        }

    @classmethod
    def from_record(cls, record: object) -> Key:
        """Return the key of a record. Raises KeysError if it is invalid."""
        if not isinstance(record, dict):
            raise KeysError("a key is not an object")
        unknown = record.keys() - _FIELDS.keys()
        if unknown:
            raise KeysError(f"a key has the unknown field '{min(unknown)!s:.40}'")
        values = {_FIELDS[name]: value for name, value in record.items()}
        if isinstance(values.get("models"), list):
            values["models"] = tuple(values["models"])
        try:
            return cls(**values)
        except TypeError:
            raise KeysError("a key lacks its name or its sha256") from None


_FIELDS = {
    "name": "name",
    "sha256": "digest",
    "models": "models",
    "requests_per_minute": "requests_per_minute",
    "tokens_per_day": "tokens_per_day",
    "class": "priority",
    "admin": "is_admin",
    "created": "created",
}


def new_key(name: str, **rights: Any) -> tuple[str, Key]:
    """Return a new secret, and its key with these rights. Raises KeysError for values out of range."""
    secret = PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return secret, Key(name=name, digest=digest(secret.encode()), created=created, **rights)


def digest(secret: bytes) -> str:
    """Return the SHA-256 of a secret, by which keys are found.

    A lookup by digest needs no comparison in constant time: attackers cannot choose secrets whose digests begin alike.
    """
    return hashlib.sha256(secret).hexdigest()


def check_pattern(pattern: str) -> str:
    """Return a pattern for model names, such as `smollm2:*`, if it can match one. Raises KeysError."""
    if not _PATTERN.fullmatch(pattern):
        raise KeysError(f"'{pattern:.80}' is not a pattern for model names, such as smollm2:* or qwen2.5*")
    if not any(character in pattern for character in "*?["):
        try:
            ModelName.parse(pattern)
        except InvalidName as error:
            raise KeysError(f"'{pattern:.80}': {error}") from None
    return pattern


def _check(key: Any) -> None:
    if not isinstance(key.name, str) or not _NAME.fullmatch(key.name):
        raise KeysError(
            f"'{key.name!s:.80}' is not a name for a key: use up to 64 letters, digits and any of _ . @ -, "
            "beginning with a letter or digit"
        )
    if not isinstance(key.digest, str) or not _DIGEST.fullmatch(key.digest):
        raise KeysError(f"key {key.name}: sha256 is not a SHA-256 in hexadecimal")
    if not isinstance(key.models, tuple) or len(key.models) > MOST_MODELS:
        raise KeysError(f"key {key.name}: models is not a list of at most {MOST_MODELS} patterns")
    for pattern in key.models:
        check_pattern(pattern if isinstance(pattern, str) else "")
    for name in ("requests_per_minute", "tokens_per_day"):
        value = getattr(key, name)
        if type(value) is not int or not 0 <= value <= _LARGEST_NUMBER:
            raise KeysError(f"key {key.name}: {name} is not a number from 0")
    if not isinstance(key.priority, str) or key.priority not in CLASSES:
        raise KeysError(f"key {key.name}: class is not one of {', '.join(CLASSES)}")
    if type(key.is_admin) is not bool:
        raise KeysError(f"key {key.name}: admin is neither true nor false")
    if not isinstance(key.created, str) or len(key.created) > 40 or not key.created.isascii():
        raise KeysError(f"key {key.name}: created is not a time")
