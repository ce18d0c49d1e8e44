"""Grammar rules for JSON strings of a limited length, of which xgrammar finds the allowed tokens quickly.

xgrammar decides once, while it compiles, which tokens fit each place of a rule. Tokens that run over the end of a rule
are decided at each step, in the engine's step loop: with a rule for one character that is repeated, that is nearly each
token of the vocabulary, 0.03 s for 20 characters and 0.7 s for 1,000. Here each rule is a character and the rule for
the characters after it, through which xgrammar looks. The rules are shared by all strings of a grammar, so they are
compiled once. Long strings repeat blocks: only at the end of a block tokens are decided at each step.

Compiling a grammar and finding its tokens take time in proportion to the vocabulary. With blocks of 64, English text
and two busy cores (CPU time): 50,000 tokens (GPT-2) take 1.6 s to compile, 152,000 (Qwen 2) 6 s and 262,000 (Gemma 4) 9
to 11 s; finding the tokens of a place takes 6, 13 and 16 ms on average, and 57, 129 and 198 ms at most. Blocks of 32
halve the time to compile and double the time to find tokens.
"""

from __future__ import annotations

_BLOCK = 64
"""Characters in a block. xgrammar compiles two places for each, in some 10 ms of CPU time."""

_RULES = r"""
vllama_escape ::= [\"\\/bfnrt] | "u" ([0-9A-Ca-cE-Fe-f] vllama_hex | [Dd] [0-7]) vllama_hex vllama_hex
vllama_hex ::= [0-9A-Fa-f]
"""


class LimitedStrings:
    """The rules of one grammar for the characters of strings with a minimum and a maximum length."""

    def __init__(self) -> None:
        self._rules: dict[str, str] = {}

    def characters(self, least: int, most: int | None) -> str:
        """Return what stands for at least `least` and at most `most` characters; None for any number."""
        blocks, rest = divmod(least, _BLOCK)
        name = self._exactly(rest, self._any() if most is None else self._at_most(most - least))
        return f"{self._block()}{{{blocks}}} {name}" if blocks else name

    def text(self) -> str:
        """Return the rules that are needed."""
        return "".join(f"{name} ::= {rule}\n" for name, rule in self._rules.items()) + _RULES

    def _any(self) -> str:
        return self._rule("vllama_any", '"" | ' + _one_and("vllama_any"))

    def _at_most(self, number: int) -> str:
        name = self._rule("vllama_at_most_0", '""')
        for count in range(1, min(number, _BLOCK - 1) + 1):
            name = self._rule(f"vllama_at_most_{count}", '"" | ' + _one_and(name))
        if number < _BLOCK:
            return name
        block, (blocks, rest) = self._block(), divmod(number, _BLOCK)
        few = f"{block}{{0, {blocks - 1}}} {name}"
        return self._rule(f"vllama_at_most_{number}", f"{few} | {block}{{{blocks}}} {self._at_most(rest)}")

    def _exactly(self, number: int, rest: str) -> str:
        """Return the rule of this number of characters, with another rule after them."""
        name = rest
        for count in range(1, number + 1):
            name = self._rule(f"{rest}_after_{count}", _one_and(name))
        return name

    def _block(self) -> str:
        return self._exactly(_BLOCK, self._rule("vllama_at_most_0", '""'))

    def _rule(self, name: str, rule: str) -> str:
        self._rules[name] = rule
        return name


def _one_and(rest: str) -> str:
    return rf'[^\0-\x1f\"\\] {rest} | "\\" vllama_escape {rest}'
