"""The special tokens that a tokenizer puts around every text, such as BOS: added once, whatever the text has already.

llama.cpp adds them to all prompts of Ollama (`llama_vocab::impl::tokenize` in src/llama-vocab.cpp), also to what a Go
template rendered. Jinja templates write them themselves, so vLLM does not add them to those.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_SAMPLE = "a"


class SpecialTokens:
    """The tokens that one tokenizer adds before and after a text: `before` and `after` are their ids."""

    def __init__(self, tokenizer: Any) -> None:
        plain, whole = (list(tokenizer.encode(_SAMPLE, add_special_tokens=added)) for added in (False, True))
        starts = (at for at in range(len(whole) - len(plain) + 1) if whole[at : at + len(plain)] == plain)
        start = next(starts, None)
        self.before: tuple[int, ...] = () if start is None else tuple(whole[:start])
        self.after: tuple[int, ...] = () if start is None else tuple(whole[start + len(plain) :])
        self._opening, self._closing = (
            "".join(map(str, tokenizer.convert_ids_to_tokens(list(ids)))) for ids in (self.before, self.after)
        )

    def added_to(self, text: str) -> str:
        """Return the text with the special tokens that it lacks."""
        before = "" if text.startswith(self._opening) else self._opening
        after = "" if text.endswith(self._closing) else self._closing
        return f"{before}{text}{after}"

    def added_to_ids(self, ids: Sequence[int]) -> list[int]:
        """Return the token ids of a text with the special tokens that they lack."""
        before = () if self.begin(ids) else self.before
        after = () if tuple(ids[len(ids) - len(self.after) :]) == self.after else self.after
        return [*before, *ids, *after]

    def removed_from(self, text: str) -> str:
        """Return the text without them, for a tokenizer that is going to add them."""
        return text.removeprefix(self._opening).removesuffix(self._closing)

    def begin(self, ids: Sequence[int]) -> bool:
        """Return whether token ids begin with the special tokens before a text; False if there are none."""
        return bool(self.before) and tuple(ids[: len(self.before)]) == self.before
