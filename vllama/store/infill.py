"""Fill-in-the-middle: which tokens a model was trained with, from its vocabulary (contract §2.3 `suffix`)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class InfillTokens:
    """The markers around what stands before the gap and after it; the model writes after `middle`.

    `suffix_first` is for the families that want the end of the text before its beginning.
    """

    prefix: str
    suffix: str
    middle: str
    suffix_first: bool = False

    def prompt(self, before: str, after: str) -> str:
        """The raw prompt for a gap between these texts."""
        if self.suffix_first:
            return f"{self.suffix}{after}{self.prefix}{before}{self.middle}"
        return f"{self.prefix}{before}{self.suffix}{after}{self.middle}"


_FAMILIES = (
    InfillTokens("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen2.5-Coder, CodeGemma, Granite 4
    InfillTokens("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder 1 and 2, Granite Code
    InfillTokens("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek-Coder 1 and 2
    InfillTokens("▁<PRE>", "▁<SUF>", "▁<MID>"),  # CodeLlama
    InfillTokens("[PREFIX]", "[SUFFIX]", "", suffix_first=True),  # Codestral
)


def infill_tokens(vocabulary: Collection[str]) -> InfillTokens | None:
    """The markers that are tokens of their own here; None for a model that fills no gaps."""
    for family in _FAMILIES:
        if all(token in vocabulary for token in (family.prefix, family.suffix, family.middle) if token):
            return family
    return None
