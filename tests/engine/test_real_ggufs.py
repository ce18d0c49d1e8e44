"""Real GGUF files, imported and served by the real vLLM: the distribution of the next token is that of the file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from real_ggufs import CODER, GEMMA, RealGguf
from sampling import count

from engine.conftest import StartServer
from vllama.names import ModelName
from vllama.store.model_store import ModelStore
from vllama.store.pull import pull

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1200)]

_SCRIPT = Path(__file__).parents[1] / "next_token_divergence.py"


def divergence(file: Path, directory: Path, tokens: int, *cases: str) -> dict[str, dict[str, float]]:
    """Return mean and maximum of the KL divergence in nats, by precision of the import."""
    done = subprocess.run(
        [sys.executable, _SCRIPT, file, directory, str(tokens), *cases], stdout=subprocess.PIPE, text=True, check=True
    )
    print(done.stdout)
    records = [json.loads(line) for line in done.stdout.splitlines()]
    return {record["precision"]: record for record in records}


def test_an_exact_import_has_the_distribution_of_the_file(gguf: Path, tmp_path: Path) -> None:
    """All matrices of SmolLM2's file are Q4_1, which is repacked without error."""
    found = divergence(gguf, tmp_path, count(40, 2000), "exact:float32")
    assert found["exact"]["mean"] < 1e-6
    assert found["exact"]["maximum"] < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("model", [CODER, GEMMA], ids=["coder", "gemma"])
def test_an_import_with_rounded_scales_nearly_has_the_distribution_of_the_file(model: RealGguf, tmp_path: Path) -> None:
    """Scales of Q4_K are rounded to 16 bits, and some values of Q6_K to half a step."""
    found = divergence(model.path(), tmp_path, 2000)
    assert found["exact"]["mean"] < 1e-3
    assert found["bf16"]["mean"] < 1e-3


@pytest.mark.slow
def test_gemma_answers_as_with_llama_cpp(start_server: StartServer, store: ModelStore) -> None:
    """It needs the BOS token that its file says; without it the reply is " France of France of France"."""
    for _ in pull(store, ModelName.parse("gemma-base"), from_path=GEMMA.path()):
        pass
    server = start_server()
    prompt = {"prompt": "The capital of France is", "raw": True, "options": {"temperature": 0, "num_predict": 16}}
    reply = server.ask("/api/generate", {"model": "gemma-base", "stream": False, **prompt})
    assert reply["prompt_eval_count"] == 6
    assert reply["response"] == " the capital of the country of France. It is the largest city in France."
