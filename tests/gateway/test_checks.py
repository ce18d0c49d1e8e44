"""Ollama's order of checks (contract §1.2): of two mistakes the first is reported, and none of them loads a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_snapshot import make_manifest, write_snapshot

from vllama.store.manifest import Manifest

from .conftest import MODEL, Running

pytestmark = pytest.mark.anyio

FULL = f"registry.ollama.ai/library/{MODEL}"
NO_TOP = "top_logprobs must be between 0 and 20"
RAW = "raw mode does not support template, system, or context"
FORMAT = 'invalid format: "7"; expected "json" or a valid JSON Schema object'
CLOUD = "ollama cloud is disabled: remote model is unavailable"

# Each line is refused for its first mistake; what follows in the same line would be refused later.
GENERATE: list[tuple[dict[str, Any], int, str]] = [
    ({"top_logprobs": 21, "model": "!!"}, 400, NO_TOP),
    ({"keep_alive": "abc", "model": "nope"}, 400, 'time: invalid duration "abc"'),
    ({"keep_alive": True}, 400, "Unsupported type: 'bool'"),
    ({"think": 3, "model": "nope"}, 400, "think must be a boolean or string"),
    ({"think": "much", "model": "nope"}, 404, "model 'nope' not found"),
    ({"model": ""}, 404, "model '' not found"),
    ({"model": "!!", "raw": True, "system": "s"}, 400, "invalid model name"),
    ({"model": "gpt-oss:cloud"}, 403, CLOUD),
    ({"model": "gpt-oss:120b-cloud"}, 403, CLOUD),
    ({"model": "nope", "raw": True, "system": "s"}, 404, "model 'nope' not found"),
    ({"raw": True, "system": "s", "think": True}, 400, RAW),
    ({"raw": True, "context": [1]}, 400, RAW),
    ({"raw": True, "template": "t"}, 400, RAW),
    ({"think": True, "suffix": "x"}, 400, f'"{MODEL}" does not support thinking'),
    ({"think": "high"}, 400, f'"{MODEL}" does not support thinking'),
    ({"suffix": "x", "prompt": "y"}, 400, f"{FULL} does not support insert"),
    ({"options": {"temperature": "hot"}, "format": 7}, 400, 'option "temperature" must be of type float32'),
    ({"format": 7}, 500, FORMAT),
]
CHAT: list[tuple[dict[str, Any], int, str]] = [
    ({"top_logprobs": -1, "model": ""}, 400, NO_TOP),
    ({"model": ""}, 400, "model is required"),
    ({"model": "!!", "think": True}, 400, "invalid model name"),
    ({"model": "gpt-oss:cloud"}, 403, CLOUD),
    ({"model": "nope", "think": True}, 404, "model 'nope' not found"),
    ({"think": True, "tools": [{"type": "function"}]}, 400, f'"{MODEL}" does not support thinking'),
    ({"tools": [{"type": "function"}]}, 400, f"{FULL} does not support tools"),
    ({"format": 7}, 500, FORMAT),
]


@pytest.mark.parametrize(("change", "status", "error"), GENERATE)
async def test_generate_refuses_for_the_first_mistake(
    gateway: Running, change: dict[str, Any], status: int, error: str
) -> None:
    reply = await gateway.post("/api/generate", {"model": MODEL, "prompt": "hi"} | change)
    assert reply.status_code == status
    assert reply.json()["error"].startswith(error)
    assert list(reply.json()) == ["error"]
    assert gateway.launcher.workers == []


@pytest.mark.parametrize(("change", "status", "error"), CHAT)
async def test_chat_refuses_for_the_first_mistake(
    gateway: Running, change: dict[str, Any], status: int, error: str
) -> None:
    message = {"role": "user", "content": "hi"}
    reply = await gateway.post("/api/chat", {"model": MODEL, "messages": [message]} | change)
    assert reply.status_code == status
    assert reply.json()["error"].startswith(error)
    assert gateway.launcher.workers == []


@pytest.mark.parametrize("path", ["/api/generate", "/api/chat"])
async def test_a_load_is_refused_where_an_answer_would_be(gateway: Running, path: str) -> None:
    reply = await gateway.post(path, {"model": MODEL, "think": True})
    assert reply.status_code == 400
    assert gateway.launcher.workers == []


@pytest.mark.parametrize("path", ["/api/generate", "/api/chat"])
async def test_an_unload_is_not(gateway: Running, path: str) -> None:
    """Unload precedes the checks of capabilities (contract §2.1)."""
    reply = await gateway.post(path, {"model": MODEL, "think": True, "keep_alive": 0})
    assert reply.json()["done_reason"] == "unload"


@pytest.mark.parametrize("path", ["/api/generate", "/api/chat"])
async def test_an_unload_of_an_unknown_model_is_404(gateway: Running, path: str) -> None:
    reply = await gateway.post(path, {"model": "nope", "keep_alive": 0})
    assert (reply.status_code, reply.json()) == (404, {"error": "model 'nope' not found"})


@pytest.mark.parametrize(("path", "verb"), [("/api/generate", "generate"), ("/api/chat", "chat")])
@pytest.mark.parametrize("asked", ["minilm", "MiniLM:latest"])
async def test_an_embedding_model_writes_no_text(
    gateway: Running, tmp_path: Path, path: str, verb: str, asked: str
) -> None:
    snapshot = write_snapshot(tmp_path / "bert", config={"architectures": ["BertModel"], "model_type": "bert"})
    gateway.store.put(make_manifest("minilm", snapshot))
    reply = await gateway.post(path, {"model": asked})
    assert (reply.status_code, reply.json()) == (400, {"error": f'"{asked}" does not support {verb}'})
    assert gateway.launcher.workers == []


async def test_a_damaged_model_is_not_loaded(gateway: Running, manifest: Manifest) -> None:
    (manifest.snapshot / "config.json").unlink()
    reply = await gateway.post("/api/generate", {"model": MODEL, "prompt": "hi"})
    assert reply.status_code == 500
    assert "config.json is missing" in reply.json()["error"]
    assert gateway.launcher.workers == []


V1 = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"]


@pytest.mark.parametrize("path", V1)
@pytest.mark.parametrize(
    ("body", "status", "kind", "message"),
    [
        (b"", 400, "invalid_request_error", "EOF"),
        (b"{", 400, "invalid_request_error", "unexpected EOF"),
        (b"[]", 400, "invalid_request_error", "json: cannot unmarshal array"),
        (b"{%b}", 400, "invalid_request_error", "model is required"),
        (b'{"model":7,%b}', 400, "invalid_request_error", "json: cannot unmarshal number"),
        (b'{"model":"!!",%b}', 400, "invalid_request_error", "invalid model name"),
        (b'{"model":"x:cloud",%b}', 403, "api_error", CLOUD),
        (b'{"model":"nope",%b}', 404, "not_found_error", "model "),
    ],
)
async def test_v1_refuses_in_the_shape_of_openai(
    gateway: Running, path: str, body: bytes, status: int, kind: str, message: str
) -> None:
    asked = b'"messages":[{"role":"user","content":"hi"}],"prompt":"hi","input":"hi"'
    reply = await gateway.post(path, content=body.replace(b"%b", asked))
    assert reply.status_code == status
    error = reply.json()["error"]
    assert error.pop("message").startswith(message)
    assert error == {"type": kind, "param": None, "code": None}
    assert gateway.launcher.workers == []


@pytest.mark.parametrize(
    ("model", "status", "kind"),
    [("", 400, "invalid_request_error"), ("x:cloud", 403, "permission_error"), ("nope", 404, "not_found_error")],
)
async def test_v1_messages_refuses_in_the_shape_of_anthropic(
    gateway: Running, model: str, status: int, kind: str
) -> None:
    asked = {"model": model, "max_tokens": 1, "messages": [{"role": "user", "content": "hi"}]}
    reply = await gateway.post("/v1/messages?beta=true", asked)
    assert reply.status_code == status
    answer = reply.json()
    assert answer.pop("request_id").startswith("req_")
    assert answer["type"] == "error"
    assert answer["error"]["type"] == kind
    assert answer["error"]["message"]
    assert gateway.launcher.workers == []
