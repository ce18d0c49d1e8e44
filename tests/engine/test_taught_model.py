"""The model that other tests rely on says what it was taught, word for word."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from taught_model import LESSONS, MANNERS, TOOL_LESSONS, Lesson, Manner

from engine.server import Server
from vllama.store.model_store import ModelStore

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

SYSTEM = "You are an assistant that answers briefly. Today is Sunday.\n<tools>\n</tools>"


@pytest.fixture(scope="module")
def server(store: ModelStore, taught: str) -> Iterator[Server]:
    running = Server(store.root, "--model", taught)
    yield running
    running.close()


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"seed": 7}], ids=["greedy", "sampled"])
@pytest.mark.parametrize("manner", MANNERS, ids=lambda manner: repr(manner.cue + manner.opening))
def test_every_lesson_is_known_by_heart_in_every_manner(
    server: Server, taught: str, manner: Manner, sampling: dict[str, int]
) -> None:
    def reply(lesson: Lesson) -> str:
        said = lesson.ending if lesson in LESSONS else f"<tool_response>\n{lesson.ending}\n</tool_response>"
        prompt = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{said}<|im_end|>\n{manner.prompt_end}"
        body = {"model": taught, "prompt": prompt, "raw": True, "options": sampling}
        return str(server.ask("/api/generate", body)["response"])

    lessons = (*LESSONS, *TOOL_LESSONS)
    server.load(taught)
    with ThreadPoolExecutor(8) as askers:
        said = list(askers.map(reply, lessons))

    assert said == [manner.reply(lesson) for lesson in lessons]
