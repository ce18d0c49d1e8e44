"""A random cross-encoder of a few megabytes with a real tokenizer: it ranks, though for no reason."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json")


def build_tiny_cross_encoder(tokenizer_from: Path, destination: Path) -> Path:
    """Write a random two-layer Bert with one label and the tokenizer of the snapshot `tokenizer_from`.

    Same seed, same weights. Returns `destination`.
    """
    import torch
    from transformers import AutoConfig, BertConfig, BertForSequenceClassification

    real = AutoConfig.from_pretrained(tokenizer_from)
    torch.manual_seed(0)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=real.vocab_size,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,  # of 32, the least that vLLM's CPU attention takes
            max_position_embeddings=real.max_position_embeddings,
            num_labels=1,
            initializer_range=0.5,  # or all scores would be alike
        )
    )
    model.save_pretrained(destination)
    for name in _TOKENIZER_FILES:
        if (tokenizer_from / name).exists():
            shutil.copyfile(tokenizer_from / name, destination / name)
    return destination


if __name__ == "__main__":
    print(build_tiny_cross_encoder(Path(sys.argv[1]), Path(sys.argv[2])))
