"""GGUF files served with their own quantization: the answers of bfloat16, and described as the file is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sampling import count

from engine.server import Server
from vllama.names import ModelName
from vllama.store.model_store import ModelStore
from vllama.store.pull import pull

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

PROMPTS = (
    "What is the capital of France?",
    "Name three colours.",
    "How many days has a week?",
    "Write one sentence about the sea.",
    "What is two plus two?",
    "Who wrote Hamlet?",
)


@pytest.fixture(scope="module")
def both(gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with SmolLM2's Q4_1 file in both precisions."""
    root = tmp_path_factory.mktemp("precisions")
    for precision in ("exact", "bf16"):
        for _ in pull(ModelStore(root, precision), ModelName.parse(precision), from_path=gguf):
            pass
    server = Server(root, environ={"OLLAMA_MAX_LOADED_MODELS": "1"})
    try:
        yield server
    finally:
        server.close()


def test_both_precisions_give_the_same_answers_to_most_prompts(both: Server) -> None:
    """Greedy texts part where two tokens are nearly equal."""
    answers = {name: [answer(both, name, prompt) for prompt in PROMPTS[: count(4, 6)]] for name in ("exact", "bf16")}
    same = sum(exact == decoded for exact, decoded in zip(answers["exact"], answers["bf16"], strict=True))
    assert same > len(answers["exact"]) // 2, answers
    assert "Paris" in answers["exact"][0]


def test_the_model_is_described_as_ollama_describes_the_file(both: Server) -> None:
    sizes = {}
    for model in both.client.get("/api/tags").json()["models"]:
        details = model["details"]
        assert (details["format"], details["quantization_level"]) == ("gguf", "Q4_1")
        sizes[model["name"]] = model["size"]
    assert sizes["exact:latest"] < 0.4 * sizes["bf16:latest"]
    shown = both.ask("/api/show", {"model": "exact"})["model_info"]
    assert shown["general.file_type"] == 3
    assert "Q4_1: INT4+minimum, exact" in shown["vllama.weights"]


def answer(server: Server, model: str, prompt: str) -> str:
    options = {"temperature": 0, "num_predict": 24}
    body = {"model": model, "messages": [{"role": "user", "content": prompt}], "options": options}
    return str(server.ask("/api/chat", body)["message"]["content"])
