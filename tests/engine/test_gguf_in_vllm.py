"""GGUF files of unusual architectures, converted and served by the real vLLM: the tokens are those of transformers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from gguf_families import FAMILIES

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

_SCRIPT = Path(__file__).parents[1] / "greedy_tokens.py"


def test_converted_models_write_the_same_tokens_in_vllm_and_transformers(tmp_path: Path) -> None:
    """Falcon has groups of heads in one layer, GLM 4 norms after its layers, Command R norms of heads."""
    from vllama.store.gguf.conversion import write_model
    from vllama.store.gguf.reading import GgufFile

    snapshots = []
    for name in ("falcon-40b", "glm4", "command-r-plus"):
        family, before, after = FAMILIES[name], tmp_path / f"{name}-before", tmp_path / name
        after.mkdir()
        family.write(before, family.build(before), tmp_path / f"{name}.gguf")
        write_model(GgufFile(tmp_path / f"{name}.gguf"), after)
        snapshots.append(after)
    done = subprocess.run([sys.executable, _SCRIPT, *snapshots], capture_output=True, text=True, check=True)
    records = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(records) == len(snapshots)
    for record in records:
        assert record.get("vllm") == record["transformers"], record
