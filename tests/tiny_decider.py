"""A random Qwen 3 of a few megabytes with a real tokenizer: its architecture is one that vLLM lets decide."""

from __future__ import annotations

import sys
from pathlib import Path

from tiny_model import write_tiny


def build_tiny_decider(tokenizer_from: Path, destination: Path) -> Path:
    """Write a random two-layer bfloat16 Qwen 3 with the tokenizer of the snapshot `tokenizer_from`."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return write_tiny(Qwen3ForCausalLM, Qwen3Config, tokenizer_from, destination, max_position_embeddings=4096)


if __name__ == "__main__":
    print(build_tiny_decider(Path(sys.argv[1]), Path(sys.argv[2])))
