"""Served capabilities of a model, and vLLM's flags for them.

The same plan is used for the worker's command line, for request checks, and for `/api/tags` and `/api/show`.
"""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

import orjson

from vllama.durations import quote
from vllama.errors import Unsupported, VllamaError
from vllama.installed.adapter_support import adapter_support
from vllama.installed.registry import InstalledVllm, installed_vllm, plugin_flags
from vllama.ollama import options
from vllama.ollama.infill import Infill, infill_of
from vllama.ollama.templates import fills_gaps, in_jinja
from vllama.protocol.profile import AdapterPart, Profile
from vllama.scheduler.adapters import adapter_flags, check_servable, room_for
from vllama.scheduler.engine_flags import CONTEXT, SCHEDULING, given_value, is_given, tokens_of
from vllama.scheduler.need import longest_context
from vllama.settings import Settings
from vllama.store.description import FilesState, ModelDescription, describe, files_state, read_config
from vllama.store.manifest import Manifest
from vllama.store.parsers import ParserChoice, choose_reasoning_parser, choose_tool_parser
from vllama.store.peft import read_layers

_TOOL_PARSER = "--tool-call-parser"
_REASONING_PARSER = "--reasoning-parser"
_TOOL_PLUGIN = "--tool-parser-plugin"
_REASONING_PLUGIN = "--reasoning-parser-plugin"
_AUTO_TOOLS = "--enable-auto-tool-choice"
_NO_TOOLS = "--no-enable-auto-tool-choice"
_LIMITS = "--limit-mm-per-prompt"
_TEXT_ONLY = "--language-model-only"
_STRETCHING = ("--hf-overrides", "--rope-scaling", "--rope-theta")
"""Flags that may give a model more context than its files say."""

_LONGER = "VLLM_ALLOW_LONG_MAX_MODEL_LEN"
"""vLLM's variable that allows a longer context than a model has."""

_EMBEDDING = ("--runner", "pooling", "--convert", "embed")
_MAXIMUM_CACHED = 256
"""Maximum number of manifests whose derived facts are cached."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A plan: capabilities with Ollama's names, parsers with reasons, and flags that the user has not given."""

    capabilities: tuple[str, ...]
    tool_parser: ParserChoice
    reasoning_parser: ParserChoice
    flags: tuple[str, ...]
    infill: Infill | None = None


def choose(
    description: ModelDescription,
    installed: InstalledVllm,
    flags: Sequence[str],
    origin: str = "",
    template: str = "",
    *,
    embeds: bool = False,
) -> ServedModel:
    """Decide the capabilities, parsers and flags of the model.

    `flags` are those of its manifest and of the user, the last one wins. `origin` says where its files come from and
    what it is called; `template` is what its manifest puts in place of the template that came with the files. `embeds`
    makes vectors of a model that generates, as llama.cpp does: of the hidden state at the last token.
    """
    if "completion" not in description.capabilities:
        return ServedModel(description.capabilities, ParserChoice(), ParserChoice(), ())
    if embeds:
        return ServedModel(("embedding",), ParserChoice(), ParserChoice(), _EMBEDDING)
    traits, flags = description.traits, tuple(flags)
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
    infill = infill_of(traits.tokens, traits.model_type, origin)
    inserts = infill is not None or fills_gaps(template)
    gained = (
        ("vision", _sees(description, installed, flags)),
        ("tools", bool(tool.name)),
        ("insert", inserts),
        ("thinking", bool(reasoning.name)),
        ("decision", description.architecture in installed.deciding),
    )
    more = [name for name, is_gained in gained if is_gained]
    return ServedModel((*description.capabilities, *more), tool, reasoning, tuple(added), infill)


def _stated(flags: tuple[str, ...], flag: str, plugin: str, installed: Collection[str]) -> ParserChoice:
    """Return the user's parser, "" for none or one that vLLM lacks, which vLLM reports."""
    name = given_value(flags, flag)
    has_plugin = any(item.partition("=")[0] == plugin for item in flags)
    is_known = name in installed or has_plugin
    return ParserChoice(name, flag) if name and is_known else ParserChoice()


def _sees(description: ModelDescription, installed: InstalledVllm, flags: Sequence[str]) -> bool:
    """Return whether the model accepts images in this vLLM with these flags."""
    if not description.has_vision or description.architecture not in installed.multimodal:
        return False
    try:
        limits = orjson.loads(given_value(flags, _LIMITS) or "{}")
    except orjson.JSONDecodeError:
        limits = {}  # vLLM will say so
    is_limited_to_none = isinstance(limits, dict) and limits.get("image") == 0
    return not (is_limited_to_none or is_given(flags, _TEXT_ONLY))


_Key = tuple[str, str, bool]


@dataclass(slots=True)
class _Derived:
    """Facts computed from a manifest and its files. The profile is made when it is first needed."""

    manifest: Manifest
    state: FilesState
    description: ModelDescription
    served: ServedModel
    engine: str
    longest_context: int
    adapter_is_checked: bool = False
    profile: Profile | None = None
    profile_json: bytes = b""
    embedder: Manifest | None = None


class Serving:
    """Serving plans for models with this machine's vLLM and the user's flags for all models.

    Facts computed from a manifest are cached by name and digest, for the manifests that were used last. The files are
    checked again only with `recheck`, because changes do not matter to a worker that has read them already.
    """

    def __init__(self, user_flags: Sequence[str] = (), installed: InstalledVllm | None = None) -> None:
        """Take the flags; `installed` is this machine's vLLM unless given."""
        self._user_flags = tuple(user_flags)
        self._installed = installed
        self._derived: OrderedDict[_Key, _Derived] = OrderedDict()  # the last used last
        self._adapter_numbers: dict[str, int] = {}  # by the adapter's digest

    def served(self, manifest: Manifest, *, recheck: bool = False) -> ServedModel:
        """Return the serving plan of the model. Raises ManifestCorrupt if a file is damaged or missing."""
        return self._known(manifest, recheck=recheck).served

    def embedder(self, manifest: Manifest) -> Manifest:
        """Return the manifest whose worker makes vectors: the same for an embedding model, else a second worker's.

        vLLM's engine generates or pools, so a model that generates gets another engine for its vectors. Raises
        Unsupported if the model has an adapter, which vectors would not heed.
        """
        known = self._known(manifest)
        if "completion" not in known.served.capabilities:
            return manifest
        if manifest.adapter:
            raise Unsupported(f"{quote(manifest.name.display)} does not support embeddings, because it has an adapter")
        if known.embedder is None:
            known.embedder = replace(manifest, embeds=True)
        return known.embedder

    def profile(self, manifest: Manifest) -> Profile:
        """Return the model's profile for the worker.

        Raises OptionTypeError where a parameter has the wrong type, RequestError where the adapter cannot be served.
        """
        known = self._known(manifest)
        if known.profile is None:
            self.check_adapter(manifest)
            known.profile = Profile(
                full_name=manifest.name.full,
                capabilities=known.served.capabilities,
                parameters=options.check(manifest.parameters),
                system=manifest.system,
                messages=tuple((message.role, message.content) for message in manifest.messages),
                chat_template=in_jinja(manifest.template),
                infill=known.served.infill,
                adapter=self._adapter_part(manifest),
            )
            known.profile_json = known.profile.to_json()
        return known.profile

    def profile_json(self, manifest: Manifest) -> bytes:
        """Return the encoded profile for the worker. Raises the errors of `profile`."""
        self.profile(manifest)
        return self._known(manifest).profile_json

    def flags(self, manifest: Manifest, rank: int) -> list[str]:
        """Return vLLM's flags for a worker with adapters up to this rank: ours, the manifest's, the user's.

        A context for all models is not longer than the model's own, which vLLM would refuse to load with it.
        """
        given = [*manifest.engine_flags, *self._user_flags]
        cut = self.cut_context(manifest, tokens_of(given_value(self._user_flags, CONTEXT)))
        context = [CONTEXT, str(cut)] if cut else []
        return [*self.served(manifest).flags, *adapter_flags(given, rank), *given, *context]

    def cut_context(self, manifest: Manifest, stated: int) -> int:
        """Return the model's longest context if that is shorter than the one stated for all models; else 0."""
        stretched = os.environ.get(_LONGER, "0").lower() not in {"", "0", "false"}
        if stretched or any(is_given(self._given_flags(manifest), flag) for flag in _STRETCHING):
            return 0
        longest = self._known(manifest).longest_context
        return longest if longest < stated else 0

    def stated_context(self, settings: Settings) -> int:
        """Return the context in tokens that flags or settings state for all models; 0 if none does."""
        return tokens_of(given_value(self._user_flags, CONTEXT)) or settings.context_length

    def has_priorities(self, manifest: Manifest) -> bool:
        """Return whether requests to the model may have priorities of ours: no flag states another order."""
        return not is_given(self._given_flags(manifest), SCHEDULING)

    def adapter_rank(self, manifest: Manifest, stored: Iterable[Manifest]) -> int:
        """Return the adapter rank that a worker of the model needs, including stored models that it can serve."""
        if manifest.embeds:
            return 0
        sharing = [other for other in stored if other.adapter and other.weights_digest == manifest.weights_digest]
        return room_for(manifest, [other for other in sharing if self._takes_adapter(other)])

    def _takes_adapter(self, manifest: Manifest) -> bool:
        try:
            self.check_adapter(manifest)
        except VllamaError:
            return False  # a request for that model gets the error
        return True

    def check_adapter(self, manifest: Manifest) -> None:
        """Raise RequestError if this machine's vLLM cannot serve the model's adapter; ManifestCorrupt."""
        if manifest.adapter is None:
            return
        known = self._known(manifest)
        if not known.adapter_is_checked:
            layers = read_layers(manifest.adapter.snapshot)
            support = adapter_support(known.description.architecture)
            check_servable(layers, manifest.adapter.rank, known.description, support, self._given_flags(manifest))
            known.adapter_is_checked = True

    def _adapter_part(self, manifest: Manifest) -> AdapterPart | None:
        """Return the adapter with a unique number, which must be the same for all API servers of a worker."""
        adapter = manifest.adapter
        if adapter is None:
            return None
        number = self._adapter_numbers.setdefault(adapter.digest, len(self._adapter_numbers) + 1)
        return AdapterPart(number, adapter.digest, str(adapter.snapshot))

    def engine_of(self, manifest: Manifest) -> str:
        """Return the identity of the model's engine; models with the same engine can share a worker."""
        return self._known(manifest).engine

    def describe(self, manifest: Manifest) -> ModelDescription:
        """Return the model's description with its served capabilities. Raises ManifestCorrupt."""
        kept = self._derived.get(_key(manifest))
        # Changed files do not count for a worker that is ready, so what is kept for it stays.
        known = kept if kept and kept.manifest == manifest and kept.state == files_state(manifest) else None
        known = known or (self._derive(manifest) if kept else self._known(manifest))
        found, served = known.description, known.served
        chosen = {"vllama.tool_parser": served.tool_parser, "vllama.reasoning_parser": served.reasoning_parser}
        told = {key: f"{choice.name} ({choice.because})" for key, choice in chosen.items() if choice.name}
        if manifest.adapter:
            told["vllama.adapter"] = f"LoRA, rank {manifest.adapter.rank}, sha256:{manifest.adapter.digest[:12]}"
        return replace(found, capabilities=served.capabilities, model_info={**found.model_info, **told})

    def _known(self, manifest: Manifest, *, recheck: bool = False) -> _Derived:
        key = _key(manifest)
        known = self._derived.get(key)
        is_current = known is not None and (known.manifest is manifest or known.manifest == manifest)
        if known is None or not is_current or (recheck and known.state != files_state(manifest)):
            known = self._derived[key] = self._derive(manifest)
            if len(self._derived) > _MAXIMUM_CACHED:
                self._derived.popitem(last=False)
        self._derived.move_to_end(key)
        return known

    def _derive(self, manifest: Manifest) -> _Derived:
        state = files_state(manifest)  # before the files are read: what changes meanwhile is seen the next time
        description = describe(manifest)
        served = choose(
            description,
            self._installed if self._installed is not None else installed_vllm(),
            self._given_flags(manifest),
            origin=f"{manifest.source.locator} {manifest.name.model}",
            template=manifest.template,
            embeds=manifest.embeds,
        )
        flags = "\0".join((*manifest.engine_flags, *served.flags))
        engine = hashlib.sha256(f"{manifest.weights_digest}\0{flags}".encode()).hexdigest()
        longest = longest_context(read_config(manifest.snapshot), description.context_length)
        return _Derived(manifest, state, description, served, engine, longest)

    def _given_flags(self, manifest: Manifest) -> tuple[str, ...]:
        return (*manifest.engine_flags, *self._user_flags)


def _key(manifest: Manifest) -> _Key:
    return manifest.name.key, manifest.digest, manifest.embeds
