"""The check before weights are fetched: whether the installed vLLM can load what config.json describes.

It refuses only what vLLM's own files rule out (vllama.installed.loading), and nothing where VLLM_PLUGINS names plugins,
which may add to them. What else may go wrong, such as a device that lacks a format, shows when the model is loaded.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from vllama.errors import SourceUnavailable
from vllama.installed.loading import Loading, installed_loading
from vllama.store.catalogue import Catalogue
from vllama.store.family import BITS
from vllama.store.weights import REPACKED

FORCE = "--force"
"""Flag of `vllama pull` that skips this check."""

_MOST_BYTES = 8 << 20
"""Maximum size of a config.json; those of public models have some kilobytes."""

_WRITTEN = {"compressed_tensors": "compressed-tensors", "auto-round": "inc", "intel/auto-round": "inc"}
"""Names of quantizations in files that vLLM has under another name."""

_SUFFIXES = {32: "-fp32", 16: "-fp16", 8: "-q8_0", 4: "-q4_K_M"}
"""Endings of tags that ask for this many bits per weight."""


def check_loadable(settings: Path, repository: str, base: str, known: Catalogue, *, trusted: bool) -> None:
    """Raise SourceUnavailable, with cause and the nearest alternative, if the installed vLLM cannot load the model.

    `settings` is its config.json, `base` the repository of which it is a quantization or "", and `trusted` says that
    it may bring code of its own.
    """
    config = None if os.environ.get("VLLM_PLUGINS") else _read(settings)
    loading = installed_loading()
    if config is None or not (cause := why_not(config, loading, trusted=trusted)):
        return
    instead = nearest(known, repository, base)
    raise SourceUnavailable(
        f"vLLM {loading.version} cannot load '{repository}': {cause}; "
        f"{f'use {instead} instead' if instead else 'use another repository of the model'} ({FORCE} pulls it all the "
        "same). Its weights were not downloaded"
    )


def why_not(config: Mapping[str, Any], loading: Loading, *, trusted: bool = False) -> str:
    """Return why vLLM cannot load a model with this config.json; "" if its files do not rule that out."""
    return _why_not_architecture(config, loading, trusted=trusted) or next(_why_not_quantization(config, loading), "")


def nearest(known: Catalogue, repository: str, base: str) -> str:
    """Return the catalogue's name for the same model in the closest other format, or else the base; "" if unknown."""
    names = (name for wanted in (repository, base) if wanted for name in _others(known, wanted, repository))
    return next(names, "" if base.lower() == repository.lower() else base)


def _others(known: Catalogue, wanted: str, refused: str) -> Iterator[str]:
    """Yield the names of the other artifacts of each size that has `wanted`, closest in bits first."""
    for family in known.families():
        for size, model in family.models.items():
            artifacts = {kind: entry.partition("@")[0].lower() for kind, entry in model.artifacts.items()}
            own = next((kind for kind, entry in artifacts.items() if entry == wanted.lower()), "")
            bits = 4 if wanted != refused else BITS.get(own, 4)
            others = [kind for kind, entry in artifacts.items() if own and entry != refused.lower()]
            for kind in sorted(others, key=lambda kind: (abs(BITS[kind] - bits), BITS[kind])):
                tags = (size, f"{size}{_SUFFIXES[BITS[kind]]}")
                found = (entry for tag in tags if (entry := family.lookup(tag)) and entry.quantization == kind.upper())
                yield from (f"{entry.name} ({entry.repository})" for entry in found)


def _read(settings: Path) -> Mapping[str, Any] | None:
    """Return the settings; None where the description of the model will refuse them anyway."""
    if settings.stat().st_size > _MOST_BYTES:
        raise SourceUnavailable(f"config.json has more than {_MOST_BYTES >> 20} MiB, which no model needs")
    try:
        config = orjson.loads(settings.read_bytes())
    except orjson.JSONDecodeError:
        return None
    return config if isinstance(config, dict) else None


def _why_not_architecture(config: Mapping[str, Any], loading: Loading, *, trusted: bool) -> str:
    stated = config.get("architectures")
    names: Sequence[str] = [name for name in stated if isinstance(name, str)] if isinstance(stated, list) else []
    if not names or any(name in loading.architectures for name in names):
        return ""
    for name in names:
        if name in loading.removed:
            return f"its architecture {name} was removed after vLLM {loading.removed[name]}"
        if name in loading.elsewhere:
            return f"its architecture {name} needs the plugin at {loading.elsewhere[name]}"
    if any(loading.knows(name) for name in names) or (trusted and config.get("auto_map")):
        return ""
    return f"neither vLLM nor transformers has its architecture {', '.join(names)[:200]}"


def _why_not_quantization(config: Mapping[str, Any], loading: Loading) -> Iterator[str]:
    stated = next(filter(None, (_table(part, key) for part, key in _places(config))), {})
    method = str(stated.get("quant_method") or "").lower()
    method = _WRITTEN.get(method, method)
    if method and loading.quantizations and method not in {*loading.quantizations, REPACKED}:
        yield f"it does not know the quantization {method[:100]!r}"
    if method in loading.deprecated:
        yield f"it loads the quantization {method} only with --allow-deprecated-quantization"
    if method == "gptq" and not loading.orders_gptq and stated.get("desc_act") and stated.get("group_size") != -1:
        yield "its GPTQ weights have activation ordering (desc_act), which vLLM has given up"
    if method == "compressed-tensors" and not loading.orders_compressed_tensors:
        for group in (_table(stated, "config_groups") or {}).values():
            order = (_table(group, "weights") or {}).get("actorder") if isinstance(group, dict) else None
            if str(order).lower() in {"group", "dynamic", "true"}:
                yield f"its weights have activation ordering (actorder {order}), which vLLM has given up"


def _places(config: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Yield where vLLM looks for the quantization (`vllm/config/model.py`, `vllm/transformers_utils/config.py`)."""
    for part in (config, _table(config, "text_config") or {}):
        yield part, "quantization_config"
        yield part, "compression_config"


def _table(part: Mapping[str, Any], key: str) -> Mapping[str, Any] | None:
    value = part.get(key)
    return value if isinstance(value, dict) else None
