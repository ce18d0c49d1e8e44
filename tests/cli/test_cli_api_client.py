from __future__ import annotations

import json
import socket
from threading import Event

import pytest

from vllama.cli.api_client import ApiClient
from vllama.errors import RequestError, ServerError, ServerRefused, ServerUnreachable
from vllama.settings import Address

from .scripted_server import (
    GENERATED,
    NO_MODELS,
    NOT_FOUND,
    PATIENCE,
    TAGS,
    Handler,
    ScriptedServer,
    body,
    chat_pieces,
    stream,
)


@pytest.fixture
def client(server: ScriptedServer) -> ApiClient:
    return ApiClient.from_environment()


def test_requests_carry_json_and_ask_for_ndjson(server: ScriptedServer, client: ApiClient) -> None:
    assert client.post("/api/generate", {"model": "ä"})["done_reason"] == "load"
    assert server.requests == [("POST", "/api/generate", {"model": "ä"})]
    assert server.headers[0]["Content-Type"] == "application/json"
    assert server.headers[0]["Accept"] == "application/x-ndjson"
    assert server.headers[0]["User-Agent"].startswith("vllama/")


def test_a_path_in_ollama_host_goes_before_every_path(server: ScriptedServer) -> None:
    server.on("GET", "/behind/a%20proxy/api/tags", body(TAGS))
    client = ApiClient(Address.parse(f"{server.url}/behind/a proxy/"))
    assert [model["name"] for model in client.tags()] == ["smollm2:135m"]


def test_a_server_on_every_interface_is_reached_over_loopback(server: ScriptedServer) -> None:
    server.on("GET", "/api/ps", body(NO_MODELS))
    client = ApiClient(Address.parse(server.url.replace("127.0.0.1", "0.0.0.0")))
    assert client.ps() == []


def test_each_record_of_a_stream_is_handed_over_before_the_next_is_sent(
    server: ScriptedServer, client: ApiClient
) -> None:
    received = Event()
    first, *rest = chat_pieces("one", " two")

    def wait_until_received(_: Handler) -> None:
        assert received.wait(PATIENCE)

    server.on("POST", "/api/chat", stream(first, wait_until_received, *rest))
    records = client.stream("/api/chat", {"model": "m"})
    assert next(records)["message"]["content"] == "one"
    received.set()
    assert [record["done"] for record in records] == [False, True]


def test_records_are_whole_however_the_stream_is_cut_into_chunks(server: ScriptedServer, client: ApiClient) -> None:
    text = b"".join(GENERATED)
    server.on("POST", "/api/generate", stream(*(text[i : i + 7] for i in range(0, len(text), 7))))
    records = list(client.stream("/api/generate", {}))
    assert records == [json.loads(line) for line in GENERATED]


def test_closing_a_stream_closes_the_connection(server: ScriptedServer, client: ApiClient) -> None:
    server.on("POST", "/api/chat", stream(chat_pieces("one")[0], Handler.wait_for_client_to_leave))
    records = client.stream("/api/chat", {"model": "m"})
    next(records)
    records.close()
    assert server.client_left.wait(PATIENCE)


def test_an_error_line_in_a_stream_is_an_error(server: ScriptedServer, client: ApiClient) -> None:
    server.on("POST", "/api/chat", stream(chat_pieces("one")[0], b'{"error":"the engine stopped"}\n'))
    records = client.stream("/api/chat", {"model": "m"})
    next(records)
    with pytest.raises(ServerRefused, match=r"^the engine stopped$"):
        next(records)


def test_a_stream_that_ends_before_its_last_record_is_an_error(server: ScriptedServer, client: ApiClient) -> None:
    server.on("POST", "/api/chat", stream(chat_pieces("one")[0]))
    with pytest.raises(ServerError, match="ended its reply before it was complete"):
        list(client.stream("/api/chat", {"model": "m"}))


def test_a_connection_that_breaks_in_a_stream_is_an_error(server: ScriptedServer, client: ApiClient) -> None:
    server.on("POST", "/api/chat", stream(chat_pieces("one")[0], cut=True))
    with pytest.raises(ServerError, match=r"lost the connection|before it was complete"):
        list(client.stream("/api/chat", {"model": "m"}))


def test_a_connection_that_breaks_in_a_body_is_an_error(server: ScriptedServer, client: ApiClient) -> None:
    server.on("POST", "/api/generate", stream(b'{"model":', cut=True))
    with pytest.raises(ServerError, match="lost the connection to http://127"):
        client.post("/api/generate", {"model": "m"})


@pytest.mark.parametrize(
    ("sent", "status", "message"),
    [
        (b'{"error":"invalid model name"}', 400, "invalid model name"),
        (b"404 page not found", 404, "404 page not found"),
        (b"out of order", 502, "502 out of order"),
        (b"<html><h1>Bad Gateway</h1></html>", 502, "502 Bad Gateway"),
        (b"", 503, "503 Service Unavailable"),
        (b'{"detail":"nothing here"}', 400, '400 {"detail":"nothing here"}'),
    ],
)
def test_a_refusal_says_what_the_server_says(
    server: ScriptedServer, client: ApiClient, sent: bytes, status: int, message: str
) -> None:
    server.on("POST", "/api/generate", body(sent, status))
    with pytest.raises(ServerRefused) as refusal:
        client.post("/api/generate", {"model": "m"})
    assert (refusal.value.status, str(refusal.value)) == (status, message)


@pytest.mark.parametrize("sent", [b"hello", b"[]", b""])
def test_a_server_of_another_kind_is_an_error(server: ScriptedServer, client: ApiClient, sent: bytes) -> None:
    server.on("GET", "/api/tags", body(sent))
    with pytest.raises(ServerError, match="did not reply like an Ollama server"):
        client.tags()


def test_an_unknown_model_comes_with_the_command_that_fetches_it(server: ScriptedServer, client: ApiClient) -> None:
    server.on("POST", "/api/show", body(NOT_FOUND, 404))
    with pytest.raises(ServerRefused, match=r"^model 'nope' not found; to fetch it, run `vllama pull nope`$"):
        client.show("nope")


def test_another_refusal_of_show_is_left_as_it_is(server: ScriptedServer, client: ApiClient) -> None:
    server.on("POST", "/api/show", body(b'{"error":"invalid model name"}', 400))
    with pytest.raises(ServerRefused, match=r"^invalid model name$"):
        client.show("a//b")


@pytest.mark.parametrize("host", ["no-such-host.invalid", "." * 3, "a" * 70])
def test_a_host_that_does_not_exist_is_unreachable(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    def resolve(name: str | bytes | None, *_: object, **__: object) -> object:
        name.encode("idna") if isinstance(name, str) else None
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(ServerUnreachable, match=f"could not connect to http://{host}:11434"):
        ApiClient(Address.parse(host)).tags()


def test_a_scheme_that_is_not_http_is_refused() -> None:
    with pytest.raises(RequestError, match="the scheme must be http or https, not 'unix'"):
        ApiClient(Address.parse("unix://socket"))


def test_only_connecting_has_a_time_limit(server: ScriptedServer, client: ApiClient) -> None:
    connection = client._connect()
    assert connection.sock.gettimeout() is None
    connection.close()
