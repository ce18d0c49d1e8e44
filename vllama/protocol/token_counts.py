"""Token counts of a request, which the worker tells the gateway: in a frame, in a header, or at the end of a stream."""

from __future__ import annotations

from typing import NamedTuple

HEADER = b"x-vllama-tokens"
"""Header of a complete reply of vLLM's own routes. The gateway removes it."""

MARK = b": vllama-tokens "
"""Beginning of the last chunk of an event stream: a comment, which the gateway removes."""

_LONGEST = 50


class TokenCounts(NamedTuple):
    """Tokens of the prompt, of these the ones that were read from a cache, and tokens of the reply."""

    prompt: int = 0
    cached: int = 0
    output: int = 0

    def to_bytes(self) -> bytes:
        """Return the counts as text."""
        return b"%d %d %d" % self

    @classmethod
    def from_bytes(cls, text: bytes) -> TokenCounts | None:
        """Return the counts of a text; None if it is something else."""
        if len(text) > _LONGEST:
            return None
        try:
            prompt, cached, output = map(int, text.split())
        except ValueError:
            return None
        return cls(prompt, cached, output) if min(prompt, cached, output) >= 0 else None
