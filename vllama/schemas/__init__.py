"""Rewrite JSON Schemas into the few forms that the engines' grammars enforce. Pure: no engine, no web framework.

Engines compile a schema into a grammar, and each of them refuses, ignores or misreads some keywords. `rewrite` answers
with an equivalent or stricter schema that uses only forms which all of them enforce. A keyword that no form expresses
is left out, and its JSON pointer is listed. Only a schema that no value satisfies, and what is no schema, is refused.
"""

from __future__ import annotations

from vllama.schemas.patterns import check_pattern_cost
from vllama.schemas.rewriting import Rewritten, check_cost, is_kept, rewrite, until

__all__ = ["Rewritten", "check_cost", "check_pattern_cost", "is_kept", "rewrite", "until"]
