"""The models whose greedy text is known: transformers must write it, too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from known_text_model import WORDS_FILE, write_known_text_model

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of a thousand words, each a token with a blank before it."""
    letters = "abcdefghij"
    words = [f"{a}{b}{c}" for a in letters for b in letters for c in letters]
    vocabulary = {"<unk>": 0} | {f"Ġ{word}": number for number, word in enumerate(words, start=1)}
    directory = tmp_path_factory.mktemp("tokenizer")
    record = {"added_tokens": [{"id": 0, "content": "<unk>"}], "model": {"vocab": vocabulary}}
    (directory / "tokenizer.json").write_text(json.dumps(record))
    (directory / "tokenizer_config.json").write_text("{}")
    return directory


def test_greedy_words_follow_each_other_as_the_file_says(tokenizer: Path, tmp_path: Path) -> None:
    import torch
    from transformers import LlamaForCausalLM

    words = write_known_text_model(
        tokenizer, tmp_path, hidden=256, intermediate=512, layers=2, heads=4, kv_heads=2, seed=3
    )
    assert json.loads((tmp_path / WORDS_FILE).read_text()) == words
    vocabulary = json.loads((tokenizer / "tokenizer.json").read_text())["model"]["vocab"]
    tokens = [vocabulary[f"Ġ{word}"] for word in words]
    model = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)

    for start in (0, 500, 990):
        found = model.generate(
            torch.tensor([[0, tokens[start]]]), max_new_tokens=20, do_sample=False, eos_token_id=None
        )
        assert found[0, 2:].tolist() == [tokens[(start + step) % len(tokens)] for step in range(1, 21)]
