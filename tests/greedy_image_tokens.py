"""Greedy tokens about an image, of snapshots of models that see, by vLLM and by transformers.

`greedy_image_tokens.py PLACEHOLDER DIRECTORY [PLACEHOLDER DIRECTORY …]` prints one line of JSON for each; a placeholder
is what a prompt has for an image. In a process of its own, for it imports both.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from typing import Any

LENGTH, SIZE = 8, (90, 60)


def _image() -> Any:
    import numpy as np
    from PIL import Image

    width, height = SIZE
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], axis=-1)
    return Image.fromarray(pixels.astype("uint8"))


def _prompt(placeholder: str) -> str:
    return f"What is in {placeholder}?"


def _by_vllm(placeholder: str, directory: str) -> tuple[list[int], list[int]]:
    from vllm import LLM, SamplingParams

    from vllama.worker.model_inspection import inspect_without_imports

    inspect_without_imports()  # else vLLM imports itself once more for each architecture

    from vllama.worker import repacked_weights

    repacked_weights.register()
    engine = LLM(
        directory,
        dtype="float32",
        enforce_eager=True,
        max_model_len=256,
        max_num_seqs=1,
        kv_cache_memory_bytes=64 << 20,
        limit_mm_per_prompt={"image": 1},
        disable_log_stats=True,
    )
    sampling = SamplingParams(temperature=0, max_tokens=LENGTH, ignore_eos=True, detokenize=False)
    asked: Any = {"prompt": _prompt(placeholder), "multi_modal_data": {"image": _image()}}
    (reply,) = engine.generate(asked, sampling, use_tqdm=False)
    return list(reply.prompt_token_ids or ()), list(reply.outputs[0].token_ids)


def _by_transformers(placeholder: str, directory: str) -> tuple[list[int], list[int]]:
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model: Any = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32).eval()
    processor: Any = AutoProcessor.from_pretrained(directory)
    inputs = processor(text=[_prompt(placeholder)], images=[_image()], return_tensors="pt")
    model.generation_config.eos_token_id = None
    with torch.no_grad():
        ids = model.generate(**inputs, max_new_tokens=LENGTH, do_sample=False)[0].tolist()
    count = inputs["input_ids"].shape[1]
    return ids[:count], ids[count:]


def main(arguments: list[str]) -> None:
    """Print a line for each snapshot, with an error instead of tokens where it cannot be loaded."""
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1"}
    for placeholder, directory in zip(arguments[::2], arguments[1::2], strict=True):
        record: dict[str, Any] = {"directory": directory}
        for name, run in (("transformers", _by_transformers), ("vllm", _by_vllm)):
            try:
                record[f"{name} prompt"], record[name] = run(placeholder, directory)
            except Exception as error:  # noqa: BLE001 - told to the caller
                record[f"{name} error"] = f"{type(error).__name__}: {error}"
            gc.collect()
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
