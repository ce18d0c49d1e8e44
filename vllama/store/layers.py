"""Layers of a model as reported by `/api/create` (contract §1.9).

A layer's digest is the sha256 of its bytes, and equal parts of two models have equal digests:

    model      the JSON list of all files' paths, sizes and checksums; also the name of the snapshot's directory
    adapter    the same for the LoRA adapter's files
    template   the text                  system     the text                license    the text
    params     a JSON object             messages   a JSON list of objects

The last five have the same bytes, and so the same digests, as in Ollama.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from vllama.store.hashing import sha256_of
from vllama.store.manifest import Manifest, content_digest

_ESCAPED = (
    (b"&", rb"\u0026"),
    (b"<", rb"\u003c"),
    (b">", rb"\u003e"),
    ("\u2028".encode(), rb"\u2028"),
    ("\u2029".encode(), rb"\u2029"),
)


def layers(manifest: Manifest) -> list[str]:
    """Return the digests, "sha256:<64 hex>", in the order of the table, without empty parts."""
    files = [f"sha256:{content_digest(files)}" for files in manifest.snapshots.values()]
    return [*files, *(f"sha256:{sha256_of(data)}" for data in _parts(manifest) if data)]


def _parts(manifest: Manifest) -> Iterator[bytes]:
    yield manifest.template.encode()
    yield manifest.system.encode()
    yield manifest.license.encode()
    yield _as_go_writes(dict(manifest.parameters)) if manifest.parameters else b""
    messages = [{"role": message.role, "content": message.content} for message in manifest.messages]
    yield _as_go_writes(messages) if messages else b""


def _as_go_writes(value: Any) -> bytes:
    """Return JSON as Go's encoder writes it: `<`, `>`, `&` and two separators escaped, a newline at the end."""
    text = orjson.dumps(value, option=orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE)
    for plain, escaped in _ESCAPED:
        text = text.replace(plain, escaped)
    return text
