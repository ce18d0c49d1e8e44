"""Models made by `/api/create`, with the real engine: what was said at their creation decides what they answer."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import ollama
import pytest

from engine.server import Record, Server
from vllama.names import ModelName
from vllama.store.model_store import ModelStore

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

BASE = "smollm2:135m"
QUESTION = "What is the capital of France?"
GREEDY = {"temperature": 0, "seed": 42}

# What Ollama 0.24.0 made of the model below and the prompt "Who are you?" (exchanges 430 and 447).
MARIO: Record = {
    "from": BASE,
    "template": "{{ .System }} USER: {{ .Prompt }} ASSISTANT: {{ .Response }}",
    "system": "You are Mario.",
    "parameters": {"temperature": 0, "stop": ["<|im_end|>", "STOP"], "num_ctx": 2048},
    "license": "MIT",
    "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "It's-a me"}],
}
MARIO_IS_ASKED = "You are Mario. USER: hi ASSISTANT: It's-a me USER: Who are you? ASSISTANT: "
MARIO_IS_ASKED_IDS = [
    2683, 359, 38575, 30, 2038, 1754, 42, 15876, 40800, 9814, 17321, 42, 657, 506, 29, 81, 549, 2038, 1754, 42, 6244,
    359, 346, 47, 40800, 9814, 17321, 42, 216,
]  # fmt: skip


def create(server: Server, name: str, **fields: Any) -> None:
    steps = server.records("/api/create", {"model": name, **({"from": BASE} | fields)})
    assert steps[-1] == {"status": "success"}, steps


def answer(server: Server, model: str, prompt: str = QUESTION, **fields: Any) -> Record:
    return server.ask("/api/generate", {"model": model, "prompt": prompt, **fields})


def rendered(server: Server, model: str, path: str = "/api/generate", **fields: Any) -> str:
    record = server.ask(path, {"model": model, "_debug_render_only": True, **fields})
    text: str = record["_debug_info"]["rendered_template"]
    return text


def test_parameters_hold_where_the_request_says_nothing(server: Server) -> None:
    create(server, "short", parameters={**GREEDY, "num_predict": 3})
    first, second = answer(server, "short"), answer(server, "short")
    assert (first["eval_count"], first["done_reason"]) == (3, "length")
    assert first["response"] == second["response"]
    assert answer(server, "short", options={"num_predict": 5})["eval_count"] == 5


def test_a_stop_sequence_of_the_model_ends_the_answer(server: Server) -> None:
    whole = answer(server, BASE, options=GREEDY)["response"]
    stop = whole[len(whole) // 2 :][:6]
    create(server, "stops", parameters={**GREEDY, "stop": [stop]})
    cut = answer(server, "stops")
    assert (cut["response"], cut["done_reason"]) == (whole.partition(stop)[0], "stop")


def test_system_and_messages_stand_before_every_conversation(server: Server) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "It's-a me"}]
    create(server, "speaks", system="You are Mario.", messages=messages)
    before = (
        "<|im_start|>system\nYou are Mario.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
        "<|im_start|>assistant\nIt's-a me<|im_end|>\n"
    )
    asked = f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    assert rendered(server, "speaks", prompt=QUESTION) == before + asked
    chat = [{"role": "user", "content": QUESTION}]
    assert rendered(server, "speaks", "/api/chat", messages=chat) == before + asked


@pytest.mark.parametrize(
    "said",
    [
        {"system": "You are Mario, a plumber from Italy. Say so."},
        {"messages": [{"role": "user", "content": "Who am I?"}, {"role": "assistant", "content": "You are Luigi!"}]},
    ],
    ids=["system", "messages"],
)
def test_they_change_what_the_engine_answers(server: Server, said: Record) -> None:
    create(server, "other", **said)
    options = {**GREEDY, "num_predict": 24}
    ours, theirs = (answer(server, model, "Who are you?", options=options) for model in ("other", BASE))
    assert ours["response"] != theirs["response"]


def test_a_template_in_jinja_decides_how_the_prompt_is_written(server: Server) -> None:
    create(
        server, "plain", template="{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"
    )
    assert rendered(server, "plain", prompt=QUESTION) == f"user: {QUESTION}\nassistant:"


def test_a_template_in_go_gives_the_prompt_that_ollama_gives(server: Server) -> None:
    create(server, "mario", **MARIO)
    assert rendered(server, "mario", prompt="Who are you?") == MARIO_IS_ASKED
    record = answer(server, "mario", "Who are you?", options={"num_predict": 8})
    assert record["context"][: record["prompt_eval_count"]] == MARIO_IS_ASKED_IDS


def test_a_parameter_of_the_wrong_type_is_told_when_the_model_is_used(server: Server) -> None:
    create(server, "hot", parameters={"temperature": "hot"})
    status, message = server.refusal("/api/generate", {"model": "hot", "prompt": QUESTION})
    assert (status, message) == (400, 'option "temperature" must be of type float32')


def test_an_unknown_parameter_is_ignored(server: Server) -> None:
    create(server, "bogus", parameters={"bogus": 1, **GREEDY, "num_predict": 4})
    assert answer(server, "bogus")["eval_count"] == 4


def test_models_made_of_one_base_share_its_worker(server: Server) -> None:
    create(server, "shares", system="You are a model.")
    before = [worker.main.pid for worker in server.workers()]
    answer(server, "shares", options={"num_predict": 1})
    assert [worker.main.pid for worker in server.workers()] == before
    assert len(before) == 1


def test_a_model_answers_when_its_base_is_deleted(server: Server) -> None:
    server.post("/api/copy", {"source": BASE, "destination": "base"})
    create(server, "orphan", **{"from": "base"}, system="You are a model.", parameters=GREEDY)
    server.client.request("DELETE", "/api/delete", json={"model": "base"})
    assert answer(server, "orphan", options={"num_predict": 2})["eval_count"] == 2


def test_an_uploaded_gguf_answers_as_the_model_that_was_pulled(
    store: ModelStore, server: Server, gguf: Path, tmp_path: Path
) -> None:
    """With Ollama's own client, on a server that knows no other model of this file."""
    pulled = store.get(ModelName.parse(BASE))
    own = ModelStore(tmp_path)
    alone = Server(own.root)
    try:
        template = (pulled.snapshot / "chat_template.jinja").read_text()
        with ollama.Client(host=alone.url) as client:
            digest = client.create_blob(gguf)
            made_of = {"m.gguf": digest}
            parameters = dict(pulled.parameters)
            steps = client.create(model="mine", files=made_of, template=template, parameters=parameters, stream=True)
            said = [step.status for step in steps]
        assert digest == f"sha256:{hashlib.sha256(gguf.read_bytes()).hexdigest()}"
        assert said[:2] == ["parsing GGUF", "converting model"]
        assert said[-2:] == ["writing manifest", "success"]

        mine = own.get(ModelName.parse("mine"))
        weights = {file.path: file.sha256 for file in pulled.files}["model.safetensors"]
        assert {file.path: file.sha256 for file in mine.files}["model.safetensors"] == weights
        assert list((own.root / "blobs").iterdir()) == []
        theirs = answer(server, BASE, options={**GREEDY, "num_predict": 12})
        ours = answer(alone, "mine", options={**GREEDY, "num_predict": 12})
        for same in ("response", "context", "prompt_eval_count"):
            assert ours[same] == theirs[same]
    finally:
        alone.close()
