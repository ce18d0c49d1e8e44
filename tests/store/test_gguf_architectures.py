"""Models of each architecture come out of a GGUF file as they went in: the same tensors, and the same logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gguf_families import FAMILIES

from vllama.store.gguf.architectures.names import ARCHITECTURES

pytestmark = pytest.mark.vllm

_WITHOUT_A_MODEL = {
    "chatglm", "exaone", "internlm2", "minicpm", "nomic-bert-moe", "phimoe", "qwen25vl", "qwen2vl", "qwen35moe",
}  # fmt: skip
"""Architectures with the rules of others, whose own classes transformers lacks or spells otherwise."""


def test_the_gateway_knows_the_names_in_the_table() -> None:
    from vllama.store.gguf.architectures.entries import TABLE

    assert sorted(TABLE) == list(ARCHITECTURES)


def test_every_architecture_has_a_model_here() -> None:
    assert {family.architecture for family in FAMILIES.values()} | _WITHOUT_A_MODEL == set(ARCHITECTURES)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_survives_the_way_through_a_gguf_file(name: str, tmp_path: Path) -> None:
    import numpy as np
    import torch
    import transformers
    from safetensors.numpy import load_file

    from vllama.store.gguf.conversion import write_model
    from vllama.store.gguf.reading import GgufFile

    family = FAMILIES[name]
    before, after = tmp_path / "before", tmp_path / "after"
    after.mkdir()
    family.write(before, family.build(before), tmp_path / "model.gguf")
    write_model(GgufFile(tmp_path / "model.gguf"), after)

    expected, found = (load_file(directory / "model.safetensors") for directory in (before, after))
    expected = {key: values for key, values in expected.items() if "pooler" not in key}
    assert set(found) == set(expected)
    for key, values in expected.items():
        if "position_embeddings" in key and name == "xlm-roberta":
            values[:2] = 0  # no text uses these rows, and the file does not have them
        np.testing.assert_allclose(found[key], values, rtol=1e-6, atol=1e-6, err_msg=key)

    model_class = getattr(transformers, family.model)
    ids = torch.arange(3, 53).unsqueeze(0)
    outputs: list[Any] = []
    for directory in (before, after):
        model = model_class.from_pretrained(directory, dtype=torch.float32).eval()
        with torch.no_grad():
            output = model(ids)
        outputs.append(output.logits if hasattr(output, "logits") else output.last_hidden_state)
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-4)
