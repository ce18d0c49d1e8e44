"""Whatever a client sends, to whatever route: an answer that Ollama could give, soon, and a server that goes on."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Generator
from typing import Any

import orjson
import pytest
from fake_worker import Exchange, FakeWorker, HttpExchange
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from odd_json import Raw, nested_values, scalar_values, text_of
from sampling import count

from vllama.errors import SourceUnavailable
from vllama.names import ModelName
from vllama.ollama.status import NDJSON
from vllama.settings import Settings
from vllama.store.manifest import Manifest
from vllama.store.model_store import ModelStore
from vllama.store.progress import Progress

from .conftest import MODEL, RunGateway, Running
from .raw_http import RawConnection

pytestmark = pytest.mark.anyio

NATIVE = (
    "/api/generate", "/api/chat", "/api/embed", "/api/embeddings", "/api/show", "/api/pull", "/api/push", "/api/copy",
    "/api/create", "/api/delete", "/api/me", "/api/signout", "/api/experimental/web_search",
    "/api/experimental/web_fetch", "/api/blobs/sha256-x",
)  # fmt: skip
_RICHEST = ("/api/generate", "/api/chat", "/api/create")
OPENAI = (
    "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/rerank", "/v1/score",
    "/classify", "/tokenize", "/detokenize", "/v1/audio/transcriptions",
)  # fmt: skip
ANTHROPIC = ("/v1/messages", "/v1/messages/count_tokens")

OWN_500 = re.compile(
    r"invalid format: "  # recorded: 500_chat_format_number and its kin
    r"|template: :[0-9]+: "  # contract §1.2: a request's template that does not parse
    r"|pull model manifest: file does not exist"  # recorded: a model that no source has
)
"""The texts that Ollama sends with status 500, for requests that reach neither a worker nor a source."""
INTERNALS = re.compile(
    r"Traceback|File \"|\w+Error\b(?!\.)|Exception|<class|object at 0x|NoneType|\bdict\b|\btuple\b|__\w+__|\bNone\b"
)
"""What shows that Python's own words reached a client."""

NAMES = [MODEL, MODEL.upper(), "smollm2", "nope", "a/b/c/d:e", "hf.co/x/y", "../../etc/passwd", "a b", "x:y:z", ":", "/", ""]  # fmt: skip  # noqa: E501
FIELDS: dict[str, list[Any]] = {
    "model": NAMES, "name": NAMES, "from": NAMES, "source": NAMES, "destination": NAMES,
    "prompt": ["hi", ""], "suffix": ["x"], "system": ["s"], "input": ["hi", ["a", "b"], [[1, 2]], [1]], "text": ["a"],
    "template": ["{{ .Prompt }}", "{{ .Prompt", "{{ messages }}", "{% for"], "raw": [True], "stream": [True, False],
    "format": ["json", "", "yaml", {"type": "object"}, {"$ref": "#"}, 5],
    "think": [True, False, "high", "max", "x"], "context": [[1, 2], [2**64]], "images": [["aGk="], ["@"], [""], "aGk="],
    "keep_alive": [0, -1, 5, "5m", "0s", "-1", "1e9h", "x", 1e300], "truncate": [False], "shift": [False],
    "options": [{"temperature": 0}, {"num_ctx": -1}, {"stop": [5]}, {"seed": "x"}, {"top_k": 1e300}, []],
    "logprobs": [True, 5], "top_logprobs": [-1, 5, 99, 1.5], "dimensions": [0, -1, 2**70], "verbose": [True],
    "messages": [
        [{"role": "user", "content": "hi"}], [{"role": "user", "content": None}], [{"role": 5}], [{}], [None], "hi",
        [{"role": "user", "content": [{"type": "text", "text": "hi"}]}], [{"role": "user", "images": ["x"]}],
        [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "x"}}]}], [],
        [{"role": "assistant", "tool_calls": [5]}], [{"content": {"a": 1}}],
    ],
    "tools": [[], [{"type": "function", "function": {"name": "f"}}], [5], {}], "tool_choice": ["auto", {}],
    "quantize": ["q4_K_M"], "files": [{"a": "sha256:x"}, {"../a": "b"}, []], "adapters": [{"a": "b"}],
    "parameters": [{"num_ctx": 1}, {"stop": 5}, []], "license": ["x", ["a"], 5], "insecure": [True],
    "max_tokens": [1, -1, 0, "x"], "temperature": [0, -5, "x"], "n": [2], "query": ["q"], "documents": [["a"], [5]],
    "stream_options": [{"include_usage": True}, 5], "response_format": [{"type": "json_object"}, 5],
    "_debug_render_only": [True], "max_output_tokens": [5], "instructions": ["s"], "max_completion_tokens": [5],
}  # fmt: skip
"""Fields of every route, with values near to what they want."""


ODD = st.sampled_from(
    ["1e999", "-0", "1" + "0" * 400, "NaN", "Infinity", "0.1e-400", '"\\ud800"', '"\\udc00\\ud800"', "tru", "'x'", "01"]
    + ["[" * depth + "]" * depth for depth in (100, 1023, 5000)]
    + ['{"a":' * 3000 + "1" + "}" * 3000, '"' + "x" * 100_000 + '"', "[" + "0," * 5000 + "0]"]
).map(Raw)
VALUES = nested_values(scalar_values(ODD), 6)


@st.composite
def field(draw: st.DrawFn) -> str:
    """A field as JSON: a known one with a value that it could have, or with any."""
    name = draw(st.sampled_from(sorted(FIELDS)))
    value = draw(VALUES if draw(st.integers(0, 5)) == 5 else st.sampled_from(FIELDS[name]))
    spelling = draw(st.sampled_from([name, name, name, name.upper(), name.title(), name + "\x00"]))
    return f"{json.dumps(spelling)}:{text_of(value)}"


@st.composite
def objects(draw: st.DrawFn) -> bytes:
    """A body that names the model, as a rule, with some fields, perhaps twice."""
    fields = draw(st.lists(field(), max_size=4))
    if draw(st.booleans()):
        fields.insert(0, '"messages":[{"role":"user","content":"hi"}],"max_tokens":5,"input":"hi"')
    if draw(st.integers(0, 9)):
        name = MODEL if draw(st.integers(0, 4)) else draw(st.sampled_from(NAMES))
        fields.append(f'"model":{json.dumps(name)}')
    return ("{" + ",".join(fields) + "}").encode()


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Mostly objects; some cut off, some with bytes after their end, some no objects at all."""
    kind = draw(st.integers(0, 9))
    if kind < 7:
        return draw(objects())
    if kind == 7:
        body = draw(objects())
        return body[: draw(st.integers(0, len(body)))]
    if kind == 8:
        return draw(objects()) + draw(st.binary(max_size=5))
    return draw(st.binary(max_size=40) | VALUES.map(text_of).map(str.encode))


HEADERS = st.lists(
    st.sampled_from(
        [
            ("Content-Type", "application/json"),
            ("Content-Type", "text/plain; charset=latin-1"),
            ("Content-Type", "multipart/form-data; boundary=x"),
            ("Content-Type", ";;;"),
            ("Content-Encoding", "identity"),
            ("Content-Encoding", "zstd"),
            ("Accept", "text/event-stream"),
            ("Authorization", "Bearer x"),
        ]
    ),
    max_size=2,
    unique_by=lambda header: header[0],
)
THOROUGHLY = settings(
    max_examples=count(80, 250),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def nowhere(store: ModelStore, name: ModelName) -> Generator[Progress, None, None]:
    """A source of models that has none, and asks no network."""
    raise SourceUnavailable("pull model manifest: file does not exist")
    yield


@pytest.fixture
async def offline(run_gateway: RunGateway) -> AsyncIterator[Running]:
    """A gateway whose workers answer everything, and whose sources have nothing."""
    async with run_gateway(puller=nowhere) as gateway:
        answering = asyncio.create_task(answer_all(gateway))
        yield gateway
        answering.cancel()


async def answer_all(gateway: Running) -> None:
    async def serve(worker: FakeWorker) -> None:
        while True:
            answer(await worker.exchanges.get())

    async with asyncio.TaskGroup() as serving:
        while True:
            serving.create_task(serve(await gateway.launcher.started.get()))


def answer(exchange: Exchange) -> None:
    if isinstance(exchange, HttpExchange):
        exchange.reply(b'{"tokens":[1]}')
    elif exchange.path == "/v1/embeddings":
        exchange.reply(b'{"data":[]}')
    else:
        exchange.start(NDJSON)
        exchange.finish(b'{"done":true}\n')


async def ask(
    gateway: Running, manifest: Manifest, path: str, body: bytes, headers: list[tuple[str, str]]
) -> tuple[int, str, str]:
    """Status, content type and body of the answer; the same connection then answers another request."""
    gateway.store.put(manifest)  # an earlier body may have deleted the model
    method = "DELETE" if path == "/api/delete" else "POST"
    connection = await gateway.connect()
    connection.request(method, path, body, *headers)
    status, content_type, text, closes = await read(connection)
    if not closes:
        connection.request("GET", "/api/version")
        assert (await read(connection))[0] == 200
    connection.close()
    return status, content_type, text


async def read(connection: RawConnection) -> tuple[int, str, str, bool]:
    head = await connection.head()
    chunked = head.all("transfer-encoding") == ["chunked"]
    length = int((head.all("content-length") or ["0"])[0])
    content = await (connection.chunks() if chunked else connection.exactly(length))
    return head.status, (head.all("content-type") or [""])[0], content.decode(), head.all("connection") == ["close"]


def complaints(status: int, content_type: str, text: str) -> list[str]:
    """The errors that a reply of a native route holds; fails where one has another shape than Ollama's."""
    lines = text.splitlines() if content_type == NDJSON else [text] if text.startswith("{") else []
    found = [reply for reply in map(orjson.loads, lines) if "error" in reply]
    if status >= 400:
        assert len(found) == 1, text
    for reply in found:
        assert reply.keys() - {"signin_url"} == {"error"}
        assert isinstance(reply["error"], str)
        assert reply["error"]
    return [reply["error"] for reply in found]


@THOROUGHLY
@given(path=st.sampled_from((*NATIVE, *_RICHEST * 4)), body=bodies(), headers=HEADERS)
@example(path="/api/generate", body=b'{"model":"smollm2:135m","prompt":"x","format":5}', headers=[])
@example(path="/api/chat", body=b"", headers=[])
async def test_any_body_on_a_native_route_has_an_answer_that_ollama_could_give(
    offline: Running, manifest: Manifest, path: str, body: bytes, headers: list[tuple[str, str]]
) -> None:
    status, content_type, text = await ask(offline, manifest, path, body, headers)
    errors = complaints(status, content_type, text)
    assert not INTERNALS.search(" ".join(errors)), text
    if status >= 500:
        assert status == 500, (status, text)
        assert OWN_500.match(errors[0]), text


@THOROUGHLY
@given(path=st.sampled_from(OPENAI), body=bodies(), headers=HEADERS)
async def test_any_body_on_an_openai_route_has_an_answer_in_its_shape(
    offline: Running, manifest: Manifest, path: str, body: bytes, headers: list[tuple[str, str]]
) -> None:
    status, _, text = await ask(offline, manifest, path, body, headers)
    assert status < 500, text
    if status >= 400:
        reply = orjson.loads(text)
        assert list(reply) == ["error"]
        assert set(reply["error"]) == {"message", "type", "param", "code"}
        assert reply["error"]["message"]
        assert not INTERNALS.search(reply["error"]["message"]), text


@THOROUGHLY
@given(path=st.sampled_from(ANTHROPIC), body=bodies(), headers=HEADERS)
async def test_any_body_on_an_anthropic_route_has_an_answer_in_its_shape(
    offline: Running, manifest: Manifest, path: str, body: bytes, headers: list[tuple[str, str]]
) -> None:
    status, _, text = await ask(offline, manifest, path, body, headers)
    assert status < 500, text
    if status >= 400:
        reply = orjson.loads(text)
        assert set(reply) == {"type", "error", "request_id"}
        assert reply["type"] == "error"
        assert set(reply["error"]) == {"type", "message"}
        assert not INTERNALS.search(reply["error"]["message"]), text


@pytest.mark.parametrize("path", [*NATIVE[:2], OPENAI[0], ANTHROPIC[0]])
async def test_a_body_that_is_too_large_is_refused_and_the_connection_goes_on(
    offline: Running, manifest: Manifest, path: str
) -> None:
    settings = Settings.from_environment({}, models=offline.store.root, max_body_size=1 << 20)
    offline.app.adopt(settings)
    status, _, text = await ask(offline, manifest, path, b'{"prompt":"' + b"x" * (3 << 20), [])
    assert status == 413
    error = orjson.loads(text)["error"]
    message = error if path in NATIVE else error["message"]
    assert message == "http: request body too large: the maximum is 1 MiB"


@THOROUGHLY
@given(
    method=st.sampled_from(["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"]),
    path=st.sampled_from(["/", "/api/", "/api/tags", "/api/ps", "/api/version", "/api/blobs/", "/v1/models/", *NATIVE])
    | st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=12).map(lambda text: "/" + text),
    rest=st.sampled_from(["", "/", "//", "?a=%00", "/%2e%2e/%2e%2e", "/%ff%fe", "/a/b", "#", "/" + "x" * 3000]),
)
async def test_any_path_has_an_answer(offline: Running, method: str, path: str, rest: str) -> None:
    connection = await offline.connect()
    connection.request(method, path + rest)
    head = await connection.head()
    connection.close()
    assert head.status < 500
    assert (await offline.get("/api/version")).status_code == 200
