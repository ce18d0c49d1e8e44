"""OpenAI's Python SDK."""

from __future__ import annotations

import openai
from uses import (
    ANN,
    BLACK,
    CHAT,
    EMBED,
    GET_WEATHER,
    LOOK,
    QUESTION,
    SEES,
    TEXTS,
    TOOLS,
    WEATHER,
    WHITE,
    Person,
    data_uri,
    raised,
    report,
    use,
)

MESSAGES = [{"role": "user", "content": QUESTION}]
GREEDY = {"temperature": 0, "max_tokens": 32}
WITH_TOOLS = {
    "model": TOOLS,
    "messages": [{"role": "user", "content": WEATHER}],
    "tools": [GET_WEATHER],
    "temperature": 0,
}
client = openai.OpenAI(max_retries=0)


@use
def models():
    return {"list": list(client.models.list()), "retrieve": client.models.retrieve(CHAT)}


@use
def chat():
    return client.chat.completions.create(model=CHAT, messages=MESSAGES, **GREEDY)


@use
def chat_stream():
    stream = client.chat.completions.create(
        model=CHAT, messages=MESSAGES, stream=True, stream_options={"include_usage": True}, **GREEDY
    )
    return list(stream)


@use
def stream_helper():
    with client.chat.completions.stream(model=CHAT, messages=MESSAGES, **GREEDY) as stream:
        events = [event.type for event in stream]
        return {"events": events, "final": stream.get_final_completion()}


@use
def cut_short():
    return client.chat.completions.create(model=CHAT, messages=MESSAGES, temperature=0, max_completion_tokens=3)


@use
def structured():
    messages = [{"role": "user", "content": ANN}]
    reply = client.chat.completions.parse(model=TOOLS, messages=messages, response_format=Person, temperature=0)
    return reply.choices[0].message.parsed


@use
def tools():
    return client.chat.completions.create(**WITH_TOOLS)


@use
def tools_stream():
    return list(client.chat.completions.create(**WITH_TOOLS, stream=True))


@use
def tool_loop():
    message = client.chat.completions.create(**WITH_TOOLS).choices[0].message
    (call,) = message.tool_calls
    result = {"role": "tool", "tool_call_id": call.id, "content": "7 degrees and sunny"}
    return client.chat.completions.create(**{**WITH_TOOLS, "messages": [*WITH_TOOLS["messages"], message, result]})


@use
def reasoning():
    ask = {"model": TOOLS, "messages": [{"role": "user", "content": "Why is the sky blue?"}], "temperature": 0}
    return {
        "default": client.chat.completions.create(**ask),
        "none": client.chat.completions.create(**ask, reasoning_effort="none"),
        "stream": list(client.chat.completions.create(**ask, stream=True)),
    }


@use
def images():
    def look(image):
        content = [{"type": "text", "text": LOOK}, {"type": "image_url", "image_url": {"url": data_uri(image)}}]
        messages = [{"role": "user", "content": content}]
        reply = client.chat.completions.create(model=SEES, messages=messages, temperature=0, max_tokens=6)
        return reply.choices[0].message.content

    return [look(BLACK), look(WHITE)]


@use
def completions():
    ask = {"model": CHAT, "prompt": "The capital of France is", "temperature": 0, "max_tokens": 8}
    return {
        "whole": client.completions.create(**ask),
        "stream": list(client.completions.create(**ask, stream=True)),
    }


@use
def embeddings():
    return {
        "default": client.embeddings.create(model=EMBED, input=TEXTS),
        "float": client.embeddings.create(model=EMBED, input=TEXTS[0], encoding_format="float"),
        "chat model": client.embeddings.create(model=CHAT, input=TEXTS[0]),
    }


@use
def responses():
    return client.responses.create(
        model=CHAT, instructions="You give short answers.", input=QUESTION, temperature=0, max_output_tokens=32
    )


@use
def responses_text():
    return client.responses.create(model=CHAT, input=QUESTION, temperature=0, max_output_tokens=32).output_text


@use
def responses_stream():
    return list(client.responses.create(model=CHAT, input=QUESTION, temperature=0, max_output_tokens=32, stream=True))


@use
def responses_tools():
    return client.responses.create(
        model=TOOLS,
        input=WEATHER,
        tools=[{"type": "function", "strict": False, **GET_WEATHER["function"]}],
        temperature=0,
    )


@use
def responses_structured():
    return client.responses.parse(model=TOOLS, input=ANN, text_format=Person, temperature=0).output_parsed


@use
async def asynchronous():
    async with openai.AsyncOpenAI(max_retries=0) as other:
        stream = await other.chat.completions.create(model=CHAT, messages=MESSAGES, stream=True, **GREEDY)
        return {
            "chat": await other.chat.completions.create(model=CHAT, messages=MESSAGES, **GREEDY),
            "stream": [chunk async for chunk in stream],
        }


@use
def errors():
    chat, hello = client.chat.completions.create, [{"role": "user", "content": "Hi"}]
    return {
        "unknown model": raised(lambda: chat(model="nosuchmodel", messages=hello)),
        "unknown model, streamed": raised(lambda: list(chat(model="nosuchmodel", messages=hello, stream=True))),
        "unknown model, retrieved": raised(lambda: client.models.retrieve("nosuchmodel")),
        "unknown model, embeddings": raised(lambda: client.embeddings.create(model="nosuchmodel", input="text")),
        "unknown model, responses": raised(lambda: client.responses.create(model="nosuchmodel", input="Hi")),
        "tools without support": raised(lambda: chat(**{**WITH_TOOLS, "model": CHAT})),
        "no messages": raised(lambda: chat(model=CHAT, messages=[])),
    }


report("openai")
