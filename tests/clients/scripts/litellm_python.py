"""LiteLLM with `ollama_chat/` (`/api/chat`) and `ollama/` (`/api/generate`, `/api/embed`)."""

from __future__ import annotations

import litellm
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

GREEDY = {"temperature": 0, "max_tokens": 32}
MESSAGES = [{"role": "user", "content": QUESTION}]
WITH_TOOLS = {
    "model": f"ollama_chat/{TOOLS}",
    "messages": [{"role": "user", "content": WEATHER}],
    "tools": [GET_WEATHER],
    "temperature": 0,
}


@use
def chat():
    return litellm.completion(model=f"ollama_chat/{CHAT}", messages=MESSAGES, **GREEDY)


@use
def chat_stream():
    return list(
        litellm.completion(
            model=f"ollama_chat/{CHAT}",
            messages=MESSAGES,
            stream=True,
            stream_options={"include_usage": True},
            **GREEDY,
        )
    )


@use
def generate():
    return litellm.completion(model=f"ollama/{CHAT}", messages=MESSAGES, **GREEDY)


@use
def generate_stream():
    return list(litellm.completion(model=f"ollama/{CHAT}", messages=MESSAGES, stream=True, **GREEDY))


@use
def tools():
    return litellm.completion(**WITH_TOOLS)


@use
def tools_stream():
    return list(litellm.completion(**WITH_TOOLS, stream=True))


@use
def tool_loop():
    message = litellm.completion(**WITH_TOOLS).choices[0].message
    (call,) = message.tool_calls
    result = {"role": "tool", "tool_call_id": call.id, "content": "7 degrees and sunny"}
    return litellm.completion(**{**WITH_TOOLS, "messages": [*WITH_TOOLS["messages"], message, result]})


@use
def structured():
    messages = [{"role": "user", "content": ANN}]
    reply = litellm.completion(model=f"ollama_chat/{TOOLS}", messages=messages, response_format=Person, temperature=0)
    return Person.model_validate_json(reply.choices[0].message.content)


@use
def reasoning():
    messages = [{"role": "user", "content": "Why is the sky blue?"}]
    return litellm.completion(model=f"ollama_chat/{TOOLS}", messages=messages, reasoning_effort="low", temperature=0)


@use
def images():
    def look(provider, image):
        content = [{"type": "text", "text": LOOK}, {"type": "image_url", "image_url": {"url": data_uri(image)}}]
        messages = [{"role": "user", "content": content}]
        reply = litellm.completion(model=f"{provider}/{SEES}", messages=messages, temperature=0, max_tokens=6)
        return reply.choices[0].message.content

    return {provider: [look(provider, BLACK), look(provider, WHITE)] for provider in ("ollama_chat", "ollama")}


@use
def embeddings():
    return litellm.embedding(model=f"ollama/{EMBED}", input=TEXTS)


@use
def model_info():
    return litellm.get_model_info(f"ollama/{TOOLS}")


@use
def valid_models():
    return litellm.get_valid_models(custom_llm_provider="ollama", check_provider_endpoint=True)


@use
async def asynchronous():
    stream = await litellm.acompletion(model=f"ollama_chat/{CHAT}", messages=MESSAGES, stream=True, **GREEDY)
    return {
        "chat": await litellm.acompletion(model=f"ollama_chat/{CHAT}", messages=MESSAGES, **GREEDY),
        "stream": [chunk async for chunk in stream],
    }


@use
def errors():
    hello = [{"role": "user", "content": "Hi"}]
    return {
        "unknown model": raised(lambda: litellm.completion(model="ollama_chat/nosuchmodel", messages=hello)),
        "unknown model, ollama/": raised(lambda: litellm.completion(model="ollama/nosuchmodel", messages=hello)),
        "tools without support": raised(
            lambda: litellm.completion(model=f"ollama_chat/{CHAT}", messages=hello, tools=[GET_WEATHER])
        ),
    }


report("litellm")
