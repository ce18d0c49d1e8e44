"""Models that see come out of GGUF files as they went in: the same tensors, and the same logits for an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gguf_vision_families import FAMILIES

from vllama.store.gguf.architectures.names import VISION_INSIDE, VISION_TEXTS

pytestmark = pytest.mark.vllm


def test_every_kind_of_tower_has_an_entry_and_a_model_here() -> None:
    from vllama.store.gguf.vision.entries import TABLE

    assert set(TABLE) == set(VISION_TEXTS) == {family.kind for family in FAMILIES.values()}
    assert set(VISION_INSIDE.values()) <= set(TABLE)


def _state(snapshot: Path, model: str) -> tuple[Any, dict[str, Any]]:
    import torch
    import transformers

    loaded, report = getattr(transformers, model).from_pretrained(
        snapshot, dtype=torch.float32, output_loading_info=True
    )
    assert not report["mismatched_keys"]
    assert not report["unexpected_keys"]
    return loaded.eval(), {
        key: value for key, value in loaded.state_dict().items() if key not in report["missing_keys"]
    }


@pytest.mark.parametrize("is_inside", [False, True], ids=["two files", "one file"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_that_sees_survives_the_way_through_gguf_files(name: str, tmp_path: Path, *, is_inside: bool) -> None:
    import torch

    from vllama.store.gguf.conversion import write_model
    from vllama.store.gguf.reading import GgufFile

    family = FAMILIES[name]
    if is_inside and family.inside is None:
        pytest.skip("Ollama has no such files")
    before, after = tmp_path / "before", tmp_path / "after"
    after.mkdir()
    config = family.build(before)
    if is_inside:
        write_model(GgufFile(family.write_inside(before, config, tmp_path / "model.gguf")), after)
    else:
        text, projector = map(GgufFile, family.write(before, config, tmp_path))
        write_model(text, after, projector=projector)

    (expected, state), (found, converted) = (_state(directory, family.model) for directory in (before, after))
    rows = len(family.tokens)
    assert converted.keys() <= state.keys()
    assert all("vision" in key for key in state.keys() - converted.keys())  # what LLaVA does not use of its tower
    for key, values in converted.items():
        is_by_token = key.endswith(("embed_tokens.weight", "lm_head.weight"))
        kept = slice(rows) if is_by_token else slice(None)
        torch.testing.assert_close(values[kept], state[key][kept], rtol=1e-6, atol=1e-6, msg=key)
    given = family.inputs(config)
    with torch.no_grad():
        logits = [model(**given).logits[..., :rows] for model in (expected, found)]
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-4, atol=1e-4)
