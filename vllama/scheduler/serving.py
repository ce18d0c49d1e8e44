"""What a model can do once it is served, and the flags with which vLLM serves that.

One answer for the worker's command line, for the checks of requests and for what `/api/tags` and `/api/show` tell.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import orjson

from vllama.errors import VllamaError
from vllama.ollama import options
from vllama.ollama.infill import Infill, infill_of
from vllama.ollama.templates import fills_gaps, in_jinja
from vllama.scheduler.adapters import adapter_flags, check_servable, room_for
from vllama.scheduler.engine_flags import given_value, is_given
from vllama.store.description import ModelDescription, describe
from vllama.store.manifest import Manifest
from vllama.store.parsers import ParserChoice, Traits, choose_reasoning_parser, choose_tool_parser
from vllama.store.peft import read_layers
from vllama.worker.adapter_support import adapter_support
from vllama.worker.profile import AdapterPart, Profile
from vllama.worker.registry import InstalledVllm, installed_vllm, plugin_flags

_TOOL_PARSER = "--tool-call-parser"
_REASONING_PARSER = "--reasoning-parser"
_TOOL_PLUGIN = "--tool-parser-plugin"
_REASONING_PLUGIN = "--reasoning-parser-plugin"
_AUTO_TOOLS = "--enable-auto-tool-choice"
_NO_TOOLS = "--no-enable-auto-tool-choice"
_LIMITS = "--limit-mm-per-prompt"
_TEXT_ONLY = "--language-model-only"


@dataclass(frozen=True, slots=True)
class ServingPlan:
    """What is served: capabilities in Ollama's terms, parsers with their reasons, flags that the user has not given."""

    capabilities: tuple[str, ...]
    tool_parser: ParserChoice
    reasoning_parser: ParserChoice
    flags: tuple[str, ...]
    infill: Infill | None = None


def plan(
    description: ModelDescription, installed: InstalledVllm, flags: Sequence[str], origin: str = "", template: str = ""
) -> ServingPlan:
    """Decide what the model is served with.

    `flags` are those of its manifest and of the user, the last one wins. `origin` says where its files come from and
    what it is called; `template` is what its manifest puts in place of the template that came with the files.
    """
    if "completion" not in description.capabilities:
        return ServingPlan(description.capabilities, ParserChoice(), ParserChoice(), ())
    vision = ("vision",) if _sees(description, installed, flags) else ()
    facts = _Facts((*description.capabilities, *vision), description.traits, tuple(flags), origin, template)
    return _plan(facts, installed)


@dataclass(frozen=True, slots=True)
class _Facts:
    """What a plan depends on besides the installed vLLM."""

    capabilities: tuple[str, ...]
    traits: Traits
    flags: tuple[str, ...]
    origin: str
    template: str


@lru_cache(maxsize=256)  # asked at every request
def _plan(facts: _Facts, installed: InstalledVllm) -> ServingPlan:
    traits, flags = facts.traits, facts.flags
    added: list[str] = []
    if is_given(flags, _NO_TOOLS):
        tool = ParserChoice()
    elif is_given(flags, _TOOL_PARSER):
        tool = _stated(flags, _TOOL_PARSER, _TOOL_PLUGIN, installed.tool_parsers)
    else:
        tool = choose_tool_parser(traits, installed.tool_parsers)
        added += [_TOOL_PARSER, tool.name] if tool.name else []
    if tool.name:
        added += [] if is_given(flags, _AUTO_TOOLS) else [_AUTO_TOOLS]
    if is_given(flags, _REASONING_PARSER):
        reasoning = _stated(flags, _REASONING_PARSER, _REASONING_PLUGIN, installed.reasoning_parsers)
    else:
        reasoning = choose_reasoning_parser(traits, installed.reasoning_parsers)
        added += [_REASONING_PARSER, reasoning.name] if reasoning.name else []
    added += plugin_flags(tool.name, reasoning.name)
    infill = infill_of(traits.tokens, traits.model_type, facts.origin)
    inserts = infill is not None or fills_gaps(facts.template)
    gained = (("tools", bool(tool.name)), ("insert", inserts), ("thinking", bool(reasoning.name)))
    more = [name for name, is_gained in gained if is_gained]
    return ServingPlan((*facts.capabilities, *more), tool, reasoning, tuple(added), infill)


def _stated(flags: tuple[str, ...], flag: str, plugin: str, installed: Collection[str]) -> ParserChoice:
    """The parser that the user names, "" for none; one that vLLM does not know is not claimed, and vLLM will say so."""
    name = given_value(flags, flag)
    has_plugin = any(item.partition("=")[0] == plugin for item in flags)
    is_known = name in installed or has_plugin
    return ParserChoice(name, flag) if name and is_known else ParserChoice()


def _sees(description: ModelDescription, installed: InstalledVllm, flags: Sequence[str]) -> bool:
    """Whether the model takes images, in this vLLM and with these flags."""
    if not description.has_vision or description.architecture not in installed.multimodal:
        return False
    try:
        limits = orjson.loads(given_value(flags, _LIMITS) or "{}")
    except orjson.JSONDecodeError:
        limits = {}  # vLLM will say so
    is_limited_to_none = isinstance(limits, dict) and limits.get("image") == 0
    return not (is_limited_to_none or is_given(flags, _TEXT_ONLY))


class Serving:
    """The models as this machine's vLLM serves them, with the flags that the user gave for all of them."""

    def __init__(self, user_flags: Sequence[str] = (), installed: InstalledVllm | None = None) -> None:
        """Take the flags; `installed` is this machine's vLLM unless given."""
        self._user_flags = tuple(user_flags)
        self._installed = installed
        self._engines: dict[str, str] = {}  # by the manifest's digest
        self._adapter_numbers: dict[str, int] = {}  # by the adapter's digest
        self._checked: set[str] = set()  # digests of manifests

    def plan(self, manifest: Manifest) -> ServingPlan:
        """Raises ManifestCorrupt where a file is damaged or missing."""
        return self._plan(manifest, describe(manifest))

    def profile(self, manifest: Manifest, served: ServingPlan) -> Profile:
        """What the worker is told with each request.

        Raises OptionTypeError where a parameter has the wrong type, RequestError where the adapter cannot be served.
        """
        self.check_adapter(manifest)
        return Profile(
            full_name=manifest.name.full,
            capabilities=served.capabilities,
            parameters=options.check(manifest.parameters),
            system=manifest.system,
            messages=tuple((message.role, message.content) for message in manifest.messages),
            chat_template=in_jinja(manifest.template),
            infill=served.infill,
            adapter=self._adapter_part(manifest),
        )

    def flags(self, manifest: Manifest, rank: int) -> list[str]:
        """vLLM's flags for a worker with room for adapters up to this rank: ours, the manifest's, the user's."""
        given = [*manifest.engine_flags, *self._user_flags]
        return [*self.plan(manifest).flags, *adapter_flags(given, rank), *given]

    def adapter_rank(self, manifest: Manifest, stored: Iterable[Manifest]) -> int:
        """The rank that a worker of the model needs room for, for itself and those stored models that it can serve."""
        sharing = [other for other in stored if other.adapter and other.weights_digest == manifest.weights_digest]
        return room_for(manifest, [other for other in sharing if self._takes_adapter(other)])

    def _takes_adapter(self, manifest: Manifest) -> bool:
        try:
            self.check_adapter(manifest)
        except VllamaError:
            return False  # who asks for it is told
        return True

    def check_adapter(self, manifest: Manifest) -> None:
        """Raise RequestError where the model has an adapter that this machine's vLLM cannot serve; ManifestCorrupt."""
        if manifest.adapter and manifest.digest not in self._checked:
            description = describe(manifest)
            layers = read_layers(manifest.adapter.snapshot)
            flags = (*manifest.engine_flags, *self._user_flags)
            support = adapter_support(description.architecture)
            check_servable(layers, manifest.adapter.rank, description, support, flags)
            self._checked.add(manifest.digest)

    def _adapter_part(self, manifest: Manifest) -> AdapterPart | None:
        """The adapter under a number that no other has: all API servers of a worker have to mean the same by it."""
        adapter = manifest.adapter
        if adapter is None:
            return None
        number = self._adapter_numbers.setdefault(adapter.digest, len(self._adapter_numbers) + 1)
        return AdapterPart(number, adapter.digest, str(adapter.snapshot))

    def engine_of(self, manifest: Manifest) -> str:
        """The identity of the engine that serves the model: models with the same can share a worker."""
        found = self._engines.get(manifest.digest)
        if found is None:
            flags = "\0".join((*manifest.engine_flags, *self.plan(manifest).flags))
            found = hashlib.sha256(f"{manifest.weights_digest}\0{flags}".encode()).hexdigest()
            self._engines[manifest.digest] = found
        return found

    def describe(self, manifest: Manifest) -> ModelDescription:
        """What is known of the model, with what it can do here. Raises ManifestCorrupt."""
        found = describe(manifest)
        served = self._plan(manifest, found)
        chosen = {"vllama.tool_parser": served.tool_parser, "vllama.reasoning_parser": served.reasoning_parser}
        told = {key: f"{choice.name} ({choice.because})" for key, choice in chosen.items() if choice.name}
        if manifest.adapter:
            told["vllama.adapter"] = f"LoRA, rank {manifest.adapter.rank}, sha256:{manifest.adapter.digest[:12]}"
        return replace(found, capabilities=served.capabilities, model_info={**found.model_info, **told})

    def _plan(self, manifest: Manifest, description: ModelDescription) -> ServingPlan:
        installed = self._installed if self._installed is not None else installed_vllm()
        return plan(
            description,
            installed,
            (*manifest.engine_flags, *self._user_flags),
            origin=f"{manifest.source.locator} {manifest.name.model}",
            template=manifest.template,
        )
