"""Who may talk to a server without a password (contract §6.2, §6.3)."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from vllama.gateway.security import Guard, Verdict
from vllama.settings import Settings

from .conftest import RunGateway, Running

LOOPBACK = "127.0.0.1:11434"
EVERYWHERE = "0.0.0.0:11434"


def guard(host: str = LOOPBACK, *origins: str) -> Guard:
    return Guard(Settings.from_environment({}, models=Path("/none"), host=host, origins=origins))


def judge(*, host: str = "localhost", origin: str = "", method: str = "GET", by: Guard | None = None) -> Verdict:
    headers = {b"host": host.encode(), **({b"origin": origin.encode()} if origin else {})}
    return (by or guard()).judge(method, headers)


HOSTS = [
    ("", True),
    ("localhost", True),
    ("LOCALHOST", True),
    ("localhost:11434", True),
    ("127.0.0.1", True),
    ("127.0.0.1:1", True),
    ("127.8.8.8", True),
    ("[::1]", True),
    ("[::1]:11434", True),
    ("::1", True),
    ("0.0.0.0", True),
    ("10.0.0.5:11434", True),
    ("172.16.0.1", True),
    ("192.168.1.5", True),
    ("[fd00::1]:80", True),
    ("foo.localhost", True),
    ("printer.local:80", True),
    ("host.docker.internal", True),
    (socket.gethostname(), True),
    (f"{socket.gethostname().upper()}:11434", True),
    ("evil.example", False),
    ("evil.example:11434", False),
    ("localhost.evil.example", False),
    ("evil-localhost", False),
    ("localhostx", False),
    ("local", False),
    ("8.8.8.8", False),
    ("8.8.8.8:11434", False),
    ("[2001:4860:4860::8888]", False),
    ("127.0.0.1.nip.io", False),
    ("2130706433", False),
    ("0x7f000001", False),
    ("localhost evil.example", False),
    ("\xff", False),
]


@pytest.mark.parametrize(("host", "allowed"), HOSTS)
def test_a_server_on_loopback_answers_to_local_names_only(host: str, *, allowed: bool) -> None:
    verdict = guard().judge("GET", {b"host": host.encode("latin-1")})
    assert verdict == (Verdict() if allowed else Verdict(403))


def test_a_foreign_name_is_refused_without_asking_a_name_server(monkeypatch: pytest.MonkeyPatch) -> None:
    asking = guard()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: pytest.fail("a name server may be asked"))
    assert judge(host="evil.example", by=asking).refused


@pytest.mark.parametrize("bound", ["127.0.0.1", "127.0.0.2:80", "localhost", "[::1]:11434", ":11434", ""])
def test_the_check_is_on_wherever_the_server_is_bound_to_loopback(bound: str) -> None:
    assert judge(host="evil.example", by=guard(bound)).refused


@pytest.mark.parametrize("bound", [EVERYWHERE, "192.168.1.5", "[::]:11434", "example.com"])
def test_the_check_is_off_elsewhere_as_a_proxy_may_be_in_front(bound: str) -> None:
    assert not judge(host="evil.example", by=guard(bound)).refused


ORIGINS = [
    ("http://localhost", True),
    ("https://localhost", True),
    ("http://localhost:3000", True),
    ("HTTP://LOCALHOST:3000", True),
    ("http://127.0.0.1:8080", True),
    ("https://127.0.0.1", True),
    ("http://0.0.0.0:1", True),
    ("app://obsidian.md", True),
    ("file://", True),
    ("tauri://localhost", True),
    ("vscode-webview://abc", True),
    ("vscode-file://vscode-app", True),
    ("http://evil.example", False),
    ("https://localhost.evil.example", False),
    ("http://localhostx:80", False),
    ("http://127.0.0.1.evil.example", False),
    ("http://192.168.1.5", False),
    ("null", False),
    ("chrome-extension://abcdef", False),
    ("ftp://localhost", False),
    ("javascript://localhost", False),
    ("http://evil.example/http://localhost", False),
]


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(("origin", "allowed"), ORIGINS)
def test_web_pages_from_elsewhere_are_refused(origin: str, method: str, *, allowed: bool) -> None:
    verdict = judge(host="localhost:11434", origin=origin, method=method)
    if allowed:
        assert verdict.headers == ((b"access-control-allow-origin", origin.encode()), (b"vary", b"Origin"))
    assert verdict.refused != allowed


def test_no_origin_means_no_cors_headers() -> None:
    assert judge() == Verdict()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_page_of_the_server_itself_is_not_foreign(scheme: str) -> None:
    by = guard(EVERYWHERE)
    assert judge(host="models.example:11434", origin=f"{scheme}://models.example:11434", by=by) == Verdict()


@pytest.mark.parametrize(
    ("pattern", "origin", "allowed"),
    [
        ("https://chat.example", "https://chat.example", True),
        ("https://chat.example", "http://chat.example", False),
        ("https://chat.example", "https://chat.example:8443", False),
        ("https://*.example", "https://chat.example", True),
        ("https://*.example", "https://chat.example.evil", False),
        ("chrome-extension://*", "chrome-extension://abcdef", True),
        ("https://chat.example", "https://chatXexample", False),
    ],
)
def test_further_origins_may_be_allowed_with_wildcards(pattern: str, origin: str, *, allowed: bool) -> None:
    assert judge(origin=origin, by=guard(LOOPBACK, pattern)).refused != allowed


def test_a_star_allows_all_origins_and_depends_on_none() -> None:
    verdict = judge(origin="http://evil.example", by=guard(LOOPBACK, "*"))
    assert verdict.headers == ((b"access-control-allow-origin", b"*"),)


def test_a_star_does_not_allow_all_hosts() -> None:
    assert judge(host="evil.example", origin="http://evil.example", by=guard(LOOPBACK, "*")).refused


def test_a_preflight_is_answered_at_once() -> None:
    verdict = judge(origin="http://localhost:3000", method="OPTIONS")
    headers = dict(verdict.headers)
    assert verdict.status == 204
    assert headers[b"access-control-allow-origin"] == b"http://localhost:3000"
    assert headers[b"access-control-max-age"] == b"43200"
    assert b"DELETE" in headers[b"access-control-allow-methods"].split(b",")
    assert b"Authorization" in headers[b"access-control-allow-headers"].split(b",")
    assert b"access-control-allow-credentials" not in headers


def test_a_preflight_from_elsewhere_is_refused() -> None:
    assert judge(origin="http://evil.example", method="OPTIONS") == Verdict(403)


@pytest.mark.anyio
async def test_a_refusal_has_an_empty_body_and_reaches_no_route(gateway: Running) -> None:
    reply = await gateway.post("/api/generate", {"model": "smollm2:135m"}, headers={"host": "evil.example"})
    assert (reply.status_code, reply.content, reply.headers["content-length"]) == (403, b"", "0")
    assert gateway.launcher.workers == []


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/api/version", "/api/nope", "/v1/models/nope"])
async def test_replies_to_an_allowed_page_carry_its_origin_whatever_their_status(gateway: Running, path: str) -> None:
    reply = await gateway.get(path, headers={"origin": "http://localhost:3000"})
    assert reply.headers["access-control-allow-origin"] == "http://localhost:3000"
    assert reply.headers["vary"] == "Origin"


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/api/generate", "/v1/chat/completions"])
async def test_a_worker_s_reply_carries_the_origin_once(gateway: Running, path: str) -> None:
    """A second one, such as vLLM's own, would make browsers refuse the reply."""
    worker = await gateway.load()
    asked = {"model": "smollm2:135m", "prompt": "hi", "messages": [{"role": "user", "content": "hi"}]}
    sent = gateway.send("POST", path, json=asked, headers={"origin": "http://localhost:3000"})
    exchange = await worker.next_exchange()
    assert "origin" not in getattr(exchange, "headers", {})
    exchange.reply(b"{}")
    assert (await sent).headers.get_list("access-control-allow-origin") == ["http://localhost:3000"]


@pytest.mark.anyio
async def test_an_error_of_the_queue_carries_the_origin(run_gateway: RunGateway) -> None:
    async with run_gateway(max_queue=0) as gateway:
        gateway.launcher.may_load.clear()
        first = gateway.send("POST", "/api/generate", json={"model": "smollm2:135m"})
        await gateway.worker()
        reply = await gateway.post(
            "/api/generate", {"model": "smollm2:135m"}, headers={"origin": "http://localhost:3000"}
        )
        assert reply.status_code == 503
        assert reply.headers["access-control-allow-origin"] == "http://localhost:3000"
        gateway.launcher.may_load.set()
        await first
