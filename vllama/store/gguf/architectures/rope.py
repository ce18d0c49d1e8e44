"""Rotary position embeddings: `rope_parameters` of config.json from the keys and tensors of a file."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from vllama.errors import StoreError
from vllama.store.gguf.reading import Array, GgufFile, GgufTensor

LLAMA3_ORIGINAL_CONTEXT = 8192
"""Context of Llama 3 before it was extended. The factors determine only its ratios, so any other would do."""


def rope_parameters(file: GgufFile, default_theta: float = 10_000.0) -> dict[str, Any]:
    """Return `rope_parameters`. Raises StoreError for a scaling that vLLM does not have."""
    theta = float(file.key("{arch}.rope.freq_base", default_theta))
    parameters: dict[str, Any] = {"rope_theta": theta, "rope_type": "default"}
    if (long := file.tensors.get("rope_factors_long.weight")) is not None:
        return parameters | _longrope(file, long)
    if (factors := file.tensors.get("rope_freqs.weight")) is not None:
        return parameters | _llama3(factors, theta)
    kind = str(file.key("{arch}.rope.scaling.type", "none") or "none")
    factor = float(file.key("{arch}.rope.scaling.factor", file.key("{arch}.rope.scale_linear", 0.0)))
    if kind == "linear" or (kind == "none" and factor not in {0.0, 1.0}):
        return parameters | ({"rope_type": "linear", "factor": factor} if factor not in {0.0, 1.0} else {})
    if kind == "yarn":
        return parameters | _yarn(file, factor)
    if kind != "none":
        raise StoreError(f"the GGUF file scales its rotary embeddings by '{kind}', which cannot be converted")
    return parameters


def _longrope(file: GgufFile, long: GgufTensor) -> dict[str, Any]:
    """Return the factors of Phi 3 and its relatives; their converter stores both lists (conversion/phi.py)."""
    short = file.tensors.get("rope_factors_short.weight")
    if short is None:
        raise StoreError("the GGUF file has rope_factors_long, but lacks rope_factors_short")
    return {
        "rope_type": "longrope",
        "long_factor": _floats(long),
        "short_factor": _floats(short),
        "original_max_position_embeddings": int(file.key("{arch}.rope.scaling.original_context_length")),
    }


def _floats(tensor: GgufTensor) -> list[float]:
    return [float(str(value)) for value in tensor.values(slice(None)).reshape(-1)]


def _yarn(file: GgufFile, factor: float) -> dict[str, Any]:
    parameters: dict[str, Any] = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": int(
            file.key("{arch}.rope.scaling.original_context_length", file.key("{arch}.context_length"))
        ),
    }
    if (attention := file.key("{arch}.rope.scaling.yarn_attn_factor", None)) is not None:
        parameters["attention_factor"] = float(attention)
    for name in ("beta_fast", "beta_slow"):
        ollama = file.key(f"{{arch}}.rope.scaling.{name}", None)
        if (value := file.key(f"{{arch}}.rope.scaling.yarn_{name}", ollama)) is not None:
            parameters[name] = float(value)
    return parameters


def _llama3(tensor: GgufTensor, theta: float) -> dict[str, Any]:
    """Return the parameters from which Llama's converter computed these divisors of the frequencies.

    A frequency whose wavelength is short is kept, one whose wavelength is long is divided by `factor`, and between them
    the share of the kept one grows linearly with the frequency (conversion/llama.py, `generate_extra_tensors`). Two
    frequencies between determine the line; with `low_freq_factor` 1, the line gives the others.
    """
    divisors = tensor.values(slice(None)).reshape(-1).astype(np.float64)
    factor = float(divisors.max())
    if factor == 1.0 and divisors.min() == 1.0:
        return {}
    frequencies = theta ** (-np.arange(divisors.size) / divisors.size)
    known = (1.0, 4.0, LLAMA3_ORIGINAL_CONTEXT)
    llama4 = (1.0, 1.0, LLAMA3_ORIGINAL_CONTEXT)
    for low, high, context in (known, llama4, _fitted(divisors, factor, frequencies)):
        if np.allclose(_divisors(frequencies, factor, low, high, context), divisors, rtol=1e-4):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": round(context),
            }
    raise StoreError("the GGUF file scales its rotary embeddings by rope_freqs, but not in the way of Llama 3")


def _divisors(frequencies: Array, factor: float, low: float, high: float, context: float) -> Array:
    turns = context * frequencies / (2 * math.pi)
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0) if high > low else (turns > low).astype(np.float64)
    return np.asarray(1 / ((1 - kept) / factor + kept))


def _fitted(divisors: Array, factor: float, frequencies: Array) -> tuple[float, float, float]:
    between = (divisors > 1.0 + 1e-6) & (divisors < factor * (1 - 1e-6))
    if between.sum() < 2:
        return 1.0, 4.0, LLAMA3_ORIGINAL_CONTEXT
    kept = (1 / divisors[between] - 1 / factor) / (1 - 1 / factor)
    slope, start = np.polyfit(frequencies[between], kept, 1)
    high = 1 - 1 / float(start) if start < 0 else 4.0
    return 1.0, high, float(slope) * 2 * math.pi * (high - 1)
