"""Genkit's Ollama plugin, on Node.js."""

from __future__ import annotations

import pytest

from clients.conftest import FRANCE, Got, RunClient, assert_alike_texts_are_near

pytestmark = [pytest.mark.engine, pytest.mark.clients, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def got(run_node: RunClient) -> Got:
    return run_node("genkit_js")


def test_a_model_answers_and_streams_the_same_words(got: Got) -> None:
    assert got["chat"] == FRANCE
    assert len(got["stream"]["pieces"]) > 2
    assert "".join(got["stream"]["pieces"]) == got["stream"]["text"] == FRANCE


def test_a_tool_is_called_and_its_result_leads_to_an_answer(got: Got) -> None:
    assert got["tools"] == got["tools_stream"] == [["get_weather", {"city": "Oslo"}]]
    assert got["tool_loop"].strip() == "It is sunny there."


def test_embeddings_are_near_for_alike_texts(got: Got) -> None:
    assert_alike_texts_are_near(got["embed"])


def test_an_unknown_model_is_an_error(got: Got) -> None:
    assert "model 'nosuchmodel' not found" in got["errors"]["unknown model"]["text"]
