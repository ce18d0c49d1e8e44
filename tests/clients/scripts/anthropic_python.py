"""Anthropic's Python SDK."""

from __future__ import annotations

from base64 import b64encode

import anthropic
from uses import BLACK, CHAT, LOOK, QUESTION, SEES, TOOLS, WEATHER, WHITE, raised, report, use

GREEDY = {"temperature": 0}  # the SDK has no parameter for it any more
ASK = {"model": CHAT, "max_tokens": 32, "messages": [{"role": "user", "content": QUESTION}], "extra_body": GREEDY}
GET_WEATHER = {
    "name": "get_weather",
    "description": "Get the weather in a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
WITH_TOOLS = {
    "model": TOOLS,
    "max_tokens": 200,
    "extra_body": GREEDY,
    "messages": [{"role": "user", "content": WEATHER}],
    "tools": [GET_WEATHER],
}
client = anthropic.Anthropic(max_retries=0)


@use
def message():
    return client.messages.create(**ASK, system="You give short answers.")


@use
def text_blocks():
    content = [{"type": "text", "text": QUESTION}]
    system = [{"type": "text", "text": "You give short answers.", "cache_control": {"type": "ephemeral"}}]
    return client.messages.create(**{**ASK, "messages": [{"role": "user", "content": content}]}, system=system)


@use
def cut_short():
    return client.messages.create(**{**ASK, "max_tokens": 3})


@use
def stop_sequence():
    return client.messages.create(**ASK, stop_sequences=[" is"])


@use
def raw_stream():
    return list(client.messages.create(**ASK, stream=True))


@use
def stream_helper():
    with client.messages.stream(**ASK, system="You give short answers.") as stream:
        return {"pieces": list(stream.text_stream), "final": stream.get_final_message()}


@use
def tools():
    return client.messages.create(**WITH_TOOLS)


@use
def tools_stream():
    with client.messages.stream(**WITH_TOOLS) as stream:
        events = [event.type for event in stream]
        return {"events": events, "final": stream.get_final_message()}


@use
def tool_loop():
    reply = client.messages.create(**WITH_TOOLS)
    call = next(block for block in reply.content if block.type == "tool_use")
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "7 degrees and sunny"}
    messages = [
        *WITH_TOOLS["messages"],
        {"role": "assistant", "content": reply.content},
        {"role": "user", "content": [result]},
    ]
    return client.messages.create(**{**WITH_TOOLS, "messages": messages})


@use
def images():
    def look(image):
        source = {"type": "base64", "media_type": "image/png", "data": b64encode(image).decode()}
        content = [{"type": "text", "text": LOOK}, {"type": "image", "source": source}]
        messages = [{"role": "user", "content": content}]
        reply = client.messages.create(model=SEES, max_tokens=6, messages=messages, extra_body=GREEDY)
        return reply.content[0].text

    return [look(BLACK), look(WHITE)]


@use
async def asynchronous():
    async with anthropic.AsyncAnthropic(max_retries=0) as other:
        return await other.messages.create(**ASK, system="You give short answers.")


@use
def errors():
    return {
        "unknown model": raised(lambda: client.messages.create(**{**ASK, "model": "nosuchmodel"})),
        "unknown model, streamed": raised(
            lambda: client.messages.create(**{**ASK, "model": "nosuchmodel"}, stream=True)
        ),
        "tools without support": raised(lambda: client.messages.create(**{**WITH_TOOLS, "model": CHAT})),
        "no messages": raised(lambda: client.messages.create(**{**ASK, "messages": []})),
    }


report("anthropic")
