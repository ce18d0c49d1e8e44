"""End a request whose grammar takes too long to find the tokens that it allows.

The engine asks for them in the step loop, where all replies wait. A trial (vllama.worker.grammar_trials) asks for those
of the first places only. Written against vLLM 0.26 to 0.33 (`tests/worker/test_slow_masks.py` names them): only this
file uses `XgrammarGrammar.fill_bitmask` and `accept_tokens`. Where the latter is false, the scheduler ends the request
with an error; before 0.32 it only logs, and each token of that request may take as long.
"""

from __future__ import annotations

import functools
import logging
import time
from typing import Any

from vllama.worker.plugin_selection import is_selected

log = logging.getLogger(__name__)

_MOST_SECONDS = 0.5
"""Maximum CPU seconds in which the tokens of a place have to be found; usual grammars take less than 0.001."""

_VOCABULARY = 131_072
"""Tokens up to which limits of time hold as they are."""


def for_vocabulary(seconds: float, tokens: int) -> float:
    """Return a limit of time in seconds for a vocabulary, to whose number of tokens xgrammar's work is in proportion.

    Gemma's vocabulary of 262,144 tokens gets twice as long: with it a string with a `maxLength` of 64 takes 10 s to
    compile.
    """
    return seconds * max(1.0, tokens / _VOCABULARY)


def register() -> None:
    """Watch xgrammar's grammars in this process; the second time does nothing."""
    if is_selected():
        from vllm.v1.structured_output.backend_xgrammar import XgrammarGrammar

        if not hasattr(XgrammarGrammar.fill_bitmask, "__wrapped__"):
            watch(XgrammarGrammar)


def watch(grammar_class: Any, most_seconds: float = _MOST_SECONDS) -> None:
    """Have a class of grammars accept no token any more after one of them has taken too long."""
    fill_bitmask, accept_tokens = grammar_class.fill_bitmask, grammar_class.accept_tokens

    @functools.wraps(fill_bitmask)
    def filling(self: Any, *arguments: Any, **named: Any) -> None:
        began = time.thread_time()
        fill_bitmask(self, *arguments, **named)
        if (seconds := time.thread_time() - began) > for_vocabulary(most_seconds, getattr(self, "vocab_size", 0)):
            self.vllama_is_slow = True
            log.warning("a request ends: its grammar took %.1f s to find the next tokens", seconds)

    @functools.wraps(accept_tokens)
    def accepting(self: Any, *arguments: Any, **named: Any) -> bool:
        if getattr(self, "vllama_is_slow", False):
            return False
        return bool(accept_tokens(self, *arguments, **named))

    grammar_class.fill_bitmask, grammar_class.accept_tokens = filling, accepting
