"""Paths and methods, with the manners of Ollama's router (contract §1.0)."""

from __future__ import annotations

import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllama.gateway.routing import Request, Routes
from vllama.store.model_store import ModelStore

from .conftest import Running

pytestmark = pytest.mark.anyio

GET_AND_HEAD = ("/", "/api/version", "/api/tags")
GET = ("/api/status", "/api/ps", "/v1/models", "/api/experimental/model-recommendations")
POST = (
    "/api/generate",
    "/api/chat",
    "/api/embed",
    "/api/embeddings",
    "/api/show",
    "/api/pull",
    "/api/push",
    "/api/copy",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/messages",
)


@pytest.mark.parametrize("path", GET_AND_HEAD)
async def test_head_has_the_headers_of_get_and_no_body(gateway: Running, path: str) -> None:
    got, head = await gateway.get(path), await gateway.client.head(path)
    assert got.status_code == head.status_code == 200
    for name in ("content-type", "content-length"):
        assert got.headers[name] == head.headers[name]
    assert head.content == b""


async def test_head_leaves_the_connection_usable(gateway: Running) -> None:
    connection = await gateway.connect()
    for _ in range(2):
        connection.request("HEAD", "/api/tags")
        assert (await connection.head()).status == 200
    connection.request("GET", "/")
    head = await connection.head()
    assert await connection.exactly(int(head["content-length"])) == b"Ollama is running"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        *(("POST", path, {"GET", "HEAD"}) for path in GET_AND_HEAD),
        *(("PUT", path, {"GET"}) for path in GET),
        *(("GET", path, {"POST"}) for path in POST),
        ("POST", "/api/delete", {"DELETE"}),
        ("HEAD", "/api/ps", {"GET"}),
    ],
)
async def test_a_known_path_with_another_method_is_405(
    gateway: Running, method: str, path: str, allowed: set[str]
) -> None:
    reply = await gateway.client.request(method, path)
    assert reply.status_code == 405
    assert reply.headers["content-type"] == "text/plain"
    assert set(reply.headers["allow"].split(", ")) == allowed
    assert reply.text == ("" if method == "HEAD" else "405 method not allowed")


@pytest.mark.parametrize("path", ["/nope", "/api", "/api/nope", "/v1", "/v1/nope", "/API/tags", "/api/tags/x", "/%2e"])
async def test_an_unknown_path_is_404(gateway: Running, path: str) -> None:
    reply = await gateway.get(path)
    assert (reply.status_code, reply.headers["content-type"]) == (404, "text/plain")
    assert reply.text == "404 page not found"


@pytest.mark.parametrize("path", [path for path in (*GET_AND_HEAD, *GET) if path != "/"])
async def test_a_trailing_slash_of_a_get_is_redirected_for_good(gateway: Running, path: str) -> None:
    reply = await gateway.get(f"{path}/")
    assert (reply.status_code, reply.headers["location"]) == (301, path)
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    assert reply.text == f'<a href="{path}">Moved Permanently</a>.\n\n'


@pytest.mark.parametrize("path", POST)
async def test_a_trailing_slash_of_a_post_is_redirected_with_its_body(gateway: Running, path: str) -> None:
    reply = await gateway.post(f"{path}/" if path.startswith("/api") else path, {"model": "nope"})
    if path.startswith("/api"):
        assert (reply.status_code, reply.headers["location"], reply.content) == (307, path, b"")
        assert "content-type" not in reply.headers


async def test_a_redirect_keeps_the_query(gateway: Running) -> None:
    reply = await gateway.get("/api/tags/?a=1&b=%2F")
    assert reply.headers["location"] == "/api/tags?a=1&b=%2F"
    assert 'href="/api/tags?a=1&amp;b=%2F"' in reply.text


async def test_a_redirect_leads_to_the_same_reply(gateway: Running) -> None:
    direct = await gateway.get("/api/version")
    assert (await gateway.get("/api/version/", follow_redirects=True)).json() == direct.json()


async def test_an_unknown_path_with_a_trailing_slash_is_404(gateway: Running) -> None:
    assert (await gateway.get("/api/nope/")).status_code == 404


@pytest.mark.parametrize("path", ["//api/version", "/api//version", "///api///version"])
async def test_doubled_slashes_count_as_one(gateway: Running, path: str) -> None:
    """Clients join a base URL that ends in a slash; Ollama redirects, which loses their POST bodies."""
    connection = await gateway.connect()
    connection.request("GET", path)
    assert (await connection.head()).status == 200


async def test_a_query_does_not_change_the_route(gateway: Running) -> None:
    assert (await gateway.get("/api/version?x=1")).status_code == 200


async def test_an_escaped_path_is_the_path(gateway: Running) -> None:
    assert (await gateway.get("/api/%76ersion")).status_code == 200


@pytest.mark.parametrize("path", ["/api/show", "/api/generate", "/api/chat"])
@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded"])
async def test_the_content_type_of_a_request_means_nothing(
    gateway: Running, path: str, content_type: str | None
) -> None:
    headers = {"content-type": content_type} if content_type else {}
    reply = await gateway.post(path, content=b'{"model":"smollm2:135m"}', headers=headers)
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "application/json; charset=utf-8"


async def test_an_authorization_header_of_any_kind_is_ignored(gateway: Running) -> None:
    assert (await gateway.get("/api/tags", headers={"authorization": "Bearer ollama"})).status_code == 200


async def test_replies_have_a_date_and_name_no_software(gateway: Running) -> None:
    reply = await gateway.get("/api/version")
    assert "date" in reply.headers
    assert "server" not in reply.headers


async def test_an_internal_error_is_a_500_without_a_traceback(
    gateway: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(self: ModelStore) -> None:
        secret = "the secret of line 42"
        raise ZeroDivisionError(secret)

    monkeypatch.setattr(ModelStore, "list", fail)
    reply = await gateway.get("/api/tags")
    assert reply.status_code == 500
    assert reply.json() == {"error": "internal error; check the server's log"}
    assert "line 42" in caplog.text
    assert (await gateway.get("/api/version")).status_code == 200


async def test_an_internal_error_under_v1_has_the_shape_of_openai(
    gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ModelStore, "list", lambda self: 1 / 0)
    reply = await gateway.get("/v1/models")
    assert reply.status_code == 500
    assert reply.json()["error"]["type"] == "api_error"


async def test_accesses_are_logged_with_status_and_duration(gateway: Running, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "vllama.access"):
        await gateway.get("/api/nope")
    (line,) = [record.getMessage() for record in caplog.records if record.name == "vllama.access"]
    assert line.startswith("404 ")
    assert line.endswith(" ms  GET /api/nope")


@pytest.mark.parametrize("hosts", ["", "Host: localhost\r\nHost: evil.example\r\n"])
async def test_http_1_1_needs_exactly_one_host(gateway: Running, hosts: str) -> None:
    connection = await gateway.connect()
    connection.send(f"GET /api/version HTTP/1.1\r\n{hosts}\r\n".encode())
    head = await connection.head()
    assert (head.status, head["connection"]) == (400, "close")
    assert (await connection.rest()).startswith(b"400 Bad Request: ")


async def test_http_1_0_needs_no_host(gateway: Running) -> None:
    connection = await gateway.connect()
    connection.send(b"GET / HTTP/1.0\r\n\r\n")
    assert (await connection.head()).status == 200


async def test_a_body_that_comes_in_pieces_is_put_together(gateway: Running) -> None:
    connection = await gateway.connect()
    connection.send(b"POST /api/show HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
    for piece in (b'{"mod', b'el":"smo', b'llm2:135m"}'):
        connection.send(b"%x\r\n%b\r\n" % (len(piece), piece))
    connection.send(b"0\r\n\r\n")
    assert (await connection.head()).status == 200


async def test_a_client_that_waits_for_100_continue_gets_it(gateway: Running) -> None:
    body = json.dumps({"model": "smollm2:135m"}).encode()
    connection = await gateway.connect()
    connection.send(
        b"POST /api/show HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body)
    )
    assert (await connection.head()).status == 100
    connection.send(body)
    assert (await connection.head()).status == 200


async def handler(request: Request) -> None: ...
async def other(request: Request) -> None: ...


@given(st.text(max_size=10))
def test_a_prefix_matches_what_is_longer_than_itself(rest: str) -> None:
    routes = Routes()
    routes.add("POST", "/v1/exact", handler)
    routes.add("POST", "/v1/{rest:path}", other)
    exact, prefix = routes.all()
    found = (exact if rest == "exact" else prefix) if rest else None
    assert routes.find({"method": "POST", "path": f"/v1/{rest}"}) is found
    assert routes.find({"method": "GET", "path": f"/v1/{rest}"}) is (exact if rest == "exact" else None)


@given(st.text(max_size=10))
def test_a_parameter_stands_for_one_part_of_a_path(part: str) -> None:
    routes = Routes()
    routes.add("POST", "/api/blobs/{digest}", handler)
    is_one_part = part != "" and "/" not in part
    assert (routes.find({"method": "POST", "path": f"/api/blobs/{part}"}) is not None) == is_one_part
