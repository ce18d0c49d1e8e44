"""`/v1/systemone` with the real engine: a random Qwen 3 of a few megabytes decides (contract §5.8)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ollama
import pytest

from engine.conftest import build
from engine.server import Server
from vllama.names import ModelName
from vllama.store.model_store import ModelStore
from vllama.store.pull import pull

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

QUESTIONS: dict[str, Any] = {
    "label": {"type": "choice", "instructions": "Which label?", "criteria": {"bug": "An error", "praise": None}},
    "refund": {"type": "noul", "instructions": "Is a refund asked for?"},
    "urgency": {"type": "score", "instructions": "How urgent?", "criteria": ["Routine", "Soon", "Now"]},
}


@pytest.fixture(scope="module")
def decider(store: ModelStore, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a model of an architecture that vLLM lets decide."""
    name = ModelName.parse("decider")
    snapshot = build("tiny_decider.py", store, tmp_path_factory.mktemp("decider"))
    for _ in pull(store, name, from_path=snapshot):
        pass
    return name.display


@pytest.fixture(scope="module")
def deciding(store: ModelStore, decider: str) -> Iterator[Server]:
    del decider
    running = Server(store.root)
    yield running
    running.close()


def test_ollama_s_client_gets_an_answer_to_each_kind_of_question(deciding: Server, decider: str) -> None:
    with ollama.Client(deciding.url) as client:
        answered = client.systemone(decider, "The page is blank.", QUESTIONS, keep_alive="20m")
    answers = answered.answers
    assert answered.model == decider
    assert set(answers["label"].probabilities) == {"bug", "praise"}
    assert sum(answers["label"].probabilities.values()) == pytest.approx(1, abs=1e-3)
    assert 0 <= answers["refund"].noul <= 1
    assert 0 <= answers["urgency"].score <= 2
    assert answered.usage.input_tokens > 0


def test_the_model_says_that_it_decides_and_others_are_refused(deciding: Server, decider: str, tiny: str) -> None:
    with ollama.Client(deciding.url) as client:
        assert "decision" in (client.show(decider).capabilities or ())
    asked = {"model": tiny, "state": "x", "questions": QUESTIONS}
    assert deciding.refusal("/v1/systemone", asked) == (400, f'model "{tiny}" does not support systemone')
    asked = {"model": decider, "state": "x", "questions": {}}
    assert deciding.refusal("/v1/systemone", asked) == (400, "questions: needs at least one question")
