"""A random Llama of a few megabytes with a real tokenizer: an engine that costs next to nothing."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")


def build_tiny_model(tokenizer_from: Path, destination: Path) -> Path:
    """Write a random two-layer bfloat16 Llama with the tokenizer of the snapshot `tokenizer_from`.

    Same seed, same weights. Its text is noise, its speed and its API behaviour are those of a real
    model. Returns `destination`.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    return write_tiny(LlamaForCausalLM, LlamaConfig, tokenizer_from, destination)


def write_tiny(model_class: Any, config_class: Any, tokenizer_from: Path, destination: Path, **settings: Any) -> Path:
    """Write a random model of a class that is built like Llama's; `settings` are those of its own."""
    import torch
    from transformers import AutoConfig

    real = AutoConfig.from_pretrained(tokenizer_from)
    torch.manual_seed(0)
    model = model_class(
        config_class(
            vocab_size=real.vocab_size,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            head_dim=32,  # the least that vLLM's CPU attention takes
            tie_word_embeddings=True,
            bos_token_id=real.bos_token_id,
            eos_token_id=real.eos_token_id,
            pad_token_id=real.pad_token_id,
            **{"max_position_embeddings": real.max_position_embeddings, **settings},
        )
    )
    model.to(torch.bfloat16).save_pretrained(destination)
    for name in TOKENIZER_FILES:
        shutil.copyfile(tokenizer_from / name, destination / name)
    return destination


if __name__ == "__main__":
    print(build_tiny_model(Path(sys.argv[1]), Path(sys.argv[2])))
