"""Load and unload over HTTP, and what a request meets that has to wait for a model (contract §2.1, §2.2)."""

from __future__ import annotations

import asyncio
import re
from base64 import b64encode
from dataclasses import replace
from typing import Any

import pytest
from fake_worker import ChannelExchange, within

from vllama.errors import LoadFailed
from vllama.names import ModelName
from vllama.ollama.status import JSON
from vllama.protocol import checked_record
from vllama.protocol.frames import Form
from vllama.protocol.profile import Profile
from vllama.scheduler.serving import ServedModel
from vllama.store.manifest import ChatMessage, Manifest
from vllama.store.parsers import ParserChoice

from .conftest import MODEL, RunGateway, Running

pytestmark = pytest.mark.anyio

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z"
GENERATE, CHAT = "/api/generate", "/api/chat"


@pytest.mark.parametrize(
    ("path", "body", "text"),
    [
        (GENERATE, {}, '"response":""'),
        (GENERATE, {"prompt": ""}, '"response":""'),
        (GENERATE, {"prompt": None, "stream": True}, '"response":""'),
        (GENERATE, {"prompt": "", "system": "s", "suffix": ""}, '"response":""'),
        (CHAT, {}, '"message":{"role":"assistant","content":""}'),
        (CHAT, {"messages": []}, '"message":{"role":"assistant","content":""}'),
        (CHAT, {"messages": None, "stream": False}, '"message":{"role":"assistant","content":""}'),
    ],
)
async def test_an_empty_request_loads_the_model(gateway: Running, path: str, body: dict[str, Any], text: str) -> None:
    reply = await gateway.post(path, {"model": MODEL, **body})
    assert reply.headers["content-type"] == JSON
    expected = f'{{"model":"{MODEL}","created_at":"{TIME}",{re.escape(text)},"done":true,"done_reason":"load"}}'
    assert re.fullmatch(expected, reply.text)
    assert len(gateway.launcher.workers) == 1
    assert gateway.launcher.workers[0].exchanges.empty()


@pytest.mark.parametrize("keep_alive", [0, 0.0, "0", "0s", "0m"], ids=repr)
@pytest.mark.parametrize(("path", "empty"), [(GENERATE, {"prompt": ""}), (CHAT, {"messages": []})])
async def test_an_empty_request_with_keep_alive_0_unloads_the_model(
    gateway: Running, path: str, empty: dict[str, Any], keep_alive: object
) -> None:
    worker = await gateway.load()
    reply = await gateway.post(path, {"model": MODEL, "keep_alive": keep_alive, **empty})
    assert reply.json()["done_reason"] == "unload"
    assert (await gateway.get("/api/ps")).json() == {"models": []}
    await within(asyncio.shield(worker.exited))


async def test_an_unload_of_a_model_that_is_not_loaded_says_unload_too(gateway: Running) -> None:
    reply = await gateway.post(GENERATE, {"model": MODEL, "keep_alive": 0})
    assert reply.json()["done_reason"] == "unload"
    assert gateway.launcher.workers == []


async def test_an_unload_does_not_interrupt_an_answer(gateway: Running) -> None:
    worker = await gateway.load()
    sent = gateway.send("POST", GENERATE, json={"model": MODEL, "prompt": "hi"})
    exchange = await worker.next_exchange()
    await gateway.post(GENERATE, {"model": MODEL, "keep_alive": 0})
    assert not worker.exited.done()
    exchange.reply(b"{}")
    assert (await sent).status_code == 200
    await within(asyncio.shield(worker.exited))


async def test_keep_alive_0_with_a_prompt_answers_and_then_unloads(gateway: Running) -> None:
    sent = gateway.send("POST", GENERATE, json={"model": MODEL, "prompt": "hi", "keep_alive": 0})
    worker = await gateway.worker()
    (await worker.next_exchange()).reply(b'{"done":true}')
    assert (await sent).json() == {"done": True}
    await within(asyncio.shield(worker.exited))
    assert (await gateway.get("/api/ps")).json() == {"models": []}


@pytest.mark.parametrize("asked", ["SmolLM2:135m", "registry.ollama.ai/library/smollm2:135M", "smollm2:135m "])
@pytest.mark.parametrize("keep_alive", [None, 0])
async def test_a_reply_echoes_the_request_s_spelling(gateway: Running, asked: str, keep_alive: object) -> None:
    for path in (GENERATE, CHAT):
        reply = await gateway.post(path, {"model": asked, "keep_alive": keep_alive})
        assert reply.json()["model"] == asked
    assert len(gateway.launcher.workers) <= 1


async def test_a_request_loads_the_model_that_it_needs(gateway: Running) -> None:
    sent = gateway.send("POST", CHAT, json={"model": MODEL, "messages": [{"role": "user", "content": "hi"}]})
    worker = await gateway.worker()
    (await worker.next_exchange()).reply(b'{"done":true}')
    assert (await sent).json() == {"done": True}


async def test_many_requests_share_one_load(gateway: Running) -> None:
    gateway.launcher.may_load.clear()
    sent = [
        gateway.send("POST", path, json={"model": MODEL, "prompt": "hi", "raw": True})
        for path in [GENERATE, "/v1/completions"] * 4
    ]
    worker = await gateway.worker()
    gateway.launcher.may_load.set()
    for _ in sent:
        (await worker.next_exchange()).reply(b"{}")
    assert [(await reply).status_code for reply in sent] == [200] * 8
    assert len(gateway.launcher.workers) == 1


@pytest.mark.parametrize("path", [GENERATE, CHAT])
async def test_a_failed_load_is_a_500_with_its_cause_and_the_next_request_tries_again(
    gateway: Running, path: str
) -> None:
    gateway.launcher.failure = LoadFailed("not enough memory for 135M parameters")
    reply = await gateway.post(path, {"model": MODEL})
    assert (reply.status_code, reply.json()) == (500, {"error": "not enough memory for 135M parameters"})
    gateway.launcher.failure = None
    assert (await gateway.post(path, {"model": MODEL})).json()["done_reason"] == "load"


@pytest.mark.parametrize("path", [GENERATE, "/v1/completions"])
async def test_a_load_that_fails_twice_is_a_503_that_says_why_and_for_how_long(gateway: Running, path: str) -> None:
    gateway.launcher.failure = LoadFailed("not enough memory for 135M parameters")
    for _ in range(2):
        assert (await gateway.post(path, {"model": MODEL, "prompt": "hi"})).status_code == 500
    gateway.launcher.failure = None
    reply = await gateway.post(path, {"model": MODEL, "prompt": "hi"})
    assert reply.status_code == 503
    assert 0 < int(reply.headers["retry-after"]) <= 5
    assert "failed 2 times in a row" in reply.text
    assert "not enough memory for 135M parameters" in reply.text
    assert len(gateway.launcher.workers) == 2


async def test_a_failed_load_under_v1_has_the_shape_of_openai(gateway: Running) -> None:
    gateway.launcher.failure = LoadFailed("not enough memory")
    reply = await gateway.post("/v1/completions", {"model": MODEL, "prompt": "hi"})
    assert reply.status_code == 500
    assert reply.json()["error"] == {"message": "not enough memory", "type": "api_error", "param": None, "code": None}


async def test_a_failed_load_has_its_status_for_a_stream_too(gateway: Running) -> None:
    gateway.launcher.failure = LoadFailed("not enough memory")
    reply = await gateway.post(CHAT, {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "stream": True})
    assert (reply.status_code, reply.headers["content-type"]) == (500, JSON)


@pytest.mark.parametrize("path", [GENERATE, CHAT, "/v1/chat/completions", "/v1/messages"])
async def test_a_full_queue_is_a_503_in_the_api_s_own_shape(run_gateway: RunGateway, path: str) -> None:
    async with run_gateway(max_queue=0) as gateway:
        gateway.launcher.may_load.clear()
        first = gateway.send("POST", GENERATE, json={"model": MODEL})
        await gateway.worker()
        asked = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1, "prompt": "hi"}
        reply = await gateway.post(path, asked)
        assert reply.status_code == 503
        error = reply.json()["error"]
        text = error if isinstance(error, str) else error["message"]
        assert text == "server busy, please try again.  maximum pending requests exceeded"
        gateway.launcher.may_load.set()
        await first


async def test_of_six_cold_requests_with_a_queue_of_one_two_are_answered(run_gateway: RunGateway) -> None:
    """As recorded with Ollama 0.24.0 and OLLAMA_MAX_QUEUE=1."""
    async with run_gateway(max_queue=1) as gateway:
        gateway.launcher.may_load.clear()
        sent = [gateway.send("POST", GENERATE, json={"model": MODEL, "prompt": "hi"}) for _ in range(6)]
        refused = 0
        while refused < 4:
            done, _ = await within(asyncio.wait(sent, return_when=asyncio.FIRST_COMPLETED))
            refused += len(done)
            sent = [reply for reply in sent if reply not in done]
            assert {reply.result().status_code for reply in done} == {503}
        gateway.launcher.may_load.set()
        worker = await gateway.worker()
        for _ in range(2):
            (await worker.next_exchange()).reply(b"{}")
        assert [(await reply).status_code for reply in sent] == [200, 200]


async def test_a_worker_gets_the_body_as_it_was_sent(gateway: Running) -> None:
    """Not parsed and written anew: unknown fields, key order, blanks and bytes after the object stay."""
    worker = await gateway.load()
    body = b' { "zebra" : 1, "PROMPT":"hi \\u00e9 \xc3\xa9", "model":"SmolLM2:135m"} trailing'
    sent = gateway.send("POST", GENERATE, content=body)
    exchange = await worker.next_exchange()
    assert (exchange.path, exchange.body) == (GENERATE, body)
    exchange.reply(b"{}")
    await sent


async def test_a_worker_learns_when_the_request_came(gateway: Running) -> None:
    """So that total_duration has the time in the gateway and in the queue (contract §1.2)."""
    gateway.launcher.may_load.clear()
    loop = asyncio.get_running_loop()
    before = loop.time()
    sent = gateway.send("POST", GENERATE, json={"model": MODEL, "prompt": "hi"})
    worker = await gateway.worker()
    after = loop.time()
    gateway.launcher.may_load.set()
    exchange = await worker.next_exchange()
    assert before - 0.01 <= exchange.received / 1e9 <= after + 0.01
    exchange.reply(b"{}")
    await sent


async def test_new_files_under_the_same_name_are_served_by_a_new_worker(gateway: Running) -> None:
    await gateway.load()
    (manifest,) = gateway.store.list()
    gateway.store.put(replace(manifest, engine_flags=("--seed", "1")))
    await gateway.load()
    assert [worker.exited.done() for worker in gateway.launcher.workers] == [True, False]


async def test_a_model_that_differs_only_in_what_is_said_of_it_shares_the_worker(gateway: Running) -> None:
    worker = await gateway.load()
    (manifest,) = gateway.store.list()
    mario = replace(manifest, name=ModelName.parse("mario"), system="You are Mario.", parameters={"temperature": 0.5})
    gateway.store.put(replace(mario, messages=(ChatMessage("user", "hi"),)))
    sent = gateway.send("POST", "/api/generate", json={"model": "mario", "prompt": "who?"})
    exchange = await worker.next_exchange()
    assert exchange.profile == Profile(
        full_name="registry.ollama.ai/library/mario:latest",
        capabilities=("completion",),
        parameters={"temperature": 0.5},
        system="You are Mario.",
        messages=(("user", "hi"),),
    )
    exchange.reply(b"{}")
    assert (await sent).status_code == 200
    assert len(gateway.launcher.workers) == 1
    (resident,) = (await gateway.get("/api/ps")).json()["models"]
    assert resident["name"] == "mario:latest"


async def test_unloading_one_of_the_models_that_share_a_worker_unloads_it(gateway: Running) -> None:
    worker = await gateway.load()
    (manifest,) = gateway.store.list()
    gateway.store.put(replace(manifest, name=ModelName.parse("mario"), system="You are Mario."))
    await gateway.post("/api/generate", {"model": "mario", "keep_alive": 0})
    await within(asyncio.shield(worker.exited))


async def test_a_parameter_of_the_wrong_type_in_the_model_is_an_error_before_any_load(gateway: Running) -> None:
    (manifest,) = gateway.store.list()
    gateway.store.put(replace(manifest, parameters={"temperature": "hot"}))
    refused = await gateway.post("/api/generate", {"model": manifest.name.display, "prompt": "hi"})
    assert (refused.status_code, refused.json()) == (400, {"error": 'option "temperature" must be of type float32'})
    assert gateway.launcher.workers == []


async def test_a_worker_that_is_ready_serves_the_files_that_it_has_read(gateway: Running, manifest: Manifest) -> None:
    worker = await gateway.load()
    (manifest.snapshot / "config.json").unlink()
    asked = asyncio.create_task(gateway.post(GENERATE, {"model": MODEL, "prompt": "hi"}))
    (await worker.next_exchange()).reply(b"{}")
    assert (await asked).status_code == 200

    await gateway.post(GENERATE, {"model": MODEL, "keep_alive": 0})
    await within(asyncio.shield(worker.exited))
    reply = await gateway.post(GENERATE, {"model": MODEL, "prompt": "hi"})
    assert (reply.status_code, len(gateway.launcher.workers)) == (500, 1)
    assert "config.json is missing" in reply.json()["error"]


SEES = ServedModel(("completion", "vision"), ParserChoice(), ParserChoice(), ())
PNG = b"\x89PNG\r\n\x1a\n and so on"


async def test_a_worker_is_told_that_a_body_is_checked_and_gets_it_as_it_came(gateway: Running) -> None:
    worker = await gateway.load()
    body = b' {"MODEL": "%b", "prompt": "hi" } ' % MODEL.encode()
    asked = asyncio.create_task(gateway.client.post(GENERATE, content=body))
    exchange = await worker.next_exchange()
    assert isinstance(exchange, ChannelExchange)
    assert (exchange.form, exchange.body) == (Form.CHECKED, body)
    exchange.reply(b"{}")
    await asked


async def test_images_are_decoded_once(gateway: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = await gateway.load()
    monkeypatch.setattr(gateway.launcher.serving, "served", lambda manifest, recheck: SEES)
    message = {"role": "user", "content": "What is this?", "images": [b64encode(PNG).decode()]}
    asked = asyncio.create_task(gateway.post(CHAT, {"model": MODEL, "messages": [message]}))
    exchange = await worker.next_exchange()
    assert isinstance(exchange, ChannelExchange)
    assert exchange.form is Form.RECORD
    (arrived,) = checked_record.decode_chat(exchange.body).messages
    assert (arrived.content, arrived.images) == ("What is this?", (PNG,))
    exchange.reply(b"{}")
    await asked
