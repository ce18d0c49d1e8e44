"""What was asked for and what is served: the two may differ, and a user is told."""

from __future__ import annotations

from vllama.errors import InvalidName
from vllama.names import ModelName
from vllama.store.family import BITS, bits_asked, quantisation_asked
from vllama.store.manifest import Manifest, Source

_COMMIT_DIGITS = 12


def provenance(manifest: Manifest, quantization: str) -> dict[str, str]:
    """Return what `/api/show` tells of a model that was pulled, as entries of `model_info`; nothing of others.

    `quantization` is that of the weights. `vllama.difference` is there only where the tag asked for another one.
    """
    if not manifest.asked:
        return {}
    told = {"vllama.asked": manifest.asked, "vllama.served": f"{_origin(manifest.source)} ({quantization})"}
    asked, served = bits_asked(_quantisation(manifest.asked)), BITS.get(quantization.lower(), 0)
    if asked and served and asked != served:
        told["vllama.difference"] = f"{asked} bits a weight were asked for, {served} are served"
    return told


def _origin(source: Source) -> str:
    revision = source.revision[:_COMMIT_DIGITS] if source.kind == "hub" else source.revision
    return f"{source.locator}@{revision}" if revision else source.locator


def _quantisation(asked: str) -> str:
    try:
        return quantisation_asked(ModelName.parse(asked).tag)
    except InvalidName:
        return ""
