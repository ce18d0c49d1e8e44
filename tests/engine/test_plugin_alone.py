"""The plugin in a vLLM that somebody else started: Ollama's native routes with no gateway."""

from __future__ import annotations

import json
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import ollama
import pytest

from engine.processes import ProcessTree, wait_for
from engine.server import FINISHED, RUNNING, environment, metric

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

MODEL = "tiny:latest"
MESSAGES = [{"role": "user", "content": "Hi"}]
OPTIONS = {"temperature": 0, "num_predict": 8}
CHAT = {"model": MODEL, "messages": MESSAGES, "options": OPTIONS}


@pytest.fixture(scope="module")
def vllm(tiny_snapshot: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of vLLM's own server, started as its users do."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mark = secrets.token_hex(8)
    tree = ProcessTree(mark)
    log = tmp_path_factory.mktemp("vllm") / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "vllm.entrypoints.openai.api_server",
                "--model", tiny_snapshot, "--served-model-name", MODEL,
                "--host", "127.0.0.1", "--port", str(port),
                "--enforce-eager", "--kv-cache-memory-bytes", "500000000",
            ],
            env=environment(log.parent, mark, {"VLLM_PLUGINS": "vllama", "HF_HUB_OFFLINE": "1"}),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )  # fmt: skip
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)

    def is_up() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            return client.get("/health").status_code == 200
        except httpx.TransportError:
            return False

    try:
        wait_for(is_up, "vLLM's server is up", 180)
        yield client
    finally:
        client.close()
        process.terminate()
        process.wait(60)
        tree.kill()


def post(vllm: httpx.Client, path: str, body: Any) -> httpx.Response:
    """Post as `curl -d` does."""
    return vllm.post(path, content=json.dumps(body), headers={"content-type": "application/x-www-form-urlencoded"})


def test_chat_streams_records(vllm: httpx.Client) -> None:
    reply = post(vllm, "/api/chat", CHAT)

    assert reply.headers["content-type"] == "application/x-ndjson"
    *lines, last = [json.loads(line) for line in reply.text.splitlines()]
    assert all(list(line) == ["model", "created_at", "message", "done"] for line in lines)
    assert (last["done_reason"], last["eval_count"]) == ("length", 8)


def test_an_offer_of_http_2_is_ignored_and_http_1_0_gets_no_chunks(vllm: httpx.Client) -> None:
    body = json.dumps(CHAT)
    offer = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\n"
    head = f"POST /api/chat HTTP/1.0\r\n{offer}Content-Length: {len(body)}\r\n\r\n"
    with socket.create_connection((vllm.base_url.host, vllm.base_url.port or 0), timeout=60) as connection:
        connection.sendall(f"{head}{body}".encode())
        with connection.makefile("rb") as reader:
            reply = reader.read()
    status, _, lines = reply.partition(b"\r\n\r\n")
    assert status.startswith(b"HTTP/1.0 200 ")
    assert b"transfer-encoding" not in status.lower()
    assert [json.loads(line)["done"] for line in lines.splitlines()][-2:] == [False, True]


def test_chat_and_generate_answer_in_one_record(vllm: httpx.Client) -> None:
    chatted = post(vllm, "/api/chat", {**CHAT, "stream": False}).json()
    body = {"model": MODEL, "prompt": "Hi", "stream": False, "options": OPTIONS}
    generated = post(vllm, "/api/generate", body).json()

    assert chatted["message"]["content"] == generated["response"]
    assert len(generated["context"]) == generated["prompt_eval_count"] + 8


def test_the_servers_other_native_routes_answer(vllm: httpx.Client) -> None:
    assert vllm.get("/").text == "Ollama is running"
    assert vllm.head("/").status_code == 200
    assert vllm.get("/api/version").json() == {"version": "0.35.0"}
    (listed,) = vllm.get("/api/tags").json()["models"]
    assert listed["name"] == listed["model"] == MODEL
    assert len(listed["digest"]) == 64
    (loaded,) = vllm.get("/api/ps").json()["models"]
    assert (loaded["name"], loaded["context_length"]) == (MODEL, 8192)
    shown = post(vllm, "/api/show", {"model": MODEL}).json()
    assert shown["capabilities"] == ["completion"]
    assert shown["model_info"]["llama.context_length"] == 8192


def test_vllms_own_routes_are_still_there(vllm: httpx.Client) -> None:
    assert [model["id"] for model in vllm.get("/v1/models").json()["data"]] == [MODEL]
    body = {"model": MODEL, "messages": MESSAGES, "max_tokens": 4}
    assert vllm.post("/v1/chat/completions", json=body).json()["usage"]["completion_tokens"] == 4


def test_errors_have_ollamas_shape(vllm: httpx.Client) -> None:
    reply = post(vllm, "/api/chat", {**CHAT, "options": {"temperature": "hot"}})
    unknown = post(vllm, "/api/show", {"model": "nosuchmodel"})

    assert (reply.status_code, reply.json()) == (400, {"error": 'option "temperature" must be of type float32'})
    assert (unknown.status_code, unknown.json()) == (404, {"error": "model 'nosuchmodel' not found"})


def test_the_official_client_works_with_it(vllm: httpx.Client) -> None:
    client = ollama.Client(host=str(vllm.base_url))
    try:
        assert [model.model for model in client.list().models] == [MODEL]
        assert client.show(MODEL).capabilities == ["completion"]
        pieces = list(client.chat(MODEL, MESSAGES, options=OPTIONS, stream=True))
    finally:
        client._client.close()

    assert pieces[-1].eval_count == 8


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
def test_a_model_that_is_not_served_is_not_found(vllm: httpx.Client, path: str) -> None:
    body = {"model": "nosuchmodel", "prompt": "Hi", "messages": MESSAGES, "stream": False}
    reply = post(vllm, path, {**body, "options": OPTIONS})

    assert (reply.status_code, reply.json()) == (404, {"error": "model 'nosuchmodel' not found"})


def test_a_client_that_leaves_aborts_its_request(vllm: httpx.Client) -> None:
    before = metric(vllm, FINISHED)
    long = {**CHAT, "options": {"temperature": 0, "num_predict": 8000}}
    with httpx.Client(base_url=vllm.base_url) as leaving, leaving.stream("POST", "/api/chat", json=long) as reply:
        lines = reply.iter_lines()
        next(lines)
        wait_for(lambda: metric(vllm, RUNNING) == 1, "the engine works on the request", 10)
    wait_for(lambda: metric(vllm, RUNNING) == 0, "the engine drops the request", 10)

    assert metric(vllm, FINISHED) == before
