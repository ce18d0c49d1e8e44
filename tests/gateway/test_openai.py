"""`/v1` through real HTTP: what a worker is asked, and what of its answers reaches the client (contract §5)."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from typing import Any

import pytest
import zstandard
from fake_worker import ChannelExchange, FakeWorker, HttpExchange, within
from tiny_snapshot import write_snapshot

from vllama.gateway.bodies import LARGEST_UNPACKED
from vllama.names import ModelName
from vllama.protocol.model_header import ModelHeader
from vllama.protocol.paths import PROMPT
from vllama.store.manifest import ChatMessage, Manifest

from .conftest import MODEL, Running

pytestmark = pytest.mark.anyio

CHAT, COMPLETIONS, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
HI = [{"role": "user", "content": "hi"}]
ASKED: dict[str, dict[str, Any]] = {
    CHAT: {"model": MODEL, "messages": HI},
    COMPLETIONS: {"model": MODEL, "prompt": "hi", "raw": True},
    RESPONSES: {"model": MODEL, "input": "hi"},
    MESSAGES: {"model": MODEL, "messages": HI, "max_tokens": 9},
    "/v1/messages/count_tokens": {"model": MODEL, "messages": HI},
    "/tokenize": {"model": MODEL, "prompt": "hi"},
    "/detokenize": {"model": MODEL, "tokens": [1]},
}


def spoken(exchange: HttpExchange) -> ModelHeader:
    headers = [(name.lower().encode(), value.encode()) for name, value in exchange.headers.items()]
    found = ModelHeader.from_headers(headers)
    assert found is not None
    return found


async def asked(gateway: Running, path: str, **fields: Any) -> tuple[Any, HttpExchange]:
    """Send a request, and return it with what the worker got."""
    worker = gateway.launcher.workers[-1] if gateway.launcher.workers else await gateway.load()
    return gateway.send("POST", path, json={**ASKED[path], **fields}), await worker.next_exchange()


@pytest.mark.parametrize("path", ASKED)
async def test_vllm_s_reply_is_relayed_byte_for_byte(gateway: Running, path: str) -> None:
    sent, exchange = await asked(gateway, path)
    assert exchange.path == path
    exchange.reply(b'{"b": 1,  "a":2}')
    assert (await sent).content == b'{"b": 1,  "a":2}'


@pytest.mark.parametrize("name", ["SmolLM2:135M", "registry.ollama.ai/library/smollm2:135m"])
async def test_the_worker_is_told_how_the_client_spells_the_name(gateway: Running, name: str) -> None:
    sent, exchange = await asked(gateway, CHAT, model=name)
    assert spoken(exchange).name == name
    exchange.reply(b"{}")
    await sent


async def test_a_client_cannot_speak_for_the_gateway(gateway: Running) -> None:
    worker = await gateway.load()
    evil = ModelHeader("x", "{{ evil }}").to_header()
    sent = gateway.send("POST", CHAT, json=ASKED[CHAT], headers={evil[0].decode(): evil[1].decode()})
    exchange = await worker.next_exchange()
    assert spoken(exchange) == ModelHeader(MODEL)
    assert [name.lower() for name in exchange.headers].count("x-vllama-model") == 1
    exchange.reply(b"{}")
    await sent


@pytest.fixture
def derived(gateway: Running, manifest: Manifest) -> str:
    """A model with a part of its own, over the same files."""
    gateway.store.put(
        replace(
            manifest,
            name=ModelName.parse("derived"),
            system="Be brief.",
            messages=(ChatMessage("user", "a"), ChatMessage("assistant", "b")),
            parameters={"temperature": 0.5, "repeat_penalty": 1.5, "stop": ["END"], "num_predict": 7},
            template="{{ messages }}",
        )
    )
    return "derived"


async def test_a_derived_model_brings_its_part_to_chats(gateway: Running, derived: str) -> None:
    sent = gateway.send("POST", CHAT, json={"model": derived, "messages": HI, "temperature": 1})
    exchange = await (await gateway.worker()).next_exchange()
    assert exchange.json == {
        "model": derived,
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
            *HI,
        ],
        "temperature": 1,
        "repetition_penalty": 1.5,
        "stop": ["END"],
        "max_tokens": 7,
    }
    assert spoken(exchange) == ModelHeader("derived", "{{ messages }}")
    exchange.reply(b"{}")
    await sent


async def test_what_anthropic_s_api_has_no_field_for_goes_beside_it(gateway: Running, derived: str) -> None:
    sent = gateway.send("POST", MESSAGES, json={"model": derived, "messages": HI, "max_tokens": 3})
    exchange = await (await gateway.worker()).next_exchange()
    assert exchange.json["temperature"] == 0.5
    assert exchange.json["stop_sequences"] == ["END"]
    assert "repetition_penalty" not in exchange.json
    assert spoken(exchange).sampling == {"repetition_penalty": 1.5}
    exchange.reply(b"{}")
    await sent


async def test_a_completion_s_prompt_is_that_of_a_native_request(gateway: Running, derived: str) -> None:
    sent = gateway.send("POST", COMPLETIONS, json={"model": derived, "prompt": "hi"})
    worker = await gateway.worker()
    first = await worker.next_exchange()
    assert first.path == PROMPT
    assert first.json == {"model": derived, "prompt": "hi", "suffix": "", "think": False}
    assert (first.profile.system, first.profile.chat_template) == ("Be brief.", "{{ messages }}")
    first.reply(b"[5,6]")
    second = await worker.next_exchange()
    assert (second.path, second.json["prompt"], second.json["temperature"]) == (COMPLETIONS, [5, 6], 0.5)
    second.reply(b'{"object":"text_completion"}')
    assert (await sent).content == b'{"object":"text_completion"}'


async def test_a_prompt_that_cannot_be_made_is_refused(gateway: Running) -> None:
    worker = await gateway.load()
    sent = gateway.send("POST", COMPLETIONS, json={"model": MODEL, "prompt": "hi"})
    (await worker.next_exchange()).reply(b'{"error":"no such role"}', status=400)
    reply = await sent
    assert (reply.status_code, reply.json()["error"]["message"]) == (400, "no such role")


@pytest.mark.parametrize(
    ("said", "status", "message", "param"),
    [
        (b'{"error":{"message":"m","type":"BadRequestError","param":"top_p","code":400}}', 400, "m", "top_p"),
        (b'{"error":{"message":"m","type":"NotImplementedError","param":null,"code":501}}', 501, "m", None),
        (b'{"type":"error","error":{"type":"BadRequestError","message":"m"}}', 422, "m", None),
        (b'{"error":"m"}', 400, "m", None),
        (b'{"detail":"Gone"}', 404, "Gone", None),
        (b'{"message":"m"}', 400, "m", None),
        (b"[1]", 400, "[1]", None),
        (b"plain words\n", 400, "plain words", None),
        (b"", 500, "the model gave no reason", None),
    ],
)
@pytest.mark.parametrize("path", [CHAT, MESSAGES])
async def test_whatever_vllm_refuses_is_told_in_the_api_s_own_shape(
    gateway: Running, path: str, said: bytes, status: int, message: str, param: str | None
) -> None:
    sent, exchange = await asked(gateway, path)
    exchange.reply(said, status=status, content_type="text/html")
    reply = await sent
    expected = {422: 400, 501: 400}.get(status, status)
    kind = {400: "invalid_request_error", 404: "not_found_error"}.get(expected, "api_error")
    assert (reply.status_code, reply.headers["content-type"]) == (expected, "application/json; charset=utf-8")
    answer = reply.json()
    if path == MESSAGES:
        assert answer.pop("request_id").startswith("req_")
        assert answer == {"type": "error", "error": {"type": kind, "message": message}}
    else:
        assert answer == {"error": {"message": message, "type": kind, "param": param, "code": None}}


TOO_LONG = "This model's maximum context length is 2048 tokens. However, "
OVERFLOWS = (
    ("your prompt contains 5021 input tokens, which exceeds this limit even without any output tokens.", 5021),
    ("your prompt contains at least 2049 input tokens, which exceeds this limit.", 2049),
    ("your prompt contains 400000 characters (more than 40960 characters, which is the upper bound", 20000),
)


@pytest.mark.parametrize(("said", "tokens"), OVERFLOWS)
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, RESPONSES, MESSAGES])
async def test_a_prompt_that_is_too_long_is_told_so_that_clients_shorten_it(
    gateway: Running, path: str, said: str, tokens: int
) -> None:
    """Claude Code and others read both numbers; OpenAI's clients read the code."""
    sent, exchange = await asked(gateway, path)
    error = {"message": TOO_LONG + said, "type": "BadRequestError", "param": "input_tokens", "code": 400}
    exchange.reply(json.dumps({"error": error}).encode(), status=400)
    reply = await sent
    assert reply.status_code == 400
    told = reply.json()["error"]
    assert told["type"] == "invalid_request_error"
    if path == MESSAGES:
        assert told["message"] == f"prompt is too long: {tokens} tokens > 2048 maximum"
    else:
        assert (told["code"], told["message"]) == ("context_length_exceeded", TOO_LONG + said)


async def test_a_route_that_vllm_has_not_for_this_model_is_a_bad_request(gateway: Running) -> None:
    sent, exchange = await asked(gateway, CHAT)
    exchange.reply(b'{"error":{"message":"Not Found","type":"Not Found","code":404}}', status=404)
    reply = await sent
    assert reply.status_code == 400
    assert reply.json()["error"]["message"] == "the model does not support this API"


async def test_a_refusal_leaves_the_connection_to_the_next_request(gateway: Running) -> None:
    sent, exchange = await asked(gateway, CHAT)
    exchange.reply(b'{"error":{"message":"m"}}', status=400)
    await sent
    sent, again = await asked(gateway, CHAT)
    assert again.connection is exchange.connection
    again.reply(b"{}")
    assert (await sent).status_code == 200


DEAD = b"EngineCore encountered an issue. See stack trace (above) for the root cause."


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, MESSAGES])
async def test_a_worker_whose_engine_is_dead_is_replaced(gateway: Running, path: str) -> None:
    """vLLM's API server goes on for some seconds, and refuses everything."""
    worker: FakeWorker = await gateway.load()
    sent, exchange = await asked(gateway, path)
    exchange.reply(b'{"error":{"message":"%b","type":"InternalServerError"}}' % DEAD, status=500)
    reply = await sent
    assert reply.status_code == 500
    assert "model runner has unexpectedly stopped" in reply.json()["error"]["message"]
    await within(worker.exited)
    await gateway.worker()
    again = gateway.send("POST", path, json=ASKED[path])
    (await (await gateway.worker()).next_exchange()).reply(b"{}")
    assert (await again).status_code == 200


async def test_any_other_failure_of_a_worker_does_not_replace_it(gateway: Running) -> None:
    sent, exchange = await asked(gateway, CHAT)
    exchange.reply(b'{"error":{"message":"out of luck"}}', status=500)
    assert (await sent).json()["error"]["type"] == "api_error"
    assert len(gateway.launcher.workers) == 1
    assert not gateway.launcher.workers[0].exited.done()


# --- bodies


@pytest.mark.parametrize("encoding", ["zstd", "ZSTD"])
async def test_a_body_may_be_packed_with_zstd(gateway: Running, encoding: str) -> None:
    worker = await gateway.load()
    packed = zstandard.compress(json.dumps(ASKED[CHAT]).encode())
    sent = gateway.send("POST", CHAT, content=packed, headers={"content-encoding": encoding})
    exchange = await worker.next_exchange()
    assert exchange.json == ASKED[CHAT]
    assert "content-encoding" not in {name.lower() for name in exchange.headers}
    exchange.reply(b"{}")
    assert (await sent).status_code == 200


@pytest.mark.parametrize("body", [b"{}", b"", zstandard.compress(b"x" * 1000)[:-5] + b"broken", b"\x28\xb5\x2f\xfd"])
async def test_a_body_that_is_no_zstd_is_refused(gateway: Running, body: bytes) -> None:
    reply = await gateway.post(CHAT, content=body, headers={"content-encoding": "zstd"})
    assert reply.status_code == 400
    assert reply.json()["error"]["message"].startswith(("the body is not valid zstd", "EOF"))


async def test_a_small_body_that_unpacks_to_gigabytes_does_no_harm(gateway: Running) -> None:
    packer = zstandard.ZstdCompressor().compressobj()
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(1024)) + packer.flush()
    assert len(bomb) < LARGEST_UNPACKED
    tracemalloc.start()
    reply = await gateway.post(CHAT, content=bomb, headers={"content-encoding": "zstd"})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (reply.status_code, reply.json()["error"]["message"]) == (400, "http: request body too large")
    assert peak < 4 * LARGEST_UNPACKED


async def test_speech_goes_to_vllm_as_the_form_that_came(gateway: Running) -> None:
    worker = await gateway.load()
    files = {"file": ("a.wav", b"RIFF" + bytes(2_000_000))}
    sent = gateway.send("POST", "/v1/audio/transcriptions", data={"model": MODEL, "language": "en"}, files=files)
    exchange = await worker.next_exchange()
    assert exchange.path == "/v1/audio/transcriptions"
    assert exchange.headers["content-type"].startswith("multipart/form-data; boundary=")
    assert len(exchange.body) > 2_000_000
    exchange.reply(b'{"text":"hi"}')
    assert (await sent).json() == {"text": "hi"}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"json": {"model": MODEL}}, "request Content-Type isn't multipart/form-data"),
        ({"files": {"file": b"x"}}, "model is required"),
        ({"files": {"model": ("m", b"x")}}, "model is required"),
        ({"content": b"--x", "headers": {"content-type": "multipart/form-data"}}, "cannot read the form"),
        (
            {"content": b"--b\r\nx\r\n", "headers": {"content-type": "multipart/form-data; boundary=b"}},
            "cannot read the form",
        ),
        ({"data": {"model": MODEL}, "files": {"file": bytes(27 << 20)}}, "http: request body too large"),
    ],
)
async def test_a_form_that_cannot_be_read_is_refused(gateway: Running, arguments: dict[str, Any], text: str) -> None:
    reply = await gateway.client.post("/v1/audio/transcriptions", **arguments)
    assert reply.status_code == 400
    assert reply.json()["error"]["message"].startswith(text)


async def test_a_body_nested_deeper_than_json_is_written_is_refused(gateway: Running) -> None:
    deep = b'{"model":"smollm2:135m","messages":[{"role":"user","content":"hi"}],"x":' + b"[" * 900 + b"]" * 900 + b"}"
    reply = await gateway.post(CHAT, content=deep)
    assert reply.status_code == 400
    assert reply.json()["error"]["message"].startswith("cannot forward the request")


# --- which paths there are


@pytest.mark.parametrize(
    "path",
    ["/v1/load_lora_adapter", "/v1/chat/completions/render", "/sleep", "/collective_rpc", "/invocations", "/v1/nope",
     "/pooling", "/v1/chat/completions/batch", "/reset_prefix_cache", "/metrics"],
)  # fmt: skip
async def test_what_is_for_operators_and_developers_of_vllm_is_not_there(gateway: Running, path: str) -> None:
    worker = await gateway.load()
    reply = await gateway.post(path, ASKED[CHAT])
    assert (reply.status_code, reply.text) == (404, "404 page not found")
    assert worker.exchanges.empty()


@pytest.mark.parametrize("path", [*ASKED, "/v1/embeddings", "/rerank", "/v1/audio/transcriptions"])
async def test_there_is_only_post(gateway: Running, path: str) -> None:
    reply = await gateway.get(path)
    assert (reply.status_code, reply.text, reply.headers["allow"]) == (405, "405 method not allowed", "POST")


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank", "/score", "/v1/score", "/classify"])
async def test_a_model_that_writes_text_neither_ranks_nor_classifies(gateway: Running, path: str) -> None:
    reply = await gateway.post(path, {"model": MODEL, "query": "q", "documents": ["d"]})
    verb = "classify" if path == "/classify" else "rerank"
    assert reply.status_code == 400
    assert reply.json()["error"] == {
        "message": f'"{MODEL}" does not support {verb}',
        "type": "invalid_request_error",
        "param": None,
        "code": None,
    }
    assert gateway.launcher.workers == []


CROSS_ENCODER = {"architectures": ["BertForSequenceClassification"], "model_type": "bert", "id2label": {"0": "LABEL_0"}}


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank", "/score", "/v1/score", "/classify"])
async def test_a_cross_encoder_does_both(gateway: Running, manifest: Manifest, tmp_path: Any, path: str) -> None:
    snapshot = write_snapshot(tmp_path / "ranker", config=CROSS_ENCODER)
    gateway.store.put(replace(manifest, name=ModelName.parse("ranker"), snapshot=snapshot))
    asked = {"model": "ranker", "query": "q", "documents": ["d"], "top_n": 1}
    sent = gateway.send("POST", path, json=asked)
    exchange = await (await gateway.worker()).next_exchange()
    assert (exchange.path, exchange.json) == (path, asked)
    exchange.reply(b'{"results":[]}')
    assert (await sent).content == b'{"results":[]}'
    tags = {item["name"]: item for item in (await gateway.get("/api/tags")).json()["models"]}
    assert tags["ranker:latest"]["capabilities"] == ["rerank"]


# --- decisions

SYSTEM_ONE = "/v1/systemone"
QWEN3 = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
REFUND = {"refund": {"type": "noul", "instructions": "Is a refund asked for?", "criteria": None}}


@pytest.fixture
def decider(gateway: Running, manifest: Manifest, tmp_path: Any) -> str:
    """The name of a model whose architecture vLLM lets decide, with a system message."""
    snapshot = write_snapshot(tmp_path / "decider", config=QWEN3)
    gateway.store.put(replace(manifest, name=ModelName.parse("decider"), snapshot=snapshot, system="Be strict."))
    return "decider"


@pytest.mark.parametrize(("stated", "instructions"), [({}, "Be strict."), ({"instructions": "Be mild."}, "Be mild.")])
async def test_a_decision_is_vllm_s_without_keep_alive_which_the_lease_has(
    gateway: Running, decider: str, stated: dict[str, Any], instructions: str
) -> None:
    asked = {"model": "Decider", "state": {"text": "Money back!"}, "questions": REFUND, **stated}
    sent = gateway.send("POST", SYSTEM_ONE, json={**asked, "keep_alive": -1})
    exchange = await (await gateway.worker()).next_exchange()
    assert (exchange.path, exchange.json) == (SYSTEM_ONE, {**asked, "instructions": instructions})
    assert spoken(exchange).name == "Decider"
    exchange.reply(b'{"answers":{}}')
    assert (await sent).content == b'{"answers":{}}'
    assert [view.expires_at for view in gateway.scheduler.residents()] == [None]
    tags = {item["name"]: item for item in (await gateway.get("/api/tags")).json()["models"]}
    assert "decision" in tags[f"{decider}:latest"]["capabilities"]


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        ({"model": MODEL, "state": "x", "questions": REFUND}, 400, f'model "{MODEL}" does not support systemone'),
        ({"model": "nope", "state": "x", "questions": REFUND}, 404, "model 'nope' not found"),
        ({"state": "x", "questions": REFUND}, 400, "model is required"),
        ({"model": " ", "state": "x", "questions": REFUND}, 400, "model is required"),
        ({"model": MODEL, "keep_alive": "soon"}, 400, 'time: invalid duration "soon"'),
    ],
)
async def test_a_decision_is_refused_in_ollama_s_own_format_and_nothing_is_loaded(
    gateway: Running, body: dict[str, Any], status: int, error: str
) -> None:
    reply = await gateway.post(SYSTEM_ONE, body)
    assert (reply.status_code, reply.json()) == (status, {"error": error})
    assert gateway.launcher.workers == []


async def test_the_worker_s_refusal_of_a_decision_has_ollama_s_format_too(gateway: Running, decider: str) -> None:
    sent = gateway.send("POST", SYSTEM_ONE, json={"model": decider, "state": "x", "questions": {}})
    exchange = await (await gateway.worker()).next_exchange()
    exchange.reply(b'{"error":{"message":"questions: needs at least one question","code":400}}', status=400)
    reply = await sent
    assert (reply.status_code, reply.json()) == (400, {"error": "questions: needs at least one question"})


# --- embeddings


async def test_embeddings_come_from_our_own_route(gateway: Running, manifest: Manifest, tmp_path: Any) -> None:
    bert = {"architectures": ["BertModel"], "model_type": "bert"}
    snapshot = write_snapshot(tmp_path / "embedder", config=bert)
    gateway.store.put(replace(manifest, name=ModelName.parse("embedder"), snapshot=snapshot))
    error = {"type": "invalid_request_error", "param": None, "code": None}
    body = b'{"model":"embedder","input":["a","b"],"encoding_format":"base64","dimensions":4}'
    for status, answer, expected in (
        (200, b'{"object":"list"}', {"object": "list"}),
        (400, b'{"error":"too long"}', {"error": {**error, "message": "too long"}}),
    ):
        sent = gateway.send("POST", "/v1/embeddings", content=body)
        worker = gateway.launcher.workers[-1] if gateway.launcher.workers else await gateway.worker()
        exchange = await worker.next_exchange()
        assert (exchange.path, exchange.body) == ("/v1/embeddings", body)
        exchange.reply(answer, status=status)
        reply = await sent
        assert (reply.status_code, reply.json()) == (status, expected)


async def test_a_model_that_writes_text_gets_a_second_worker_for_its_embeddings(gateway: Running) -> None:
    sent = gateway.send("POST", "/v1/embeddings", json={"model": MODEL, "input": "x"})
    worker = await gateway.worker()
    exchange = await worker.next_exchange()
    assert isinstance(exchange, ChannelExchange)
    assert (worker.manifest.embeds, exchange.profile.capabilities) == (True, ("embedding",))
    exchange.reply(b'{"object":"list"}')
    assert (await sent).json() == {"object": "list"}
