"""Fill-in-the-middle prompts in the format that a model was trained with (contract §2.3 `suffix`)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Infill:
    """Markers of the text before and after the gap; the model writes after `middle`.

    `suffix_first` is for families that expect the suffix before the prefix.
    """

    prefix: str
    suffix: str
    middle: str
    suffix_first: bool = False

    def prompt(self, before: str, after: str) -> str:
        """Return the raw prompt for the gap between these texts."""
        if self.suffix_first:
            return f"{self.suffix}{after}{self.prefix}{before}{self.middle}"
        return f"{self.prefix}{before}{self.suffix}{after}{self.middle}"


_FAMILIES = (
    Infill("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen2.5-Coder, CodeGemma, Granite 4
    Infill("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder 1 and 2, Granite Code
    Infill("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek-Coder 1 and 2
    Infill("▁<PRE>", "▁<SUF>", "▁<MID>"),  # CodeLlama
    Infill("[PREFIX]", "[SUFFIX]", "", suffix_first=True),  # Codestral
)
_TRAINED_TO = ("granitemoehybrid",)
"""Architectures whose models were all trained for fill-in-the-middle."""


def infill_of(tokens: Collection[str], model_type: str, origin: str) -> Infill | None:
    """Return the markers of a model; None if it does not support fill-in-the-middle.

    `tokens` are the tokens that its tokenizer has beyond its learned vocabulary. General models of a family have the
    same ones as its code models but were not trained with them, so `origin` (repository, directory or name) must
    mention code as well: a wrong claim hurts more than a missing one (contract §4.5).
    """
    if "code" not in origin.lower() and model_type not in _TRAINED_TO:
        return None
    for family in _FAMILIES:
        if all(token in tokens for token in (family.prefix, family.suffix, family.middle) if token):
            return family
    return None
