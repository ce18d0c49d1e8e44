"""Shares of the context for a prompt and its reply (contract §2.7).

vLLM's context is fixed when it starts. A request's `num_ctx` is a limit within it, so where Ollama would forget the
middle of a text to go on (`shift`), a reply simply goes on into the rest of the context that is served.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vllama.ollama.options import Sampling

_LONGEST_REPLY = 10
"""Maximum length of a reply in contexts, as in Ollama (contract §2.10 `num_predict`)."""


@dataclass(frozen=True, slots=True)
class Window:
    """All in tokens. `limit` is what a prompt may take, `served` what prompt and reply have together."""

    limit: int
    served: int
    num_predict: int
    num_keep: int

    @classmethod
    def of(cls, sampling: Sampling, served: int) -> Window:
        """Return the window of a request on an engine that serves this many tokens."""
        limit = min(sampling.num_ctx, served) if sampling.num_ctx > 0 else served
        return cls(limit, served, sampling.num_predict, sampling.num_keep)

    def fits(self, prompt: int) -> bool:
        """Return whether a prompt of this many tokens is within the limit and leaves room for a reply."""
        return prompt <= self.limit and prompt < self.served

    def clipped(self, ids: Sequence[int], opening: int = 0) -> list[int]:
        """Return the prompt without its middle: the first `num_keep` tokens, and as many of the last as fit.

        `opening` is how many special tokens stand before the text; they are kept beyond `num_keep`, as in Ollama.
        """
        size = self.limit
        if size == self.served:
            half = self.served // 2
            size -= max(min(self.num_predict, half), 1) if self.num_predict > 0 else half
        kept = size - 1 if self.num_keep < 0 else min(self.num_keep + opening, size - 1)
        return [*ids[:kept], *ids[len(ids) - (size - kept) :]]

    def longest_reply(self, prompt: int, *, shift: bool) -> int:
        """Return the maximum tokens of a reply. Without `shift` it ends at the limit, as in Ollama."""
        room = self.served - prompt
        if not shift:
            room = min(room, self.limit - prompt + 1)  # the last token need not be kept
        if self.num_predict > 0:
            return min(self.num_predict, room)
        return min(_LONGEST_REPLY * self.limit, room)
