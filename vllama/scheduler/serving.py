"""What a model can do once it is served, and the flags with which vLLM serves that.

One answer for the worker's command line, for the checks of requests and for what `/api/tags` and `/api/show` tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from vllama.scheduler.engine_flags import given_value, is_given
from vllama.store.description import ModelDescription, describe
from vllama.store.manifest import Manifest
from vllama.store.parsers import ParserChoice, Traits, choose_reasoning_parser, choose_tool_parser
from vllama.worker.registry import Parsers, installed_parsers

_TOOL_PARSER = "--tool-call-parser"
_REASONING_PARSER = "--reasoning-parser"
_AUTO_TOOLS = "--enable-auto-tool-choice"
_NO_TOOLS = "--no-enable-auto-tool-choice"


@dataclass(frozen=True, slots=True)
class ServingPlan:
    """What is served: capabilities in Ollama's terms, parsers with their reasons, flags that the user has not given."""

    capabilities: tuple[str, ...]
    tool_parser: ParserChoice
    reasoning_parser: ParserChoice
    flags: tuple[str, ...]


def plan(description: ModelDescription, installed: Parsers, flags: Sequence[str]) -> ServingPlan:
    """Decide what the model is served with; `flags` are those of its manifest and of the user, the last one wins."""
    if "completion" not in description.capabilities:
        return ServingPlan(description.capabilities, ParserChoice(), ParserChoice(), ())
    return _plan(description.capabilities, description.traits, installed, tuple(flags))


@lru_cache(maxsize=256)  # asked at every request
def _plan(capabilities: tuple[str, ...], traits: Traits, installed: Parsers, flags: tuple[str, ...]) -> ServingPlan:
    added: list[str] = []
    if is_given(flags, _NO_TOOLS):
        tool = ParserChoice()
    elif stated := given_value(flags, _TOOL_PARSER):
        tool = ParserChoice(stated, _TOOL_PARSER)
    else:
        tool = choose_tool_parser(traits, installed.tool)
        added += [_TOOL_PARSER, tool.name] if tool.name else []
    if tool.name:
        added += [] if is_given(flags, _AUTO_TOOLS) else [_AUTO_TOOLS]
    if stated := given_value(flags, _REASONING_PARSER):
        reasoning = ParserChoice(stated, _REASONING_PARSER)
    else:
        reasoning = choose_reasoning_parser(traits, installed.reasoning)
        added += [_REASONING_PARSER, reasoning.name] if reasoning.name else []
    more = [name for name, choice in (("tools", tool), ("thinking", reasoning)) if choice.name]
    return ServingPlan((*capabilities, *more), tool, reasoning, tuple(added))


class Serving:
    """The models as this machine's vLLM serves them, with the flags that the user gave for all of them."""

    def __init__(self, user_flags: Sequence[str] = (), installed: Parsers | None = None) -> None:
        """Take the flags; `installed` are the parsers of the installed vLLM unless given."""
        self._user_flags = tuple(user_flags)
        self._installed = installed

    def plan(self, manifest: Manifest) -> ServingPlan:
        """Raises ManifestCorrupt where a file is damaged or missing."""
        return self._plan(manifest, describe(manifest))

    def describe(self, manifest: Manifest) -> ModelDescription:
        """What is known of the model, with what it can do here. Raises ManifestCorrupt."""
        found = describe(manifest)
        served = self._plan(manifest, found)
        chosen = {"vllama.tool_parser": served.tool_parser, "vllama.reasoning_parser": served.reasoning_parser}
        told = {key: f"{choice.name} ({choice.because})" for key, choice in chosen.items() if choice.name}
        return replace(found, capabilities=served.capabilities, model_info={**found.model_info, **told})

    def _plan(self, manifest: Manifest, description: ModelDescription) -> ServingPlan:
        installed = self._installed if self._installed is not None else installed_parsers()
        return plan(description, installed, (*manifest.engine_flags, *self._user_flags))
