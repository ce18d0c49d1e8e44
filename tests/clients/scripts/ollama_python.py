"""Ollama's own Python client."""

from __future__ import annotations

import ollama
from uses import (
    ANN,
    BLACK,
    CHAT,
    EMBED,
    LOOK,
    QUESTION,
    SEES,
    TEXTS,
    TOOLS,
    WEATHER,
    WHITE,
    Person,
    raised,
    report,
    use,
)

MESSAGES = [{"role": "user", "content": QUESTION}]
GREEDY = {"temperature": 0, "num_predict": 32}


def get_weather(city: str) -> str:
    """Get the weather in a city.

    Args:
        city: The city

    Returns:
        str: The weather
    """
    return "7 degrees and sunny"


@use
def listed():
    return ollama.list()


@use
def shown():
    return {name: ollama.show(name) for name in (CHAT, EMBED, TOOLS)}


@use
def chat():
    return ollama.chat(CHAT, MESSAGES, options=GREEDY)


@use
def chat_stream():
    return list(ollama.chat(CHAT, MESSAGES, options=GREEDY, stream=True))


@use
def conversation():
    first = ollama.chat(CHAT, MESSAGES, options=GREEDY)
    second = ollama.chat(CHAT, [*MESSAGES, first.message, {"role": "user", "content": "Why?"}], options=GREEDY)
    return [first, second]


@use
def generate():
    return ollama.generate(CHAT, QUESTION, system="You give short answers.", options=GREEDY)


@use
def generate_stream():
    return list(ollama.generate(CHAT, QUESTION, system="You give short answers.", options=GREEDY, stream=True))


@use
def cut_short():
    return ollama.chat(CHAT, MESSAGES, options={"temperature": 0, "num_predict": 3})


@use
def loaded():
    reply = ollama.generate(CHAT, keep_alive="1h")
    return {"load": reply, "ps": ollama.ps()}


@use
def structured():
    messages = [{"role": "user", "content": ANN}]
    reply = ollama.chat(TOOLS, messages, format=Person.model_json_schema(), options={"temperature": 0})
    return Person.model_validate_json(reply.message.content)


@use
def json_mode():
    reply = ollama.generate(
        CHAT, "Describe France in JSON.", format="json", options={"temperature": 0, "num_predict": 8}
    )
    return reply.response


@use
def logprobs():
    return ollama.chat(CHAT, MESSAGES, options=GREEDY, logprobs=True, top_logprobs=2)


@use
def tools():
    return ollama.chat(TOOLS, [{"role": "user", "content": WEATHER}], tools=[get_weather], options={"temperature": 0})


@use
def tools_stream():
    messages = [{"role": "user", "content": WEATHER}]
    return list(ollama.chat(TOOLS, messages, tools=[get_weather], options={"temperature": 0}, stream=True))


@use
def tool_loop():
    messages = [{"role": "user", "content": WEATHER}]
    reply = ollama.chat(TOOLS, messages, tools=[get_weather], options={"temperature": 0})
    (call,) = reply.message.tool_calls
    result = get_weather(**call.function.arguments)
    messages += [reply.message, {"role": "tool", "tool_name": call.function.name, "content": result}]
    return ollama.chat(TOOLS, messages, tools=[get_weather], options={"temperature": 0})


@use
def thinking():
    ask = {
        "model": TOOLS,
        "messages": [{"role": "user", "content": "Why is the sky blue?"}],
        "options": {"temperature": 0},
    }
    return {
        "on": ollama.chat(**ask, think=True),
        "off": ollama.chat(**ask, think=False),
        "stream": list(ollama.chat(**ask, think=True, stream=True)),
    }


@use
def images():
    options = {"temperature": 0, "num_predict": 6}
    chat, generate = [
        [act(image) for image in (BLACK, WHITE)]
        for act in (
            lambda image: ollama.chat(SEES, [{"role": "user", "content": LOOK, "images": [image]}], options=options),
            lambda image: ollama.generate(SEES, LOOK, images=[image], options=options),
        )
    ]
    return {"chat": [reply.message.content for reply in chat], "generate": [reply.response for reply in generate]}


@use
def embed():
    return ollama.embed(EMBED, TEXTS)


@use
def embed_with_a_chat_model():
    return ollama.embed(CHAT, TEXTS[0])


@use
def embeddings():
    return ollama.embeddings(EMBED, TEXTS[0])


@use
def pull():
    return {"whole": ollama.pull(CHAT), "stream": list(ollama.pull(CHAT, stream=True))}


@use
def copy_and_delete():
    copied = ollama.copy(CHAT, "a-copy")
    with_copy = [model.model for model in ollama.list().models]
    deleted = ollama.delete("a-copy")
    return [copied, with_copy, deleted, [model.model for model in ollama.list().models]]


@use
async def asynchronous():
    client = ollama.AsyncClient()
    return {
        "chat": await client.chat(CHAT, MESSAGES, options=GREEDY),
        "stream": [part async for part in await client.chat(CHAT, MESSAGES, options=GREEDY, stream=True)],
        "generate": await client.generate(CHAT, QUESTION, options=GREEDY),
        "embed": await client.embed(EMBED, TEXTS[0]),
        "list": await client.list(),
        "ps": await client.ps(),
        "show": await client.show(CHAT),
    }


@use
def errors():
    return {
        "unknown model": raised(lambda: ollama.chat("nosuchmodel", MESSAGES)),
        "unknown model, streamed": raised(lambda: list(ollama.chat("nosuchmodel", MESSAGES, stream=True))),
        "unknown model, asynchronously": raised(lambda: ollama.AsyncClient().chat("nosuchmodel", MESSAGES)),
        "show of an unknown model": raised(lambda: ollama.show("nosuchmodel")),
        "delete of an unknown model": raised(lambda: ollama.delete("nosuchmodel")),
        "copy of an unknown model": raised(lambda: ollama.copy("nosuchmodel", "another")),
        "pull of an unknown model": raised(lambda: ollama.pull("nosuchmodel")),
        "tools without support": raised(lambda: ollama.chat(CHAT, MESSAGES, tools=[get_weather])),
        "thinking without support": raised(lambda: ollama.chat(CHAT, MESSAGES, think=True)),
        "chat without support": raised(lambda: ollama.chat(EMBED, MESSAGES)),
        "image without support": raised(lambda: ollama.generate(CHAT, LOOK, images=[BLACK])),
        "wrong option": raised(lambda: ollama.chat(CHAT, MESSAGES, options={"temperature": "hot"})),
    }


report("ollama")
