"""Access control: the key of each request, the models that it allows, and the routes that change the model store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from vllama.errors import Forbidden, SettingsError, Unauthenticated, VllamaError
from vllama.gateway.audit import Audit
from vllama.gateway.keyring import Keyring
from vllama.gateway.routing import Handler, Request
from vllama.keys.key import LONGEST_SECRET, Key, digest
from vllama.keys.key_file import KeyFile
from vllama.names import ModelName
from vllama.ollama.status import status_of
from vllama.settings import Settings

_OPEN = frozenset({("GET", "/"), ("HEAD", "/")})
"""Requests that need no key: by these, clients, containers and proxies see that the server lives."""

_BEARER = b"bearer "
_CLIENT_LEFT = 499


class Access:
    """Access control by keys. Without a key file everything is allowed, as with Ollama."""

    def __init__(self, settings: Settings) -> None:
        """Read the key file. Raises KeysError if it is invalid."""
        self._keyring = Keyring(settings.keys_file)
        self._audit = Audit()
        self.adopt(settings)

    def adopt(self, settings: Settings) -> None:
        """Use these settings from now on."""
        self._management = settings.management
        self._keyring.adopt(settings.keys_file)
        self._audit.adopt(settings)

    def close(self) -> None:
        """Close the audit log."""
        self._audit.close()

    @property
    def needs_key(self) -> bool:
        """Whether requests need a key."""
        return self._keyring.is_on

    def authenticate(self, request: Request) -> None:
        """Find the key of a request and put it there. Raises Unauthenticated if it needs one and has none."""
        keyring = self._keyring
        keyring.look(request.received)
        if not keyring.is_on:
            return
        request.key = self._key_of(request.headers)
        if request.key is None and (request.method, request.path) not in _OPEN:
            has_one = any(True for _ in _secrets(request.headers))
            self._audit.record(request, 401, "its key is unknown" if has_one else "it has no key")
            raise Unauthenticated

    def managed(self, handler: Handler) -> Handler:
        """Return a handler for a route that changes the store: it refuses keys without the right, and keeps a record.

        Raises Forbidden.
        """

        async def checked(request: Request) -> None:
            if refusal := self._refusal(request.key):
                self._audit.record(request, 403, refusal)
                raise Forbidden(refusal)
            status = _CLIENT_LEFT
            try:
                await handler(request)
            except VllamaError as error:
                status = status_of(error)
                raise
            finally:
                self._audit.record(request, request.status or status)

        return checked

    def _key_of(self, headers: Mapping[bytes, bytes]) -> Key | None:
        for secret in _secrets(headers):
            key = self._keyring.find(digest(secret))
            if key is not None:
                return key
        return None

    def _refusal(self, key: Key | None) -> str:
        """Return why a request may not change the store; "" if it may."""
        if self._management == "off":
            return "changes to the model store over HTTP are turned off (VLLAMA_MANAGEMENT)"
        if key is not None and key.is_admin:
            return ""
        if self._management == "admin":
            return "only admins' keys may change the model store (vllama key create NAME --admin)"
        if key is not None and key.models:
            return "this key is limited to some models, so it may not change the model store"
        return ""


def check_model(request: Request, name: ModelName) -> None:
    """Raise Forbidden if the request's key may not use a model, whether or not the model is stored."""
    if not may_use(request, name):
        raise Forbidden(f"this key does not allow the model '{name.display}'")


def may_use(request: Request, name: ModelName) -> bool:
    """Return whether the request may use a model, and see it in lists."""
    return request.key is None or request.key.permits(name)


def require_keys(settings: Settings) -> None:
    """Raise SettingsError if others could use the server without a key, and the user has not agreed to that."""
    address = settings.address
    if address.is_loopback or settings.insecure or KeyFile(settings.keys_file).version() is not None:
        return
    raise SettingsError(
        f"{address.host} can be reached from other machines, and {settings.keys_file} has no API keys. Create a key "
        "with `vllama key create NAME`, or let everybody in with --insecure (VLLAMA_INSECURE=1)"
    )


def _secrets(headers: Mapping[bytes, bytes]) -> Iterator[bytes]:
    """Yield what may be the secret of a key; some clients send two."""
    sent = headers.get(b"authorization", b"")
    bearer = sent[len(_BEARER) :].strip() if sent[: len(_BEARER)].lower() == _BEARER else b""
    for secret in (bearer, headers.get(b"x-api-key", b"").strip()):
        if secret and len(secret) <= LONGEST_SECRET:
            yield secret
