"""A client that leaves takes its request with it, as vLLM's own count of running requests shows."""

from __future__ import annotations

import json
import socket
from urllib.parse import urlsplit

import pytest

from engine.processes import wait_for
from engine.server import FINISHED, RUNNING, Record, Server

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

MODEL = "smollm2:135m"
LONG = {"temperature": 0, "num_predict": 4000}
PATHS: dict[str, Record] = {
    "/api/chat": {"model": MODEL, "messages": [{"role": "user", "content": "Count to 9999."}], "options": LONG},
    "/api/generate": {"model": MODEL, "prompt": "Count to 9999.", "options": LONG},
    "/v1/chat/completions": {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Count to 9999."}],
        "max_tokens": 4000,
        "ignore_eos": True,
    },
}


def send(server: Server, path: str, body: Record) -> socket.socket:
    """Send a request and return the connection; nothing of the reply has been read."""
    address = urlsplit(server.url)
    connection = socket.create_connection((address.hostname, address.port), timeout=60)
    text = json.dumps(body).encode()
    connection.sendall(
        b"POST %b HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n%b" % (path.encode(), len(text), text)
    )
    return connection


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "one reply"])
def test_a_request_ends_in_the_engine_when_its_client_leaves(server: Server, path: str, *, stream: bool) -> None:
    worker = server.worker(MODEL)
    wait_for(lambda: worker.metric(RUNNING) == 0, "the engine is idle")
    before = worker.metric(FINISHED)
    with send(server, path, {**PATHS[path], "stream": stream}) as connection:
        if stream:
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        wait_for(lambda: worker.metric(RUNNING) == 1, "the engine works on the request", 10)
    wait_for(lambda: worker.metric(RUNNING) == 0, "the engine drops the request", 10)

    assert worker.metric(FINISHED) == before
    assert server.ask("/api/chat", {**PATHS["/api/chat"], "options": {"num_predict": 1}})["eval_count"] == 1


def test_one_client_of_several_leaves_and_the_others_lose_nothing(server: Server) -> None:
    worker = server.worker(MODEL)
    before = worker.metric(FINISHED)
    body = {**PATHS["/api/chat"], "options": {"temperature": 0, "num_predict": 48}}
    alone = [record["message"]["content"] for record in server.records("/api/chat", body)]
    with send(server, "/api/chat", PATHS["/api/chat"]) as leaver:
        wait_for(lambda: worker.metric(RUNNING) == 1, "the engine works on the one that will leave", 30)
        with server.stream("/api/chat", body) as records:
            heard = [next(records)["message"]["content"]]
            leaver.close()
            heard += [record["message"]["content"] for record in records]

    assert len(heard) == len(alone)
    wait_for(lambda: worker.metric(RUNNING) == 0, "the engine drops the other request", 10)
    assert worker.metric(FINISHED) == before + 2
