"""Texts that a grammar lets a model write, without a model: random walks over xgrammar's masks, a byte at a time."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache
from typing import Any

_END = 256
_CLOSING = frozenset(b'"}],:')
_MOST_BYTES = 400


def samples(schema: dict[str, Any], seed: int, count: int) -> Iterator[str]:
    """Yield complete texts of a schema's bounded grammar; walks that do not end are left out."""
    import json

    from vllama.worker.grammars import bounded_grammar

    grammar = bounded_grammar(json.dumps(schema))
    assert grammar is not None
    compiled = _compiler().compile_grammar(grammar)
    for index in range(count):
        text = _walk(compiled, random.Random(seed * 1000 + index))
        if text is not None:
            yield text


def accepts(schema: dict[str, Any], text: str) -> bool:
    """Return whether a model can write exactly this text as its whole answer."""
    import json

    import xgrammar
    from xgrammar.testing import _is_grammar_accept_string

    from vllama.worker.grammars import bounded_grammar

    grammar = bounded_grammar(json.dumps(schema))
    assert grammar is not None
    return bool(_is_grammar_accept_string(xgrammar.Grammar.from_ebnf(grammar), text))


@cache
def _compiler() -> Any:
    import xgrammar

    vocabulary = [bytes([byte]) for byte in range(256)] + [b"</s>"]
    facts = xgrammar.TokenizerInfo(vocabulary, xgrammar.VocabType.RAW, vocab_size=257, stop_token_ids=[_END])
    return xgrammar.GrammarCompiler(facts, max_threads=1)


def _walk(compiled: Any, chance: random.Random) -> str | None:
    """Take allowed bytes at random, the ends of things more often; return None if that does not end."""
    import xgrammar

    matcher = xgrammar.GrammarMatcher(compiled)
    mask = xgrammar.allocate_token_bitmask(1, 257)
    written = bytearray()
    while len(written) < _MOST_BYTES:
        matcher.fill_next_token_bitmask(mask)
        words = [int(word) & 0xFFFFFFFF for word in mask[0]]
        allowed = [token for token in range(257) if words[token // 32] >> (token % 32) & 1]
        assert allowed, f"the grammar has a dead end after {bytes(written)!r}"
        if min(allowed) < 128:  # otherwise most of a text would be characters of four bytes
            allowed = [token for token in allowed if token < 128 or token == _END]
        if _END in allowed and (len(allowed) == 1 or chance.random() < 0.5):
            return written.decode(errors="replace")
        closing = [token for token in allowed if token in _CLOSING]
        token = chance.choice(closing if closing and chance.random() < 0.4 else [one for one in allowed if one != _END])
        assert matcher.accept_token(token)
        written.append(token)
    return None
