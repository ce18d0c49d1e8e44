"""Greedy tokens of snapshots by vLLM and by transformers.

`greedy_tokens.py DIRECTORY…` prints one line of JSON for each. In a process of its own, for it imports both.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
from typing import Any

PROMPT, LENGTH = [1, *range(3, 35)], 16


def _by_vllm(directory: str, dtype: str) -> list[int]:
    from vllm import LLM, SamplingParams

    from vllama.worker.model_inspection import inspect_without_imports

    inspect_without_imports()  # else vLLM imports itself once more for each architecture

    engine = LLM(
        directory,
        skip_tokenizer_init=True,
        dtype=dtype,
        enforce_eager=True,
        max_model_len=128,
        max_num_seqs=1,
        kv_cache_memory_bytes=64 << 20,
        disable_log_stats=True,
    )
    sampling = SamplingParams(temperature=0, max_tokens=LENGTH, ignore_eos=True, detokenize=False)
    (reply,) = engine.generate({"prompt_token_ids": PROMPT}, sampling, use_tqdm=False)
    return list(reply.outputs[0].token_ids)


def _by_transformers(directory: str) -> list[int]:
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    ids = torch.tensor([PROMPT])
    for _ in range(LENGTH):
        with torch.no_grad():
            ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    return [int(token) for token in ids[0, len(PROMPT) :]]


def main() -> None:
    """Print a line for each snapshot, with an error instead of tokens where vLLM refuses it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directories", nargs="+")
    parser.add_argument("--vllm", action="store_true", help="do not read the snapshots with transformers")
    parser.add_argument("--dtype", default="float32", help="type that vLLM computes in")
    arguments = parser.parse_args()
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1"}
    for directory in arguments.directories:
        record: dict[str, Any] = {"directory": directory}
        if not arguments.vllm:
            record["transformers"] = _by_transformers(directory)
        try:
            record["vllm"] = _by_vllm(directory, arguments.dtype)
        except Exception as error:  # noqa: BLE001 - told to the caller
            record["error"] = f"{type(error).__name__}: {error}"
        print(json.dumps(record), flush=True)
        gc.collect()


if __name__ == "__main__":
    main()
