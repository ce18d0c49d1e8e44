"""LangChain's `langchain-ollama`."""

from __future__ import annotations

from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_ollama import ChatOllama, OllamaEmbeddings, OllamaLLM
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
    data_uri,
    raised,
    report,
    use,
)

model = ChatOllama(model=CHAT, temperature=0, num_predict=32, validate_model_on_init=True)
caller = ChatOllama(model=TOOLS, temperature=0)


@tool
def get_weather(city: str) -> str:
    """Get the weather in a city."""
    return "7 degrees and sunny"


@use
def invoke():
    return model.invoke([SystemMessage("You give short answers."), HumanMessage(QUESTION)])


@use
def stream():
    return list(model.stream([SystemMessage("You give short answers."), HumanMessage(QUESTION)]))


@use
def batch():
    return [reply.text for reply in model.batch([QUESTION, "What is the capital of Italy?"])]


@use
def tools():
    return caller.bind_tools([get_weather]).invoke(WEATHER)


@use
def tools_stream():
    chunks = list(caller.bind_tools([get_weather]).stream(WEATHER))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    return whole


@use
def tool_loop():
    asked = HumanMessage(WEATHER)
    reply = caller.bind_tools([get_weather]).invoke([asked])
    results = [ToolMessage(get_weather.invoke(call["args"]), tool_call_id=call["id"]) for call in reply.tool_calls]
    return caller.bind_tools([get_weather]).invoke([asked, reply, *results])


@use
def structured():
    return {
        method: caller.with_structured_output(Person, method=method).invoke(ANN)
        for method in ("json_schema", "json_mode")
    }


@use
def structured_by_a_tool():
    class final_result(Person):  # noqa: N801 - becomes the name of a tool
        """A person that was noted."""

    return caller.with_structured_output(final_result, method="function_calling").invoke("Note that Ann is 31.")


@use
def reasoning():
    return {
        str(switch): ChatOllama(model=TOOLS, temperature=0, reasoning=switch).invoke("Why is the sky blue?")
        for switch in (True, False, None)
    }


@use
def images():
    seeing = ChatOllama(model=SEES, temperature=0, num_predict=6)

    def look(image):
        content = [{"type": "text", "text": LOOK}, {"type": "image_url", "image_url": data_uri(image)}]
        return seeing.invoke([HumanMessage(content)]).content

    return [look(BLACK), look(WHITE)]


@use
def completion():
    llm = OllamaLLM(model=CHAT, temperature=0, num_predict=32)
    return {"invoke": llm.invoke(QUESTION), "stream": list(llm.stream(QUESTION))}


@use
def embeddings():
    embedder = OllamaEmbeddings(model=EMBED, validate_model_on_init=True)
    return {
        "documents": embedder.embed_documents(TEXTS),
        "query": embedder.embed_query(TEXTS[0]),
        "chat model": OllamaEmbeddings(model=CHAT).embed_query(TEXTS[0]),
    }


@use
async def asynchronous():
    messages = [SystemMessage("You give short answers."), HumanMessage(QUESTION)]
    return {
        "invoke": await model.ainvoke(messages),
        "stream": [chunk async for chunk in model.astream(messages)],
        "embedding": await OllamaEmbeddings(model=EMBED).aembed_query(TEXTS[0]),
    }


@use
def errors():
    return {
        "unknown model": raised(lambda: ChatOllama(model="nosuchmodel").invoke("Hi")),
        "unknown model, validated": raised(lambda: ChatOllama(model="nosuchmodel", validate_model_on_init=True)),
        "tools without support": raised(lambda: model.bind_tools([get_weather]).invoke("Hi")),
    }


report("langchain-ollama", "langchain-core")
