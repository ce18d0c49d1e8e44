"""Grammars that take long to find their tokens, in the step loop of the engine.

vLLM 0.32 is installed here. 0.26 to 0.33 ask `XgrammarGrammar` for the tokens of a place, and tell it which was chosen.
"""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from vllama.worker.slow_masks import for_vocabulary, watch


def test_a_grammar_whose_tokens_take_too_long_accepts_none_and_others_go_on() -> None:
    class Grammar:
        def __init__(self, seconds: float, vocab_size: int = 1000) -> None:
            self.seconds = seconds
            self.vocab_size = vocab_size

        def fill_bitmask(self, mask: object, index: int) -> None:
            assert (mask, index) == ("mask", 1)
            began = time.thread_time()
            while time.thread_time() - began < self.seconds:
                pass

        def accept_tokens(self, request_id: str, tokens: list[int]) -> bool:
            return (request_id, tokens) == ("a", [1])

    watch(Grammar, 0.02)
    slow, quick, of_large_vocabulary = Grammar(0.03), Grammar(0), Grammar(0.03, 1_000_000)
    for grammar in (slow, quick, of_large_vocabulary):
        grammar.fill_bitmask("mask", 1)
    assert not slow.accept_tokens("a", [1])
    assert quick.accept_tokens("a", [1])
    assert of_large_vocabulary.accept_tokens("a", [1])
    assert not quick.accept_tokens("a", [2])


def test_limits_of_time_grow_with_large_vocabularies_only() -> None:
    assert [for_vocabulary(10, tokens) for tokens in (0, 50_000, 131_072, 262_144)] == [10, 10, 10, 20]


@pytest.mark.vllm
@pytest.mark.timeout(300)
def test_vllms_own_grammars_are_watched_once_and_only_in_a_worker() -> None:
    program = """
import os
from vllm.v1.structured_output.backend_xgrammar import XgrammarGrammar
from vllama.worker.slow_masks import register

for plugins, is_watched in (("", False), ("vllama", True), ("vllama", True)):
    os.environ["VLLM_PLUGINS"] = plugins
    register()
    assert hasattr(XgrammarGrammar.fill_bitmask, "__wrapped__") is is_watched
assert not hasattr(XgrammarGrammar.fill_bitmask.__wrapped__, "__wrapped__")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
