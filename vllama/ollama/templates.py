"""Templates in the two languages that models come with: Jinja, and Ollama's Go templates (contract §2.3)."""

from __future__ import annotations

import re

from vllama.errors import RequestError

_GO = re.compile(r"\{\{-?\s*(\.|\$|range |if |with |end\b)")


def in_jinja(template: str) -> str:
    """A template in Jinja, whatever it was written in. Raises RequestError."""
    if _GO.search(template):
        raise RequestError("a template in Go's language is not supported yet; use Jinja, or `raw` with a whole prompt")
    return template


def fills_gaps(template: str) -> bool:
    """Whether a template says how to ask for the text before a suffix."""
    del template  # those in Jinja never do
    return False
