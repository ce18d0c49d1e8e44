"""Ollama's own JavaScript client, on Node.js."""

from __future__ import annotations

import pytest

from clients.conftest import FRANCE, Got, RunClient, assert_alike_texts_are_near, assert_black_is_not_white

pytestmark = [pytest.mark.engine, pytest.mark.clients, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def got(run_node: RunClient) -> Got:
    return run_node("ollama_js")


def test_list_show_ps_and_version_describe_the_server(got: Got) -> None:
    listed = {model["name"]: model for model in got["list"]["models"]}

    assert {"smollm2:135m", "all-minilm:latest"} <= set(listed)
    assert listed["smollm2:135m"]["details"]["context_length"] == 8192
    assert got["show"]["capabilities"] == ["completion"]
    assert got["show"]["model_info"]["general.architecture"] == "llama"
    assert {"smollm2:135m", "all-minilm:latest"} <= {model["name"] for model in got["ps"]["models"]}
    assert all(part.isdigit() for part in got["version"]["version"].split("."))


def test_chat_answers_and_streams_the_same_words(got: Got) -> None:
    *pieces, last = got["chat_stream"]

    assert got["chat"]["message"] == {"role": "assistant", "content": FRANCE}
    assert 1 < len(pieces) <= 7  # one for each token, unless the machine is busy
    assert "".join(piece["message"]["content"] for piece in pieces) == FRANCE
    assert (last["done"], last["done_reason"], last["eval_count"]) == (True, "stop", 8)


def test_generate_answers_and_streams_the_same_words(got: Got) -> None:
    *pieces, last = got["generate_stream"]

    assert got["generate"]["response"] == FRANCE
    assert "".join(piece["response"] for piece in pieces) == FRANCE
    assert last["context"] == got["generate"]["context"]


def test_a_schema_shapes_the_answer(got: Got) -> None:
    assert got["structured"] == {"name": "Ann", "age": 31}


def test_a_tool_is_called_and_its_result_leads_to_an_answer(got: Got) -> None:
    (call,) = got["tools"]["message"]["tool_calls"]
    (streamed,) = (call for piece in got["tools_stream"] for call in piece["message"].get("tool_calls", []))

    assert (call["function"]["name"], call["function"]["arguments"]) == ("get_weather", {"city": "Oslo"})
    assert (streamed["function"]["name"], streamed["function"]["arguments"]) == ("get_weather", {"city": "Oslo"})
    assert got["tool_loop"]["message"]["content"].strip() == "It is sunny there."


def test_thinking_streams_beside_the_answer(got: Got) -> None:
    messages = [piece["message"] for piece in got["thinking"]]

    assert "".join(message.get("thinking", "") for message in messages).strip() == "Air scatters light."
    assert "".join(message["content"] for message in messages).strip() == "Because air scatters blue light most."


def test_an_answer_depends_on_the_image(got: Got) -> None:
    assert_black_is_not_white(got["images"])


def test_embeddings_are_near_for_alike_texts(got: Got) -> None:
    assert_alike_texts_are_near(got["embed"]["embeddings"])
    assert len(got["embeddings"]["embedding"]) == 384


def test_abort_ends_the_stream_and_nothing_else(got: Got) -> None:
    assert got["abort"]["raised"]["type"] == "AbortError"
    assert 3 <= got["abort"]["pieces"] < 20  # what had arrived with the third piece is handed out, too
    assert got["abort"]["after"] == FRANCE


def test_pull_reports_progress_up_to_success(got: Got) -> None:
    assert got["pull"][0]["status"] == "pulling manifest"
    assert got["pull"][-1]["status"] == "success"
    assert [part for part in got["pull"] if "digest" in part and part["completed"] == part["total"]]


def test_a_model_is_copied_and_deleted(got: Got) -> None:
    copied, with_copy, deleted, without = got["copy_and_delete"]

    assert copied == deleted == "success"
    assert "a-copy-by-node:latest" in with_copy
    assert "a-copy-by-node:latest" not in without


@pytest.mark.parametrize(
    ("case", "status", "text"),
    [
        ("unknown model", 404, "model 'nosuchmodel' not found"),
        ("unknown model, streamed", 404, "model 'nosuchmodel' not found"),
        ("show of an unknown model", 404, "model 'nosuchmodel' not found"),
        ("delete of an unknown model", 404, "model 'nosuchmodel' not found"),
        ("tools without support", 400, "registry.ollama.ai/library/smollm2:135m does not support tools"),
    ],
)
def test_a_refusal_is_the_clients_own_error_with_ollamas_text(got: Got, case: str, status: int, text: str) -> None:
    assert got["errors"][case] == {"type": "ResponseError", "text": text, "status": status}


def test_what_fails_within_a_stream_is_thrown(got: Got) -> None:
    assert got["errors"]["pull of an unknown model"]["text"].startswith("pull model manifest: file does not exist")


def test_a_model_that_chats_makes_embeddings_too(got: Got) -> None:
    assert len(got["embedWithAChatModel"]["embeddings"][0]) == 576
