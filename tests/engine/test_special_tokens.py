"""Prompts begin with the special tokens that the tokenizer adds, once, on a real engine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from engine.server import Record, Server
from vllama.names import ModelName
from vllama.store.model_store import ModelStore
from vllama.store.pull import pull

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

BOS, BOS_ID = "<|im_start|>", 1
GO = "{{ if .Suffix }}[{{ .Prompt }}|{{ .Suffix }}]{{ else }}Q: {{ .Prompt }}\nA:{{ .Response }}{{ end }}"


@pytest.fixture(scope="module")
def model(server: Server, store: ModelStore, tiny_snapshot: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny model with a tokenizer that adds BOS, and a Go template."""
    snapshot = tmp_path_factory.mktemp("bos") / "tiny-bos"
    shutil.copytree(tiny_snapshot, snapshot)
    path = snapshot / "tokenizer.json"
    tokenizer = json.loads(path.read_bytes())
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": BOS, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {BOS: {"id": BOS, "ids": [BOS_ID], "tokens": [BOS]}},
    }
    path.write_text(json.dumps(tokenizer))
    for _ in pull(store, ModelName.parse("tiny-bos"), from_path=snapshot):
        pass
    created = server.post("/api/create", {"model": "bos", "from": "tiny-bos", "stream": False, "template": GO})
    assert created.status_code == 200
    return "bos"


def body(model: str, prompt: str, **fields: Any) -> Record:
    return {"model": model, "prompt": prompt, "stream": False, "options": {"num_predict": 2}, **fields}


def rendered(server: Server, asked: Record) -> str:
    text: str = server.ask("/api/generate", {**asked, "_debug_render_only": True})["_debug_info"]["rendered_template"]
    return text


@pytest.mark.parametrize(
    ("prompt", "fields", "whole"),
    [
        ("Hi", {"raw": True}, f"{BOS}Hi"),
        (f"{BOS}Hi", {"raw": True}, f"{BOS}Hi"),
        ("Hi", {}, f"{BOS}Q: Hi\nA:"),
        ("Hi", {"suffix": "there"}, f"{BOS}[Hi|there]"),
        ("Hi", {"template": BOS + "{{ .Prompt }}"}, f"{BOS}Hi"),
        ("Hi", {"context": [500, 501]}, f"{BOS}CONTEXTQ: Hi\nA:"),
        ("Hi", {"context": [BOS_ID, 500, 501]}, f"{BOS}CONTEXTQ: Hi\nA:"),
    ],
)
def test_a_prompt_begins_with_bos_once(
    server: Server, model: str, prompt: str, fields: dict[str, Any], whole: str
) -> None:
    text = rendered(server, body(model, prompt, **fields))
    before, _, after = whole.partition("CONTEXT")
    assert text.startswith(before)
    assert text.endswith(after)
    assert text.count(BOS) == 1
    assert "CONTEXT" in whole or text == whole


def test_the_routes_of_openai_get_the_same_prompts(server: Server, model: str) -> None:
    asked = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    few = {"num_predict": 2}
    ours = server.ask("/api/chat", {"model": model, "messages": asked["messages"], "options": few})
    theirs = server.post("/v1/chat/completions", asked).json()
    assert theirs["usage"]["prompt_tokens"] == ours["prompt_eval_count"]


def test_the_context_of_a_reply_goes_on_after_one_bos(server: Server, model: str) -> None:
    context = server.ask("/api/generate", body(model, "Hi"))["context"]
    assert context[0] == BOS_ID
    again = server.ask("/api/generate", body(model, "And?", context=context))["context"]
    assert again[: len(context)] == context
    assert again.count(BOS_ID) == 1
