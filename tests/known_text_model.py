"""A Llama of any size that writes a known text, with random weights and SmolLM2's tokenizer.

    python tests/known_text_model.py TOKENIZER_DIR OUT_DIR --hidden 3584 --intermediate 18944 --layers 28 --heads 28 \\
        --kv-heads 4 --seed 1

The words of `OUT_DIR/known_text.json` follow each other in a circle. The output of each token's row in the head is the
embedding of the word before it, and attention and MLP add so little to that embedding that every engine, every number
type and every way to split the model must write the same words.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

WORDS_FILE = "known_text.json"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_BLANK = "Ġ"
"""How a byte-level tokenizer writes the blank before a word."""

_SMALL = 1e-3
"""The size of what attention and MLP add, as a factor of that of usual random weights."""


def main() -> None:
    """Write a model as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("destination", type=Path)
    for name, default in (("hidden", 512), ("intermediate", 1024), ("layers", 2), ("heads", 8), ("kv-heads", 4)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="where the random numbers are made")
    options = vars(parser.parse_args())
    write_known_text_model(options.pop("tokenizer"), options.pop("destination"), **options)


def write_known_text_model(
    tokenizer: Path,
    destination: Path,
    *,
    hidden: int,
    intermediate: int,
    layers: int,
    heads: int,
    kv_heads: int,
    seed: int,
    device: str = "cpu",
) -> list[str]:
    """Write a bfloat16 snapshot, a file for each layer, and return the words in their order."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    destination.mkdir(parents=True, exist_ok=True)
    for name in _TOKENIZER_FILES:
        if (tokenizer / name).exists():
            shutil.copyfile(tokenizer / name, destination / name)
    words, order = _words(json.loads((tokenizer / "tokenizer.json").read_text(encoding="utf-8")), seed)
    vocabulary = 49152
    index: dict[str, str] = {}

    def write(file: str, tensors: dict[str, Tensor]) -> None:
        save_file(
            {name: tensor.to("cpu", torch.bfloat16).contiguous() for name, tensor in tensors.items()},
            destination / file,
        )
        index.update(dict.fromkeys(tensors, file))

    def random(rows: int, columns: int, scale: float = 1.0) -> Tensor:
        return torch.randn(rows, columns, device=device) * (scale / columns**0.5)

    embedding = torch.randn(vocabulary, hidden, device=device)
    head = torch.zeros_like(embedding)
    head[torch.tensor(order[1:] + order[:1], device=device)] = embedding[torch.tensor(order, device=device)]
    ones = torch.ones(hidden)
    write(
        "model-outside.safetensors",
        {"model.embed_tokens.weight": embedding, "lm_head.weight": head, "model.norm.weight": ones},
    )
    head_dim = hidden // heads
    for number in range(layers):
        layer = {
            "input_layernorm": ones,
            "post_attention_layernorm": ones,
            "self_attn.q_proj": random(hidden, hidden),
            "self_attn.k_proj": random(kv_heads * head_dim, hidden),
            "self_attn.v_proj": random(kv_heads * head_dim, hidden),
            "self_attn.o_proj": random(hidden, hidden, _SMALL),
            "mlp.gate_proj": random(intermediate, hidden),
            "mlp.up_proj": random(intermediate, hidden),
            "mlp.down_proj": random(hidden, intermediate, _SMALL),
        }
        tensors = {f"model.layers.{number}.{name}.weight": tensor for name, tensor in layer.items()}
        write(f"model-layer{number:03}.safetensors", tensors)
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    (destination / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    (destination / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": index}), encoding="utf-8"
    )
    (destination / WORDS_FILE).write_text(json.dumps(words), encoding="utf-8")
    return words


def write_known_text_gguf(snapshot: Path, target: Path) -> None:
    """Write the model of a snapshot as a GGUF file with 16-bit weights, as llama.cpp's converter writes it."""
    from gguf_families import FAMILIES, write_gguf
    from safetensors.torch import load_file
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(snapshot)
    tokenizer = json.loads((snapshot / "tokenizer.json").read_bytes())
    special = {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    tokens = {int(token): text for text, token in tokenizer["model"]["vocab"].items()} | special
    places = range(config.vocab_size)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]]
    saved = {
        name: tensor.float().numpy()
        for file in snapshot.glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }
    llama = FAMILIES["llama-bias"]  # that with the rotary embedding of Llama 2
    keys = {
        **llama.keys_of(config),
        "general.file_type": 1,
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": [tokens[place] for place in places],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.token_type": [3 if place in special else 1 for place in places],
        "tokenizer.ggml.add_bos_token": False,
    }
    write_gguf(target, llama.architecture, keys, llama.tensors_of(saved, config), "F16")


def _words(tokenizer: dict[str, Any], seed: int) -> tuple[list[str], list[int]]:
    """Return plain words of one token each and their token ids, in the order in which they follow each other."""
    import torch

    special = {token["id"] for token in tokenizer["added_tokens"]}
    entries = sorted(tokenizer["model"]["vocab"].items(), key=lambda entry: int(entry[1]))
    plain = [
        (text[1:], token)
        for text, token in entries
        if token not in special and len(text) > 3 and text[0] == _BLANK and text[1:].isascii() and text[1:].isalpha()
    ]
    shuffled = [plain[place] for place in torch.randperm(len(plain), generator=torch.Generator().manual_seed(seed))]
    return [word for word, _ in shuffled], [token for _, token in shuffled]


if __name__ == "__main__":
    main()
