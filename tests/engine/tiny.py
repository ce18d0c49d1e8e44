"""The tiny model for commands that run outside of pytest."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from vllama.names import ModelName
from vllama.settings import Settings
from vllama.store.model_store import ModelStore


def user_store() -> ModelStore:
    """Return the model store that $OLLAMA_MODELS names."""
    return ModelStore(Settings.from_environment(os.environ).models)


def built_tiny(directory: Path) -> Path:
    """Write the tiny model's snapshot; its tokenizer is that of smollm2:135m in the user's model store."""
    tokenizer_from = user_store().get(ModelName.parse("smollm2:135m")).snapshot
    script = Path(__file__).parents[1] / "tiny_model.py"
    subprocess.run([sys.executable, script, tokenizer_from, directory], check=True, capture_output=True)
    return directory
