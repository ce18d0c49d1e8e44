"""A random model that sees: Idefics3 (a vision tower before a Llama) of a few megabytes, with a real tokenizer.

Idefics3, because its image processor needs PIL and numpy only: the CPU install has no torchvision.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

TILE = 56
"""Side of what the vision tower sees at once, in pixels; an image is scaled to two tiles on its longer side."""

TILE_TOKENS = 4

_PATCH, _SHRINK = 14, 2  # (56 / 14)² patches, four of them to a token
_MARKS = ("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>")

_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}{{- '<image>' -}}{%- else -%}{{- part['text'] -}}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


def build_tiny_vision_model(tokenizer_from: Path, destination: Path) -> Path:
    """Write a random bfloat16 Idefics3 with the tokenizer of the snapshot `tokenizer_from`.

    Same seed, same weights. Its words are noise, but they depend on the image. Returns `destination`.
    """
    import torch
    from transformers import (
        AutoTokenizer,
        Idefics3Config,
        Idefics3ForConditionalGeneration,
        Idefics3Processor,
    )
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_from)
    grid = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    tokenizer.add_special_tokens({"additional_special_tokens": [*_MARKS, *grid]})
    edge = {"longest_edge": TILE}
    processor = Idefics3Processor(
        Idefics3ImageProcessorPil(size={"longest_edge": 2 * TILE}, max_image_size=edge),
        tokenizer,
        image_seq_len=TILE_TOKENS,
        chat_template=_TEMPLATE,
    )
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    torch.manual_seed(0)
    model = Idefics3ForConditionalGeneration(
        Idefics3Config(
            image_token_id=processor.image_token_id,
            scale_factor=_SHRINK,
            tie_word_embeddings=False,
            **ends,
            vision_config={
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": TILE,
                "patch_size": _PATCH,
            },
            text_config={
                "model_type": "llama",
                "vocab_size": len(tokenizer),
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 4,
                "head_dim": 32,  # the least that vLLM's CPU attention takes
                "max_position_embeddings": 2048,
                **ends,
            },
        )
    )
    model.to(torch.bfloat16).save_pretrained(destination)
    processor.save_pretrained(destination)
    # Where the snapshots of LLaVA and its kin have it: the processor finds it there, the tokenizer does not.
    (destination / "chat_template.jinja").unlink()
    (destination / "chat_template.json").write_text(json.dumps({"chat_template": _TEMPLATE}))
    return destination


if __name__ == "__main__":
    print(build_tiny_vision_model(Path(sys.argv[1]), Path(sys.argv[2])))
