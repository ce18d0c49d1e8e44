"""Validation of images in native requests: formats and maximum size (contract §2.6).

Checks only the first bytes: the gateway has no image library, and the worker decodes images.
"""

from __future__ import annotations

from collections.abc import Sequence

from vllama.errors import RequestError

MOST_BYTES = 32 * 1024**2
"""Maximum bytes of a decoded image. Ollama has no limit; a photograph has about a fifth of this."""

_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a")


def check_images(images: Sequence[bytes], where: str) -> None:
    """Raise RequestError unless each is a PNG, JPEG, WebP or GIF of at most MOST_BYTES; `where` names their list."""
    for index, data in enumerate(images):
        if not (data.startswith(_SIGNATURES) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")):
            what = "is neither PNG, JPEG, WebP nor GIF" if data else "is empty"
            raise RequestError(f"invalid image input: {where}[{index}] {what}")
        if len(data) > MOST_BYTES:
            size = f"has {len(data)} bytes, the limit is {MOST_BYTES}"
            raise RequestError(f"invalid image input: {where}[{index}] {size}; send a smaller image")
