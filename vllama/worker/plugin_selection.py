"""Whether this vLLM was asked to be changed."""

from __future__ import annotations

import os


def is_selected() -> bool:
    """Return whether VLLM_PLUGINS names vllama.

    vLLM loads every general plugin where the variable is not set: a server that did not ask for us is left alone.
    """
    return "vllama" in os.environ.get("VLLM_PLUGINS", "").split(",")
