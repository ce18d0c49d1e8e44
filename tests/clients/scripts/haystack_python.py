"""Haystack's Ollama generators and embedders, and an agent of it."""

from __future__ import annotations

import os

from haystack.components.agents import Agent
from haystack.dataclasses import ChatMessage, Document
from haystack.tools import Tool
from haystack_integrations.components.embedders.ollama import OllamaDocumentEmbedder, OllamaTextEmbedder
from haystack_integrations.components.generators.ollama import OllamaChatGenerator
from uses import ANN, CHAT, EMBED, QUESTION, TEXTS, TOOLS, WEATHER, Person, raised, report, use

URL = os.environ["OLLAMA_HOST"]
GREEDY = {"temperature": 0, "num_predict": 100}
WEATHER_TOOL = Tool(
    name="get_weather",
    description="Get the weather in a city",
    parameters={"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    function=lambda city: "7 degrees and sunny",
)


def _generator(model, **settings):
    return OllamaChatGenerator(model=model, url=URL, generation_kwargs=GREEDY, **settings)


def _reply(generator, text, **settings):
    (reply,) = generator.run([ChatMessage.from_user(text)], **settings)["replies"]
    return {
        "text": reply.text,
        "calls": [[call.tool_name, call.arguments] for call in reply.tool_calls],
        "thinking": reply.reasoning.reasoning_text if reply.reasoning else None,
        "usage": reply.meta.get("usage"),
        "finish_reason": reply.meta.get("finish_reason"),
    }


def _streamed(generator, text, **settings):
    chunks = []
    reply = _reply(generator, text, streaming_callback=chunks.append, **settings)
    return {**reply, "pieces": [chunk.content for chunk in chunks]}


@use
def chat():
    return _reply(_generator(CHAT), QUESTION)


@use
def stream():
    return _streamed(_generator(CHAT), QUESTION)


@use
def tools():
    return _reply(_generator(TOOLS, tools=[WEATHER_TOOL]), WEATHER)


@use
def two_calls():
    return _reply(_generator(TOOLS, tools=[WEATHER_TOOL]), "What is the weather in Oslo and Bergen?")


@use
def two_calls_stream():
    return _streamed(_generator(TOOLS, tools=[WEATHER_TOOL]), "What is the weather in Oslo and Bergen?")


@use
def agent():
    chunks = []
    working = Agent(chat_generator=_generator(TOOLS), tools=[WEATHER_TOOL], streaming_callback=chunks.append)
    messages = working.run([ChatMessage.from_user(WEATHER)])["messages"]
    return {
        "roles": [message.role.value for message in messages],
        "calls": [[call.tool_name, call.arguments] for message in messages for call in message.tool_calls],
        "answer": messages[-1].text,
        "pieces": len(chunks),
    }


@use
def thinking():
    return _streamed(_generator(TOOLS, think=True), "Why is the sky blue?")


@use
def structured():
    return _reply(_generator(TOOLS, response_format=Person.model_json_schema()), ANN)


@use
def embed():
    texts = OllamaTextEmbedder(model=EMBED, url=URL)
    documents = OllamaDocumentEmbedder(model=EMBED, url=URL, progress_bar=False)
    return {
        "texts": [texts.run(text)["embedding"] for text in TEXTS],
        "documents": [
            found.embedding for found in documents.run([Document(content=text) for text in TEXTS])["documents"]
        ],
    }


@use
def errors():
    return {
        "unknown model": raised(lambda: _reply(_generator("nosuchmodel"), QUESTION)),
        "unknown model, streamed": raised(lambda: _streamed(_generator("nosuchmodel"), QUESTION)),
        "tools without support": raised(lambda: _reply(_generator(CHAT, tools=[WEATHER_TOOL]), WEATHER)),
    }


report("ollama-haystack", "haystack-ai")
