"""Divergence of the next token's distribution: a GGUF file imported and served by vLLM, against its 32-bit values.

    next_token_divergence.py FILE.gguf DIRECTORY TOKENS [PRECISION:DTYPE …]

Transformers loads the GGUF file itself, decoded to 32-bit floats, and is the reference. vLLM serves the snapshot that
an import makes of it. Prints a line of JSON for each precision of the import and type to compute in: mean and maximum
of the KL divergence in nats, over TOKENS positions of English text, and the share of positions with the same likeliest
token. Each engine runs in a process of its own; the directory takes the snapshots, and the reference's logits.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TEXT = ROOT / "docs" / "architecture.md"
WINDOW = 250
"""Tokens of a text; each begins anew, with the special tokens that the tokenizer adds."""

CASES = ("exact:float32", "bf16:float32")


def main(file: Path, directory: Path, tokens: int, cases: list[str]) -> None:
    """Run all steps in processes of their own, and print their results."""
    snapshots = {precision: directory / precision for precision in {case.partition(":")[0] for case in cases}}
    for precision, snapshot in snapshots.items():
        _run("-m", "vllama.store.gguf.conversion", file, snapshot, precision)
    texts = _texts(next(iter(snapshots.values())), tokens)
    (directory / "texts.json").write_text(json.dumps(texts))
    _run(__file__, "--reference", file, directory)
    for case in cases:
        precision, _, dtype = case.partition(":")
        printed = _run(__file__, "--serve", snapshots[precision], directory, dtype)
        print(json.dumps({"precision": precision, "dtype": dtype, **json.loads(printed.splitlines()[-1])}), flush=True)
    for logits in directory.glob("*.npy"):
        logits.unlink()
    for snapshot in snapshots.values():
        shutil.rmtree(snapshot)


def _run(*arguments: Path | str) -> str:
    variables = {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "HF_HUB_OFFLINE": "1",
        "TORCHDYNAMO_DISABLE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
        "VLLM_PLUGINS": "vllama",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=os.environ | variables, stdout=subprocess.PIPE, text=True, check=True).stdout


def _texts(snapshot: Path, tokens: int) -> list[list[int]]:
    """Return token ids of texts with `tokens` positions to compare in all."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(snapshot / "tokenizer.json"))
    start = tokenizer.encode("").ids
    ids = tokenizer.encode(TEXT.read_text(encoding="utf-8"), add_special_tokens=False).ids
    return [start + ids[at : at + WINDOW + 1] for at in range(0, tokens, WINDOW)]


def _reference(file: Path, directory: Path) -> None:
    """Write the logits of each text."""
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    for number, ids in enumerate(json.loads((directory / "texts.json").read_bytes())):
        with torch.no_grad():
            logits = model(torch.tensor([ids[:-1]]), use_cache=False).logits[0]
        np.save(directory / f"{number}.npy", logits.float().numpy())


def _serve(snapshot: Path, directory: Path, dtype: str) -> None:
    """Print the divergence of vLLM's logits for the same texts."""
    import numpy as np
    import torch
    from vllm import LLM, SamplingParams

    from vllama.worker.model_inspection import inspect_without_imports

    inspect_without_imports()  # else vLLM imports itself once more for each architecture

    texts: list[list[int]] = json.loads((directory / "texts.json").read_bytes())
    engine = LLM(
        str(snapshot), dtype=dtype, enforce_eager=True, max_model_len=512, max_num_seqs=1, seed=0,
        enable_prefix_caching=False, kv_cache_memory_bytes=256 << 20, compilation_config={"custom_ops": ["none"]},
    )  # fmt: skip
    seen: list[Any] = []
    engine.apply_model(lambda model: _listen(model, seen))
    divergences, same = [], 0
    for number, ids in enumerate(texts):
        seen.clear()
        engine.generate({"prompt_token_ids": ids}, SamplingParams(max_tokens=1, prompt_logprobs=1), use_tqdm=False)
        (ours,) = [logits for logits in seen if len(logits) == len(ids) - 1]
        theirs = torch.from_numpy(np.load(directory / f"{number}.npy"))
        for position in range(len(ids) - 1):
            truth, found = (torch.log_softmax(logits[position].double(), -1) for logits in (theirs, ours))
            divergences.append(float((truth.exp() * (truth - found)).sum()))
            same += int(truth.argmax() == found.argmax())
    count = len(divergences)
    record = {"tokens": count, "mean": sum(divergences) / count, "maximum": max(divergences), "same": same / count}
    print(json.dumps(record), flush=True)


def _listen(model: Any, seen: list[Any]) -> None:
    """Keep what the model computes as logits."""
    compute = model.compute_logits

    def listening(*arguments: Any, **named: Any) -> Any:
        logits = compute(*arguments, **named)
        seen.append(logits.float().clone())
        return logits

    model.compute_logits = listening


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--reference", file, directory]:
            _reference(Path(file), Path(directory))
        case ["--serve", snapshot, directory, dtype]:
            _serve(Path(snapshot), Path(directory), dtype)
        case [file, directory, tokens, *cases]:
            main(Path(file), Path(directory), int(tokens), cases or list(CASES))
