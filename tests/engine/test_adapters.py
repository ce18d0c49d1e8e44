"""LoRA adapters on the real engine: a base and the models with an adapter on it are one worker, and each is itself."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tiny_adapter import attention_of, write_adapter

from engine.server import Record, Server
from vllama.store.model_store import ModelStore

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

GREEDY = {"temperature": 0, "num_predict": 12}
LAYERS = attention_of(blocks=2, width=64, heads_width=128)


@pytest.fixture(scope="module")
def serving(store: ModelStore, tiny: str) -> Iterator[Server]:
    """A server on which the tiny model is loaded before there is an adapter."""
    running = Server(store.root, "--max-model-len", "512")
    try:
        running.load(tiny)
        yield running
    finally:
        running.close()


@pytest.fixture(scope="module")
def plain(serving: Server, tiny: str) -> str:
    """What the base says by itself, without room for adapters."""
    assert "--enable-lora" not in serving.worker(tiny).main.command
    return generate(serving, tiny)


@pytest.fixture(scope="module")
def one(serving: Server, tiny: str, plain: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    del plain  # asked before
    create(serving, "one", tiny, write_adapter(tmp_path_factory.mktemp("a") / "one", LAYERS, seed=1))
    return "one"


@pytest.fixture(scope="module")
def two(serving: Server, tiny: str, one: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    del one
    create(serving, "two", tiny, write_adapter(tmp_path_factory.mktemp("a") / "two", LAYERS, rank=4, seed=2))
    return "two"


def create(server: Server, name: str, base: str, adapter: Path, **fields: Any) -> None:
    """Upload an adapter and make a model of it, as Ollama's clients do."""
    digests = {}
    for path in adapter.iterdir():
        digests[path.name] = f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
        assert server.client.post(f"/api/blobs/{digests[path.name]}", content=path.read_bytes()).is_success
    steps = server.records("/api/create", {"model": name, "from": base, "adapters": digests, **fields})
    assert steps[-1] == {"status": "success"}, steps


def generate(server: Server, model: str, prompt: str = "Once upon a time") -> str:
    record = server.ask("/api/generate", {"model": model, "prompt": prompt, "raw": True, "options": GREEDY})
    text: str = record["response"]
    return text


def chat(server: Server, model: str) -> str:
    messages = [{"role": "user", "content": "hi"}]
    text: str = server.ask("/api/chat", {"model": model, "messages": messages, "options": GREEDY})["message"]["content"]
    return text


def v1(server: Server, path: str, body: Record) -> Record:
    reply = server.post(path, body)
    assert reply.status_code == 200, reply.text
    record: Record = reply.json()
    return record


def answer_in(record: Record) -> str:
    """The text of a completion, a response or a message."""
    if "choices" in record:
        text: str = record["choices"][0]["text"]
    else:
        text = (record["output"][-1] if "output" in record else record)["content"][0]["text"]
    return text


def openai_chat(server: Server, model: str) -> str:
    messages = [{"role": "user", "content": "hi"}]
    body = {"model": model, "messages": messages, "temperature": 0, "max_tokens": GREEDY["num_predict"]}
    record = v1(server, "/v1/chat/completions", body)
    assert record["model"] == model
    text: str = record["choices"][0]["message"]["content"]
    return text


def test_an_adapter_changes_what_its_model_says_and_not_what_the_base_says(
    serving: Server, tiny: str, plain: str, one: str, two: str
) -> None:
    said = {model: generate(serving, model) for model in (tiny, one, two)}
    assert said[tiny] == plain
    assert len(set(said.values())) == 3
    assert {model: generate(serving, model) for model in (two, one, tiny)} == said


def test_base_and_adapters_share_one_worker_with_room_for_them(serving: Server, tiny: str, one: str, two: str) -> None:
    for model in (tiny, one, two):
        generate(serving, model)
    (worker,) = serving.workers()
    command = worker.main.command
    assert command[command.index("--max-lora-rank") + 1] == "8"
    assert serving.loaded() == ["two:latest"]


def test_they_answer_at_the_same_time(serving: Server, tiny: str, one: str, two: str) -> None:
    models = [tiny, one, two] * 3
    alone = {model: generate(serving, model) for model in (tiny, one, two)}
    with ThreadPoolExecutor(len(models)) as pool:
        together = list(pool.map(lambda model: generate(serving, model), models))
    assert together == [alone[model] for model in models]


def test_every_route_of_text_uses_the_adapter(serving: Server, tiny: str, one: str) -> None:
    assert chat(serving, one) != chat(serving, tiny)
    assert openai_chat(serving, one) == chat(serving, one)
    assert openai_chat(serving, tiny) == chat(serving, tiny)
    greedy = {"temperature": 0, "max_tokens": 8}
    question = [{"role": "user", "content": "hi"}]
    for path, body in (
        ("/v1/completions", {"prompt": "hi", **greedy}),
        ("/v1/responses", {"input": "hi", "temperature": 0, "max_output_tokens": 8}),
        ("/v1/messages", {"messages": question, **greedy}),
    ):
        ours, theirs = (v1(serving, path, {"model": model, **body}) for model in (one, tiny))
        assert answer_in(ours) != answer_in(theirs), path
        assert ours["model"] == one


def test_a_model_made_of_one_with_an_adapter_has_it_too(serving: Server, one: str) -> None:
    steps = serving.records("/api/create", {"model": "made", "from": one, "parameters": {"seed": 1}})
    assert steps[-1] == {"status": "success"}
    assert generate(serving, "made") == generate(serving, one)


def test_what_is_said_of_a_model_with_an_adapter(serving: Server, tiny: str, one: str, store: ModelStore) -> None:
    shown = serving.post("/api/show", {"model": one}).json()
    (line,) = [line for line in shown["modelfile"].splitlines() if line.startswith("ADAPTER ")]
    assert Path(line.removeprefix("ADAPTER ")).is_relative_to(store.root)
    sizes = {model["name"]: model["size"] for model in serving.client.get("/api/tags").json()["models"]}
    assert sizes[f"{one}:latest"] > sizes[tiny]


def test_an_adapter_that_vllm_does_not_take_is_an_error_of_its_own_model_alone(
    serving: Server, tiny: str, one: str, tmp_path: Path, store: ModelStore
) -> None:
    """One whose file was changed after it was checked."""
    create(serving, "broken", tiny, write_adapter(tmp_path / "broken", LAYERS, seed=9))
    (adapter,) = [m.adapter for m in store.list() if m.name.model == "broken"]
    assert adapter is not None
    config = adapter.snapshot / "adapter_config.json"
    said = config.read_text().replace('"bias": "none"', '"bias": "only"')
    config.unlink()  # it is shared with the other adapters
    config.write_text(said)
    for path, body in (
        ("/api/generate", {"prompt": "hi"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
    ):
        reply = serving.post(path, {"model": "broken", "stream": False, **body})
        assert (reply.status_code, "bias" in reply.text) == (400, True), reply.text
    assert generate(serving, one) != generate(serving, tiny)


def test_the_base_stays_when_models_with_an_adapter_go(serving: Server, tiny: str, plain: str, one: str) -> None:
    (before,) = serving.workers()
    for name in ("gone", "made"):
        serving.records("/api/create", {"model": name, "from": one})
        generate(serving, name)
        serving.client.request("DELETE", "/api/delete", json={"model": name})
    assert generate(serving, tiny) == plain
    assert [worker.main.pid for worker in serving.workers()] == [before.main.pid]


def test_a_higher_rank_than_the_worker_has_room_for_replaces_it(
    serving: Server, tiny: str, plain: str, one: str, tmp_path: Path
) -> None:
    said = generate(serving, one)
    create(serving, "wide", tiny, write_adapter(tmp_path / "wide", LAYERS, rank=12, seed=3))
    assert generate(serving, "wide") not in {said, plain}
    (worker,) = serving.workers()
    command = worker.main.command
    assert command[command.index("--max-lora-rank") + 1] == "16"
    assert generate(serving, one) == said
    assert generate(serving, tiny) == plain
