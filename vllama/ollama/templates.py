"""Templates in the two languages that models come with: Jinja, and Ollama's Go templates (contract §2.3)."""

from __future__ import annotations

from functools import lru_cache

from vllama.ollama.gotemplate import is_go_template, to_jinja, variables


@lru_cache(maxsize=256)  # asked at every request
def in_jinja(template: str) -> str:
    """A template in Jinja, whatever it was written in. Raises TemplateError."""
    return to_jinja(template) if is_go_template(template) else template


@lru_cache(maxsize=256)
def fills_gaps(template: str) -> bool:
    """Whether a template says how to ask for the text before a suffix; only Go templates do."""
    return is_go_template(template) and "Suffix" in variables(template)
