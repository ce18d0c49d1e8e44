"""Models of one architecture and configuration share what vLLM compiles.

vLLM stores compiled code under a hash of everything that may change it. The path of the model is part of the hash, so a
second model of the same kind compiles everything again: 43 s for a 7B on an H200. But the compiler sees only shapes and
configuration; the weights are inputs of the compiled code. Quantization methods may turn scales into constants, and a
model's own code may do anything, so such models keep vLLM's hash.

Written against vLLM 0.32 and 0.33 (`tests/worker/test_shared_code.py` names them). Only this file uses
`ModelConfig.compute_hash` and the names of the configurations in it.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

from vllama.worker.plugin_selection import is_selected

_PATH = "a model of this configuration"
_CONFIGURATIONS = ("hf_config", "hf_text_config")
"""Attributes of `ModelConfig` with transformers' configuration, which has the model's path in `_name_or_path`."""

Hash = Callable[[Any], str]


def register() -> None:
    """Have vLLM hash the configurations of models without their paths in this process; the second time does nothing."""
    if is_selected():
        from vllm.config import ModelConfig

        if not hasattr(ModelConfig.compute_hash, "__wrapped__"):
            ModelConfig.compute_hash = without_path(ModelConfig.compute_hash)


def without_path(compute_hash: Hash) -> Hash:
    """Return a hash of model configurations that is the same wherever the model lies, where that is safe."""

    @functools.wraps(compute_hash)
    def hashed(config: Any) -> str:
        if config.quantization is not None or config.trust_remote_code:
            return compute_hash(config)
        nameless = copy.copy(config)
        nameless.__dict__.update(model=_PATH, model_weights="", tokenizer=_PATH)
        for name in _CONFIGURATIONS:
            if (found := getattr(config, name, None)) is not None:
                found = copy.copy(found)
                found.__dict__["_name_or_path"] = _PATH
                nameless.__dict__[name] = found
        return compute_hash(nameless)

    return hashed
