"""Pydantic AI with its Ollama provider, which speaks `/v1/chat/completions`."""

from __future__ import annotations

from pydantic_ai import Agent, BinaryContent, NativeOutput
from pydantic_ai.models.ollama import OllamaModel
from uses import ANN, BLACK, CHAT, LOOK, QUESTION, SEES, TOOLS, WEATHER, WHITE, Person, raised, report, use

GREEDY = {"temperature": 0, "max_tokens": 100}
agent = Agent(OllamaModel(CHAT), instructions="You give short answers.", model_settings=GREEDY)
caller = Agent(OllamaModel(TOOLS), model_settings=GREEDY)


@caller.tool_plain
def get_weather(city: str) -> str:
    """Get the weather in a city."""
    return "7 degrees and sunny"


@use
def run():
    result = agent.run_sync(QUESTION)
    return {
        "output": result.output,
        "input_tokens": result.usage.input_tokens,
        "output_tokens": result.usage.output_tokens,
    }


@use
async def stream():
    async with agent.run_stream(QUESTION) as result:
        return [piece async for piece in result.stream_text(delta=True, debounce_by=None)]


@use
def tool_loop():
    result = caller.run_sync(WEATHER)
    parts = [part for message in result.all_messages() for part in message.parts]
    calls = [[part.tool_name, part.args_as_dict()] for part in parts if part.part_kind == "tool-call"]
    thoughts = [part.content for part in parts if part.part_kind == "thinking"]
    return {"calls": calls, "thoughts": thoughts, "output": result.output}


@use
def structured_by_a_tool():
    noting = Agent(OllamaModel(TOOLS), output_type=Person, model_settings=GREEDY)
    return noting.run_sync("Note that Ann is 31.").output


@use
def structured_natively():
    asking = Agent(OllamaModel(TOOLS), output_type=NativeOutput(Person), model_settings=GREEDY)
    return asking.run_sync(ANN).output


@use
def images():
    seeing = Agent(OllamaModel(SEES), model_settings={"temperature": 0, "max_tokens": 6})

    def look(image):
        return seeing.run_sync([LOOK, BinaryContent(image, media_type="image/png")]).output

    return [look(BLACK), look(WHITE)]


@use
def errors():
    unknown = Agent(OllamaModel("nosuchmodel"))
    return {"unknown model": raised(lambda: unknown.run_sync("Hi"))}


report("pydantic-ai-slim")
