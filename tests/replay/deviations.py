"""The deviations from the recordings that we mean: what is otherwise, by which rule, and why it may be.

Each rule explains single differences, as few as it can, and has to occur: one that explains nothing fails the test.
"""

from __future__ import annotations

from dataclasses import dataclass

from replay.comparison import Difference, differences
from replay.native_rules import NATIVE
from replay.recording import Exchange, Response
from replay.v1_rules import V1

DEVIATIONS = (*NATIVE, *V1)


@dataclass(frozen=True)
class Verdict:
    """What came of one exchange. `rules` are the ids of those that explain something; `left` is what none explains."""

    rules: tuple[str, ...]
    left: tuple[Difference, ...]

    @property
    def word(self) -> str:
        if self.left:
            return "different"
        return "allowed deviation" if self.rules else "same"


def judge(exchange: Exchange, actual: Response) -> Verdict:
    """Return the verdict on one response."""
    rules: list[str] = []
    left = []
    for difference in differences(exchange, actual):
        found = [rule.id for rule in DEVIATIONS if rule.explains(exchange, actual, difference)]
        rules += found
        if not found:
            left.append(difference)
    return Verdict(tuple(dict.fromkeys(rules)), tuple(left))
