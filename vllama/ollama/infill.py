"""Fill-in-the-middle: how a model was trained to write the text of a gap (contract §2.3 `suffix`)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Infill:
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
    Infill("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen2.5-Coder, CodeGemma, Granite 4
    Infill("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder 1 and 2, Granite Code
    Infill("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek-Coder 1 and 2
    Infill("▁<PRE>", "▁<SUF>", "▁<MID>"),  # CodeLlama
    Infill("[PREFIX]", "[SUFFIX]", "", suffix_first=True),  # Codestral
)
_TRAINED_TO = ("granitemoehybrid",)
"""Architectures of which every model was trained for it."""


def infill_of(tokens: Collection[str], model_type: str, origin: str) -> Infill | None:
    """How to ask a model for a gap; None for one that fills none.

    `tokens` are those that its tokenizer has beyond its learned vocabulary. The general models of a family have the
    same ones as those for code and never saw them used, so `origin` (repository, directory or name) has to speak
    of code as well: a wrong claim hurts more than a missing one (contract §4.5).
    """
    if "code" not in origin.lower() and model_type not in _TRAINED_TO:
        return None
    for family in _FAMILIES:
        if all(token in tokens for token in (family.prefix, family.suffix, family.middle) if token):
            return family
    return None
