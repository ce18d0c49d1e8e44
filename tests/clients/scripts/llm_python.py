"""Simon Willison's `llm` with its plugin `llm-ollama`, in Python and on the command line."""

from __future__ import annotations

import subprocess
import sys

import llm
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

GREEDY = {"temperature": 0, "num_predict": 32}
model = llm.get_model(f"ollama/{CHAT}")
caller = llm.get_model(f"ollama/{TOOLS}")


def get_weather(city: str) -> str:
    """Get the weather in a city."""
    return "7 degrees and sunny"


def _command(*arguments: str) -> str:
    command = [sys.executable, "-m", "llm", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout


@use
def models():
    return {
        "chat": [found.model_id for found in llm.get_models()],
        "embedding": [found.model_id for found in llm.get_embedding_models()],
        "supports tools": [model.supports_tools, caller.supports_tools],
    }


@use
def prompt():
    reply = model.prompt(QUESTION, stream=False, **GREEDY)
    return {"text": reply.text(), "usage": [reply.usage().input, reply.usage().output], "json": reply.json()}


@use
def stream():
    return list(model.prompt(QUESTION, **GREEDY))


@use
def conversation():
    talk = model.conversation()
    first = talk.prompt(QUESTION, **GREEDY)
    first.text()
    second = talk.prompt("Why?", **GREEDY)
    second.text()
    return [first.usage().input, second.usage().input]


@use
def schema():
    return Person.model_validate_json(caller.prompt(ANN, schema=Person, temperature=0).text())


@use
def tools():
    chain = caller.chain(WEATHER, tools=[get_weather], options={"temperature": 0})
    text = chain.text()
    calls = [[call.name, call.arguments] for reply in chain._responses for call in reply.tool_calls()]
    return {"calls": calls, "text": text}


@use
def images():
    seeing = llm.get_model(f"ollama/{SEES}")

    def look(image):
        return seeing.prompt(LOOK, attachments=[llm.Attachment(content=image)], temperature=0, num_predict=6).text()

    return [look(BLACK), look(WHITE)]


@use
def embeddings():
    return list(llm.get_embedding_model(f"ollama/{EMBED}").embed_multi(TEXTS))


@use
async def asynchronous():
    return await llm.get_async_model(f"ollama/{CHAT}").prompt(QUESTION, **GREEDY).text()


@use
def command_line():
    return {
        "models": _command("ollama", "models"),
        "prompt": _command("-m", f"ollama/{CHAT}", "-o", "temperature", "0", "-o", "num_predict", "32", QUESTION),
    }


@use
def errors():
    return {"unknown model": raised(lambda: llm.get_model("ollama/nosuchmodel"))}


report("llm", "llm-ollama")
