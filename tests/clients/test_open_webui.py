"""Open WebUI's backend, over Ollama's API and over OpenAI's."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from clients.conftest import FRANCE, Got, RunClient, assert_alike_texts_are_near

pytestmark = [
    pytest.mark.engine,
    pytest.mark.clients,
    pytest.mark.timeout(600),
    pytest.mark.skipif(sys.version_info >= (3, 13), reason="Open WebUI needs Python 3.11 or 3.12"),
]


@pytest.fixture(scope="module")
def got(run_python: RunClient) -> Got:
    return run_python("open_webui_backend", environment="open-webui")


def deltas(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [choice["delta"] for event in events for choice in event.get("choices", [])]


def text(events: list[dict[str, Any]], field: str = "content") -> str:
    return "".join(delta.get(field) or "" for delta in deltas(events))


def arguments(call: dict[str, Any]) -> tuple[str, Any]:
    return call["function"]["name"], json.loads(call["function"]["arguments"])


def test_the_models_are_listed_through_both_apis(got: Got) -> None:
    models = got["models"]

    assert ["smollm2:135m", "ollama"] in models["all"]
    assert "smollm2:135m" in models["ollama"]
    assert "smollm2:135m" in models["openai"]
    assert models["version"].count(".") == 2


def test_chat_answers_and_streams_the_same_words(got: Got) -> None:
    assert got["chat"]["choices"][0]["message"]["content"] == FRANCE
    assert got["chat"]["usage"]["completion_tokens"] == 8
    assert text(got["stream"]) == FRANCE
    assert len(deltas(got["stream"])) > 2


def test_a_tool_is_called_and_its_result_leads_to_an_answer(got: Got) -> None:
    (call,) = got["tools"]["choices"][0]["message"]["tool_calls"]
    (streamed,) = (call for delta in deltas(got["tools_stream"]) for call in delta.get("tool_calls") or [])

    assert arguments(call) == arguments(streamed) == ("get_weather", {"city": "Oslo"})
    assert got["tool_loop"]["choices"][0]["message"]["content"].strip() == "It is sunny there."


def test_thinking_streams_beside_the_answer(got: Got) -> None:
    assert text(got["thinking"], "reasoning_content").strip() == "Air scatters light."
    assert text(got["thinking"]).strip() == "Because air scatters blue light most."


def test_its_proxies_pass_the_streams_of_both_apis_on(got: Got) -> None:
    assert "".join(record["message"]["content"] for record in got["ollama_proxy"]) == FRANCE
    assert got["ollama_proxy"][-1]["done"]
    assert text(got["openai_proxy"]) == FRANCE


def test_embeddings_are_near_for_alike_texts(got: Got) -> None:
    assert_alike_texts_are_near(got["embed"])


def test_a_refusal_arrives_in_ollamas_words(got: Got) -> None:
    status, body = got["errors"]["tools without support"]

    assert status == 400
    assert "does not support tools" in json.dumps(body)
