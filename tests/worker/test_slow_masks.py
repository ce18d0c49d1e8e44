"""Grammars that take long to find their tokens, in the step loop of the engine.

vLLM 0.32 is installed here. 0.26 to 0.33 ask `XgrammarGrammar` for the tokens of a place, and tell it which was chosen.
"""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from vllama.worker.slow_masks import watch


def test_a_grammar_whose_tokens_take_too_long_accepts_none_and_others_go_on() -> None:
    class Grammar:
        def __init__(self, seconds: float) -> None:
            self.seconds = seconds

        def fill_bitmask(self, mask: object, index: int) -> None:
            assert (mask, index) == ("mask", 1)
            began = time.thread_time()
            while time.thread_time() - began < self.seconds:
                pass

        def accept_tokens(self, request_id: str, tokens: list[int]) -> bool:
            return (request_id, tokens) == ("a", [1])

    watch(Grammar, 0.02)
    slow, quick = Grammar(0.03), Grammar(0)
    for grammar in (slow, quick):
        grammar.fill_bitmask("mask", 1)
    assert not slow.accept_tokens("a", [1])
    assert quick.accept_tokens("a", [1])
    assert not quick.accept_tokens("a", [2])


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
