"""Keys: who gets in, what each key may do, and where its secret never goes."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fake_worker import within
from tiny_snapshot import make_manifest, write_snapshot

from vllama.errors import KeysError, SettingsError
from vllama.gateway.access import require_keys
from vllama.gateway.routing import RawRoute
from vllama.keys.key import new_key
from vllama.keys.key_file import KeyFile
from vllama.settings import Settings

from .conftest import MODEL, RunGateway, Running

pytestmark = pytest.mark.anyio

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}


class Keys:
    """The key file of a gateway, as `vllama key` changes it."""

    def __init__(self, path: Path) -> None:
        self.file = KeyFile(path)

    def create(self, name: str = "user", **rights: Any) -> str:
        secret, key = new_key(name, **rights)
        self.file.add(key)
        return secret


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path / "models" / "keys.json")


@pytest.fixture
def secret(keys: Keys) -> str:
    return keys.create()


@pytest.fixture
async def closed(run_gateway: RunGateway, secret: str) -> AsyncIterator[Running]:
    """A gateway that needs keys; `secret` is one of them."""
    async with run_gateway() as running:
        yield running


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


async def test_every_route_but_the_root_needs_a_key(closed: Running) -> None:
    routes = [route for route in closed.app.router.routes if isinstance(route, RawRoute)]
    assert len(routes) > 30
    for route in routes:
        path = route.path.partition("{")[0] + ("x" if "{" in route.path else "")
        for method in route.handlers:
            reply = await closed.client.request(method, path)
            assert reply.status_code == (200 if path == "/" else 401), (method, path)
            if path != "/":
                assert reply.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("path", ["/nope", "/api/tags/", "/v1/nope"])
async def test_without_a_key_nobody_learns_which_routes_exist(closed: Running, path: str) -> None:
    assert (await closed.get(path)).status_code == 401
    assert (await closed.post("/")).status_code == 401


@pytest.mark.parametrize(
    "sent",
    [
        {"authorization": "Bearer KEY"},
        {"authorization": "bearer  KEY"},
        {"x-api-key": "KEY"},
        {"authorization": "Bearer ollama", "x-api-key": "KEY"},
        {"authorization": "Basic eDp5", "x-api-key": "KEY"},
    ],
    ids=str,
)
async def test_a_key_opens_the_server_in_each_header_that_clients_use(
    closed: Running, secret: str, sent: dict[str, str]
) -> None:
    headers = {name: value.replace("KEY", secret) for name, value in sent.items()}
    assert (await closed.get("/api/tags", headers=headers)).status_code == 200


@pytest.mark.parametrize(
    "sent",
    [
        {},
        {"authorization": "KEY"},
        {"authorization": "Basic KEY"},
        {"authorization": "Bearer KEYx"},
        {"authorization": "Bearer KEY KEY"},
        {"authorization": "Bearer " + "x" * 60_000},
        {"authorization": "Bearer"},
        {"x-api-key": ""},
        {"cookie": "KEY"},
    ],
    ids=lambda sent: str(sent)[:40],
)
async def test_nothing_else_opens_it(closed: Running, secret: str, sent: dict[str, str]) -> None:
    headers = {name: value.replace("KEY", secret) for name, value in sent.items()}
    assert (await closed.get("/api/tags", headers=headers)).status_code == 401


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions", "/v1/messages"])
async def test_a_refusal_has_the_format_of_the_api(closed: Running, path: str) -> None:
    said = (await closed.post(path, CHAT)).json()
    if path.startswith("/api"):
        assert list(said) == ["error"]
        assert said["error"].startswith("unauthorized: ")
    elif path == "/v1/messages":
        assert (said["type"], said["error"]["type"]) == ("error", "authentication_error")
    else:
        assert (said["error"]["type"], said["error"]["code"]) == ("authentication_error", "invalid_api_key")


async def test_a_preflight_needs_no_key_and_lets_keys_through(closed: Running) -> None:
    headers = {"origin": "http://localhost:3000", "access-control-request-method": "POST"}
    reply = await closed.client.request("OPTIONS", "/api/chat", headers=headers)
    assert reply.status_code == 204
    allowed = reply.headers["access-control-allow-headers"].lower()
    assert {"authorization", "x-api-key"} <= set(allowed.split(","))


async def test_a_web_page_can_read_why_it_was_refused(closed: Running) -> None:
    reply = await closed.get("/api/tags", headers={"origin": "http://localhost:3000"})
    assert (reply.status_code, reply.headers["access-control-allow-origin"]) == (401, "http://localhost:3000")


async def test_a_key_works_soon_after_it_is_created_and_not_after_it_is_revoked(gateway: Running, keys: Keys) -> None:
    assert (await gateway.get("/api/tags")).status_code == 200
    first = keys.create("first")
    await until(gateway, {}, 401)
    assert (await gateway.get("/api/tags", headers=bearer(first))).status_code == 200
    second = keys.create("second")
    await until(gateway, bearer(second), 200)
    keys.file.remove(["first", "second"])
    await until(gateway, bearer(first), 401)
    assert (await gateway.get("/api/tags", headers=bearer(second))).status_code == 401


async def until(gateway: Running, headers: dict[str, str], status: int) -> None:
    """Return when the server answers with this status."""

    async def ask() -> None:
        while (await gateway.get("/api/tags", headers=headers)).status_code != status:
            gateway.app.adopt(gateway.settings)  # as SIGHUP does; without it, the file is looked at once a second

    await within(ask())


@pytest.mark.parametrize("text", [None, "{"], ids=["missing", "invalid"])
async def test_a_file_that_goes_wrong_leaves_the_server_closed_to_others_and_open_to_its_keys(
    closed: Running, keys: Keys, secret: str, text: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    keys.file.path.unlink()
    if text is not None:
        keys.file.path.write_text(text)
    closed.app.adopt(closed.settings)
    assert (await closed.get("/api/tags")).status_code == 401
    assert (await closed.get("/api/tags", headers=bearer(secret))).status_code == 200
    assert "kept the API keys that were read before" in caplog.text


async def test_a_server_does_not_start_with_an_invalid_file(run_gateway: RunGateway, keys: Keys) -> None:
    keys.file.path.parent.mkdir()
    keys.file.path.write_text("{")
    with pytest.raises(KeysError):
        async with run_gateway():
            pass


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions"])
async def test_a_secret_reaches_neither_worker_nor_log(
    closed: Running, secret: str, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        headers = {**bearer(secret), "cookie": "session=hidden", "x-kept": "yes"}
        sent = closed.send("POST", path, json=CHAT, headers=headers)
        exchange = await (await closed.worker()).next_exchange()
        assert secret.encode() not in exchange.body
        if path.startswith("/v1"):
            assert exchange.headers["x-kept"] == "yes"
            assert secret not in str(exchange.headers)
            assert "hidden" not in str(exchange.headers)
        exchange.reply(b"{}")
        assert (await sent).status_code == 200
        await closed.get("/api/tags", headers=bearer(secret + "x"))
    assert secret not in caplog.text
    assert "its key is unknown" in caplog.text


OTHER = "other:7b"


@pytest.fixture
async def shared(run_gateway: RunGateway, keys: Keys, tmp_path: Path) -> AsyncIterator[Running]:
    """A gateway with two models."""
    keys.create("anybody")
    async with run_gateway() as running:
        running.store.put(make_manifest(OTHER, write_snapshot(tmp_path / "other")))
        yield running


async def test_a_key_sees_only_the_models_that_it_may_use(run_gateway: RunGateway, keys: Keys, shared: Running) -> None:
    all_of_them, one = bearer(keys.create("all")), bearer(keys.create("one", models=("other*",)))
    shared.app.adopt(shared.settings)
    for headers, names in ((all_of_them, {MODEL, OTHER}), (one, {OTHER})):
        tags = (await shared.get("/api/tags", headers=headers)).json()
        assert {model["name"] for model in tags["models"]} == names
        listed = (await shared.get("/v1/models", headers=headers)).json()
        assert {model["id"] for model in listed["data"]} == names


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/chat"),
        ("POST", "/api/generate"),
        ("POST", "/api/embed"),
        ("POST", "/api/embeddings"),
        ("POST", "/api/show"),
        ("GET", f"/v1/models/{MODEL}"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("POST", "/v1/embeddings"),
        ("POST", "/v1/responses"),
        ("POST", "/v1/messages"),
        ("POST", "/tokenize"),
    ],
)
@pytest.mark.parametrize("model", [MODEL, "missing"])
async def test_a_model_that_a_key_may_not_use_is_forbidden_whether_or_not_it_is_stored(
    shared: Running, keys: Keys, method: str, path: str, model: str
) -> None:
    headers = bearer(keys.create("one", models=("other*",)))
    shared.app.adopt(shared.settings)
    body = {**CHAT, "model": model, "input": "hi", "prompt": "hi", "max_tokens": 1}
    path = path.replace(MODEL, model)
    reply = await shared.client.request(method, path, headers=headers, json=body)
    assert reply.status_code == 403, reply.text
    assert "this key does not allow the model" in reply.text


MANAGEMENT = [
    ("POST", "/api/pull"),
    ("POST", "/api/push"),
    ("POST", "/api/create"),
    ("POST", "/api/copy"),
    ("DELETE", "/api/delete"),
    ("POST", "/api/blobs/sha256:" + "0" * 64),
    ("HEAD", "/api/blobs/sha256:" + "0" * 64),
]


@pytest.mark.parametrize(("method", "path"), MANAGEMENT)
@pytest.mark.parametrize(
    ("management", "rights", "is_allowed"),
    [
        ("all", {}, True),
        ("all", {"models": ("a*",)}, False),
        ("all", {"models": ("a*",), "is_admin": True}, True),
        ("admin", {}, False),
        ("admin", {"is_admin": True}, True),
        ("off", {"is_admin": True}, False),
        ("all", None, True),
        ("admin", None, False),
        ("off", None, False),
    ],
)
async def test_changes_to_the_store_need_the_right(
    *,
    run_gateway: RunGateway,
    keys: Keys,
    method: str,
    path: str,
    management: str,
    rights: dict[str, Any] | None,
    is_allowed: bool,
) -> None:
    headers = {} if rights is None else bearer(keys.create(**rights))
    async with run_gateway(management=management) as gateway:
        reply = await gateway.client.request(method, path, headers=headers)
        assert (reply.status_code != 403) is is_allowed


async def test_the_audit_log_names_key_client_route_model_and_status(
    run_gateway: RunGateway, keys: Keys, tmp_path: Path
) -> None:
    secret, path = keys.create("alice"), tmp_path / "log" / "audit.jsonl"
    async with run_gateway(audit_log=path) as gateway:
        await gateway.client.request("DELETE", "/api/delete", headers=bearer(secret), json={"model": MODEL})
        await gateway.client.request("DELETE", "/api/delete", headers=bearer(secret), json={"model": MODEL})
        await gateway.get("/api/tags", headers=bearer("x" + secret))
        await gateway.get("/api/tags", headers=bearer(secret))
    text = path.read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [(line["key"], line["path"], line["model"], line["status"]) for line in lines] == [
        ("alice", "/api/delete", MODEL, 200),
        ("alice", "/api/delete", MODEL, 404),
        ("", "/api/tags", "", 401),
    ]
    assert {line["client"] for line in lines} == {"127.0.0.1"}
    assert lines[2]["reason"] == "its key is unknown"
    assert secret not in text
    assert path.stat().st_mode & 0o777 == 0o600


async def test_without_a_file_the_audit_log_is_in_the_servers_log(
    gateway: Running, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        await gateway.client.request("DELETE", "/api/delete", json={"model": "a"})
    assert "audit: no key (127.0.0.1) DELETE /api/delete a:latest: 404" in caplog.text


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ":11434"])
def test_an_address_that_others_reach_needs_keys_or_consent(tmp_path: Path, keys: Keys, host: str) -> None:
    def settings(**changes: Any) -> Settings:
        return Settings.from_environment({}, models=tmp_path / "models", host=host, **changes)

    if settings().address.is_loopback:
        assert host == ":11434"  # Ollama's way to write 127.0.0.1
        require_keys(settings())
        return
    with pytest.raises(SettingsError, match=r"vllama key create NAME.*--insecure"):
        require_keys(settings())
    require_keys(settings(insecure=True))
    keys.create()
    require_keys(settings())


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_needs_none(tmp_path: Path, host: str) -> None:
    require_keys(Settings.from_environment({}, models=tmp_path / "models", host=host))
