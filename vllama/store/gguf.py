"""GGUF → a Hugging Face snapshot, by de-quantising with transformers.

The work needs torch, which the gateway must never import, so it runs in a process of its own:
`python -m vllama.store.gguf SOURCE DESTINATION`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vllama.errors import StoreError
from vllama.store.copying import check_room
from vllama.store.gguf_header import read_header

_LAST_LINES = 15
_BYTES_PER_PARAMETER = 2
"""Of bfloat16."""


def convert(source: Path, destination: Path) -> None:
    """Write the model of the GGUF file `source` to the directory `destination`; blocks for the while.

    The snapshot holds bfloat16 safetensors, config.json, generation_config.json, the tokenizer and
    the GGUF's own chat template. Same input, same libraries: same bytes. Raises StoreError before it begins
    where the disk has no room, else with the last lines of the converter.
    """
    _check_room(source, destination.parent)
    how, last = run_converter("vllama.store.gguf", source, destination)
    if how:
        raise StoreError(f"cannot convert {source.name} to safetensors (converter ended with {how}):\n{last}")


def run_converter(module: str, *arguments: Path) -> tuple[str, str]:
    """Run a converter in a process of its own; return how it ended, "" for well, and its last lines."""
    # -P: nothing in the working directory may stand in for a module.
    command = [sys.executable, "-P", "-m", module, *map(str, arguments)]
    done = subprocess.run(
        command,
        env=os.environ | _QUIET_AND_OFFLINE,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    last = "\n".join(done.stdout.strip().splitlines()[-_LAST_LINES:])
    if done.returncode == 0:
        return "", last
    return (f"status {done.returncode}" if done.returncode > 0 else f"signal {-done.returncode}"), last


def _check_room(source: Path, directory: Path) -> None:
    try:
        needed = read_header(source).parameters * _BYTES_PER_PARAMETER
        check_room(directory, needed, "remove models that are not needed, or set OLLAMA_MODELS to a larger disk")
    except StoreError as error:
        raise StoreError(f"cannot convert {source.name} to safetensors: {error}") from None


_QUIET_AND_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "CUDA_VISIBLE_DEVICES": "",  # the CPU gives the same bytes on every machine
}


def main(arguments: list[str]) -> None:
    """Run the conversion in this process; imports torch."""
    source, destination = map(Path, arguments)
    try:
        import torch
        import transformers
    except ImportError as error:
        sys.exit(f"reading GGUF needs torch and transformers, which come with vLLM: {error}")
    transformers.utils.logging.disable_progress_bar()
    destination.mkdir(parents=True, exist_ok=True)

    model = _load_model(transformers, source, torch.bfloat16)
    tokenizer = _load_tokenizer(transformers, source, model.config.max_position_embeddings)
    model.save_pretrained(destination)
    tokenizer.save_pretrained(destination)
    _tidy(destination / "config.json", _tidy_config)
    _tidy(destination / "generation_config.json", _tidy_generation_config)
    _tidy(destination / "tokenizer_config.json", _tidy_tokenizer_config)
    for path in destination.iterdir():
        path.chmod(0o644)  # safetensors makes its files private


def _load_model(transformers: Any, source: Path, dtype: Any) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        quantization_config=transformers.GgufConfig(dequantize=True),
        dtype=dtype,
    )


def _load_tokenizer(transformers: Any, source: Path, context_length: int) -> Any:
    """Return the tokenizer with the pre-tokenizer that the GGUF names: on it depend the token ids.

    transformers rebuilds several by name and silently takes GPT-2's for the others.
    """
    from gguf import GGUFReader
    from tokenizers import pre_tokenizers

    tokenizer = transformers.AutoTokenizer.from_pretrained(
        source.parent,
        gguf_file=source.name,
        model_max_length=context_length,
        clean_up_tokenization_spaces=False,
    )
    field = GGUFReader(source).get_field("tokenizer.ggml.pre")
    named = field.contents() if field else "default"
    backend = tokenizer.backend_tokenizer
    if named == "smollm":
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    elif isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel) and named not in {"gpt-2", "default"}:
        sys.exit(f"this GGUF splits text the way of {named!r}, which cannot be rebuilt: its tokens would differ")
    return tokenizer


def _tidy(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    record = change(json.loads(path.read_bytes()))
    path.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _tidy_config(config: dict[str, Any]) -> dict[str, Any]:
    """Leave out the model's path, and give GGUF's 32-bit floats their short spelling (1e-05) back."""
    import numpy as np

    def shorten(value: Any) -> Any:
        if isinstance(value, float):
            return float(str(np.float32(value)))
        if isinstance(value, dict):
            return {key: shorten(item) for key, item in value.items()}
        return value

    return {key: shorten(value) for key, value in config.items() if key != "_model_name_or_path"}


def _tidy_generation_config(config: dict[str, Any]) -> dict[str, Any]:
    """Keep the token ids only: a GGUF says nothing of sampling, so no value of it may appear."""
    kept = ("bos_token_id", "eos_token_id", "pad_token_id", "transformers_version")
    return {key: config[key] for key in kept if key in config}


def _tidy_tokenizer_config(config: dict[str, Any]) -> dict[str, Any]:
    """Leave out how this process happened to load it."""
    return {key: value for key, value in config.items() if key not in {"is_local", "local_files_only"}}


if __name__ == "__main__":
    main(sys.argv[1:])
