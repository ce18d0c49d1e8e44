"""Requested and served artifact of a pulled model, which may differ."""

from __future__ import annotations

from vllama.errors import InvalidName
from vllama.names import ModelName
from vllama.store.family import BITS, bits_asked, quantization_asked
from vllama.store.manifest import Manifest, Source
from vllama.store.remote_code import is_code, is_trusted

_COMMIT_DIGITS = 12


def provenance(manifest: Manifest, quantization: str) -> dict[str, str]:
    """Return `model_info` entries of `/api/show` about the origin of a pulled model.

    `quantization` is that of the weights. `vllama.difference` is present only if the tag requested another one,
    `vllama.remote_code` only if the model's own code is run.
    """
    code = ", ".join(file.path for file in manifest.files if is_code(file.path))
    told = {"vllama.remote_code": f"trusted, run by the worker: {code}"} if is_trusted(manifest.engine_flags) else {}
    if not manifest.asked:
        return told
    told |= {"vllama.asked": manifest.asked, "vllama.served": f"{_origin(manifest.source)} ({quantization})"}
    asked, served = bits_asked(_quantization(manifest.asked)), BITS.get(quantization.lower(), 0)
    if asked and served and asked != served:
        told["vllama.difference"] = f"{asked} bits a weight were asked for, {served} are served"
    return told


def _origin(source: Source) -> str:
    revision = source.revision[:_COMMIT_DIGITS] if source.kind == "hub" else source.revision
    return f"{source.locator}@{revision}" if revision else source.locator


def _quantization(asked: str) -> str:
    try:
        return quantization_asked(ModelName.parse(asked).tag)
    except InvalidName:
        return ""
