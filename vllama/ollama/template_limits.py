"""Limits for the templates of models and requests, set once for each process; they need no Jinja."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vllama.durations import to_seconds
from vllama.errors import TemplateError
from vllama.settings import Settings


@dataclass(frozen=True, slots=True)
class Limits:
    """Processor time of one rendering in seconds, characters of the longest text, and characters of the template."""

    seconds: float = 10.0
    characters: int = 32 << 20
    source: int = 256 << 10


def limits_of(settings: Settings) -> Limits:
    """Return the limits in these settings."""
    seconds = math.inf if settings.template_timeout is None else to_seconds(settings.template_timeout)
    return Limits(seconds, settings.template_output, settings.template_length)


_limits = Limits()


def limits() -> Limits:
    """Return the limits of this process."""
    return _limits


def set_limits(new: Limits) -> None:
    """Use these limits for everything that is compiled or rendered from now on."""
    global _limits  # noqa: PLW0603 - Jinja calls us without a place for settings
    _limits = new


def check_length(template: str) -> None:
    """Raise TemplateError if the template is too long to be parsed: real ones have 20,000 characters at most."""
    if len(template) > _limits.source:
        raise TemplateError(f"the template is longer than {_limits.source:,} characters")
