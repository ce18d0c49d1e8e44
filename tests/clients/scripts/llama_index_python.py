"""LlamaIndex's `llama-index-llms-ollama` and `llama-index-embeddings-ollama`."""

from __future__ import annotations

import os

from llama_index.core.llms import ChatMessage, ImageBlock, TextBlock
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.ollama import OllamaEmbedding
from llama_index.llms.ollama import Ollama
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

SERVER = os.environ["OLLAMA_HOST"]
MESSAGES = [ChatMessage(role="system", content="You give short answers."), ChatMessage(role="user", content=QUESTION)]
llm = Ollama(model=CHAT, base_url=SERVER, temperature=0.0, request_timeout=120, additional_kwargs={"num_predict": 32})
caller = Ollama(model=TOOLS, base_url=SERVER, temperature=0.0, request_timeout=120)


def get_weather(city: str) -> str:
    """Get the weather in a city."""
    return "7 degrees and sunny"


@use
def metadata():
    return llm.metadata


@use
def complete():
    return {"whole": llm.complete(QUESTION).text, "stream": [part.delta for part in llm.stream_complete(QUESTION)]}


@use
def chat():
    return llm.chat(MESSAGES)


@use
def stream_chat():
    return [part.delta for part in llm.stream_chat(MESSAGES)]


@use
def tools():
    reply = caller.chat_with_tools([FunctionTool.from_defaults(get_weather)], user_msg=WEATHER)
    return caller.get_tool_calls_from_response(reply)


@use
def tool_is_called():
    reply = caller.predict_and_call([FunctionTool.from_defaults(get_weather)], user_msg=WEATHER)
    return reply.response


@use
def structured():
    return caller.structured_predict(Person, PromptTemplate("How old is {name}?"), name="Ann")


@use
def structured_llm():
    return caller.as_structured_llm(Person).complete(ANN).raw


@use
def thinking():
    thinker = Ollama(model=TOOLS, base_url=SERVER, temperature=0.0, request_timeout=120, thinking=True)
    return thinker.chat([ChatMessage(role="user", content="Why is the sky blue?")]).message


@use
def images():
    seeing = Ollama(model=SEES, base_url=SERVER, temperature=0.0, additional_kwargs={"num_predict": 6})

    def look(image):
        blocks = [TextBlock(text=LOOK), ImageBlock(image=image)]
        return seeing.chat([ChatMessage(role="user", blocks=blocks)]).message.content

    return [look(BLACK), look(WHITE)]


@use
def embeddings():
    embedder = OllamaEmbedding(model_name=EMBED, base_url=SERVER)
    return {"texts": embedder.get_text_embedding_batch(TEXTS), "query": embedder.get_query_embedding(TEXTS[0])}


@use
async def asynchronous():
    stream = await llm.astream_chat(MESSAGES)
    return {"chat": await llm.achat(MESSAGES), "stream": [part.delta async for part in stream]}


@use
def errors():
    unknown = Ollama(model="nosuchmodel", base_url=SERVER, context_window=2048)
    return {
        "unknown model": raised(lambda: unknown.chat(MESSAGES)),
        "unknown model, its context asked": raised(lambda: Ollama(model="nosuchmodel", base_url=SERVER).complete("Hi")),
        "tools without support": raised(
            lambda: llm.chat_with_tools([FunctionTool.from_defaults(get_weather)], user_msg=WEATHER)
        ),
    }


report("llama-index-llms-ollama", "llama-index-embeddings-ollama", "llama-index-core")
