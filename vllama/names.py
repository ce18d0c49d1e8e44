"""Model names as users type them (contract §3)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from vllama.durations import quote
from vllama.errors import InvalidName

DEFAULT_HOST = "registry.ollama.ai"
DEFAULT_NAMESPACE = "library"
DEFAULT_TAG = "latest"

_LOCAL = ":local"

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")
_NAMESPACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}")


@dataclass(frozen=True, slots=True)
class ModelName:
    """A complete name: `host/namespace/model:tag`, spelled as the user spelled it.

    Names that differ only in case mean the same model: compare `key`. A namespace may contain
    dots, which Ollama's grammar forbids but organisation names on Hugging Face need.
    """

    host: str
    namespace: str
    model: str
    tag: str

    @classmethod
    def parse(cls, text: str) -> ModelName:
        """Parse `[scheme://][host/][namespace/]model[:tag][:local]`. Raises InvalidName.

        `:local` excludes Ollama's cloud, which this server never uses anyway.
        """
        rest = text.strip()
        if rest.lower().endswith(_LOCAL):
            rest = rest[: -len(_LOCAL)]
            if _is_cloud(rest.rpartition(":")[2]):
                raise InvalidName(f"use either :local or :cloud, not both: {quote(text)}")
        if "://" in rest:
            rest = rest.partition("://")[2]
        path, tag = rest, DEFAULT_TAG
        slash, colon = rest.rfind("/"), rest.rfind(":")
        if colon > slash:
            path, tag = rest[:colon], rest[colon + 1 :]
        parts = path.split("/")
        if len(parts) > 3:
            raise InvalidName
        model = parts[-1]
        namespace = parts[-2] if len(parts) > 1 else DEFAULT_NAMESPACE
        host = parts[-3] if len(parts) > 2 else DEFAULT_HOST
        if not (
            _HOST.fullmatch(host)
            and _NAMESPACE.fullmatch(namespace)
            and _PART.fullmatch(model)
            and _PART.fullmatch(tag)
        ) or any(".." in part for part in (host, namespace, model, tag)):
            raise InvalidName
        return cls(host, namespace, model, tag)

    @property
    def key(self) -> str:
        """The identity of the model: the full name in lower case."""
        return self.full.lower()

    @property
    def full(self) -> str:
        """`registry.ollama.ai/library/model:tag`, as in Ollama's capability errors."""
        return f"{self.host}/{self.namespace}/{self.model}:{self.tag}"

    @property
    def display(self) -> str:
        """The short form for lists, without default host and namespace, always with the tag."""
        if self.host.lower() != DEFAULT_HOST:
            return self.full
        if self.namespace.lower() != DEFAULT_NAMESPACE:
            return f"{self.namespace}/{self.model}:{self.tag}"
        return f"{self.model}:{self.tag}"

    @property
    def is_cloud(self) -> bool:
        """Whether the model exists only in Ollama's cloud (`x:cloud`, `x:120b-cloud`)."""
        return _is_cloud(self.tag)

    def __str__(self) -> str:
        return self.display


def _is_cloud(tag: str) -> bool:
    return tag.lower() == "cloud" or tag.lower().endswith("-cloud")
