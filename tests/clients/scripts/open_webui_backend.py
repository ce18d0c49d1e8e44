"""Open WebUI's backend, asked as its own page and its users' programs ask it.

It runs without the models that it can run itself, as its slim image does, and keeps its data in a temporary directory.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
from contextlib import redirect_stdout
from pathlib import Path

import httpx
import uvicorn
from uses import CHAT, EMBED, GET_WEATHER, QUESTION, TEXTS, TOOLS, WEATHER, report, use

SERVER = os.environ["OLLAMA_HOST"]
DATA = tempfile.TemporaryDirectory(prefix="open-webui-")
os.environ |= {
    "DATA_DIR": DATA.name,
    "FROM_INIT_PY": "true",  # as `open-webui serve` says it: the pages are in the package
    "STATIC_DIR": str(Path(DATA.name) / "static"),
    "OLLAMA_BASE_URL": SERVER,
    "OPENAI_API_BASE_URL": f"{SERVER}/v1",
    "WEBUI_AUTH": "false",
    "WEBUI_SECRET_KEY": "a secret that the tests alone know",
    "USE_SLIM_DOCKER": "true",
    "OFFLINE_MODE": "true",
    "ENABLE_VERSION_UPDATE_CHECK": "false",
    "GLOBAL_LOG_LEVEL": "ERROR",
}
GREEDY = {"options": {"temperature": 0, "num_predict": 100}}
ASK = {"model": CHAT, "messages": [{"role": "user", "content": QUESTION}], **GREEDY}
ASK_WEATHER = {
    "model": TOOLS,
    "messages": [{"role": "user", "content": WEATHER}],
    "tools": [GET_WEATHER],
    **GREEDY,
}


def _start() -> httpx.Client:
    """Start the backend in a thread of this process, and return a client that is signed in."""
    from open_webui.main import app

    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        threading.Event().wait(0.05)
    (host, port) = server.servers[0].sockets[0].getsockname()
    backend = httpx.Client(base_url=f"http://{host}:{port}", timeout=120)
    token = backend.post("/api/v1/auths/signin", json={"email": "", "password": ""}).raise_for_status().json()["token"]
    backend.headers["Authorization"] = f"Bearer {token}"
    return backend


with redirect_stdout(sys.stderr):  # only the report may go to the output
    client = _start()


def _reply(path, body):
    reply = client.post(path, json=body)
    assert reply.status_code == 200, reply.text
    return reply.json()


def _events(path, body):
    with client.stream("POST", path, json={**body, "stream": True}) as reply:
        lines = [line for line in reply.iter_lines() if line]
    assert reply.status_code == 200, lines
    *events, end = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert end == "[DONE]"
    return [json.loads(event) for event in events]


@use
def models():
    return {
        "all": [[model["id"], model["owned_by"]] for model in client.get("/api/models").json()["data"]],
        "ollama": [model["name"] for model in client.get("/ollama/api/tags").json()["models"]],
        "openai": [model["id"] for model in client.get("/openai/models").json()["data"]],
        "version": client.get("/ollama/api/version").json()["version"],
    }


@use
def chat():
    return _reply("/api/chat/completions", ASK)


@use
def stream():
    return _events("/api/chat/completions", ASK)


@use
def tools():
    return _reply("/api/chat/completions", ASK_WEATHER)


@use
def tools_stream():
    return _events("/api/chat/completions", ASK_WEATHER)


@use
def tool_loop():
    message = _reply("/api/chat/completions", ASK_WEATHER)["choices"][0]["message"]
    result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "7 degrees and sunny"}
    return _reply("/api/chat/completions", {**ASK_WEATHER, "messages": [*ASK_WEATHER["messages"], message, result]})


@use
def thinking():
    question = {"role": "user", "content": "Why is the sky blue?"}
    return _events(
        "/api/chat/completions", {"model": TOOLS, "messages": [question], "params": {"think": True}, **GREEDY}
    )


@use
def ollama_proxy():
    with client.stream("POST", "/ollama/api/chat", json={**ASK, "stream": True}) as reply:
        return [json.loads(line) for line in reply.iter_lines()]


@use
def openai_proxy():
    return _events("/openai/chat/completions", {"model": CHAT, "messages": ASK["messages"], "temperature": 0})


@use
def embed():
    return _reply("/ollama/api/embed", {"model": EMBED, "input": TEXTS})["embeddings"]


@use
def errors():
    reply = client.post("/api/chat/completions", json={**ASK_WEATHER, "model": CHAT})
    return {"tools without support": [reply.status_code, reply.json()]}


report("open-webui")
