"""Ollama's own Python client."""

from __future__ import annotations

import pytest

from clients.conftest import FRANCE, Got, RunClient, assert_alike_texts_are_near, assert_black_is_not_white

pytestmark = [pytest.mark.engine, pytest.mark.clients, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def got(run_python: RunClient) -> Got:
    return run_python("ollama_python")


def test_list_names_the_models_with_sizes_digests_and_details(got: Got) -> None:
    models = {model["model"]: model for model in got["listed"]["models"]}

    assert {"smollm2:135m", "all-minilm:latest"} <= set(models)
    chat = models["smollm2:135m"]
    assert chat["size"] > 90_000_000
    assert len(chat["digest"]) == 64
    assert chat["modified_at"]
    assert chat["details"]["family"] == "llama"
    assert (chat["details"]["format"], chat["details"]["quantization_level"]) == ("gguf", "Q4_1")
    assert chat["details"]["parameter_size"] == "134.52M"


def test_show_describes_what_each_model_can_do(got: Got) -> None:
    chat, embedding, tools = got["shown"].values()

    assert chat["capabilities"] == ["completion"]
    assert embedding["capabilities"] == ["embedding"]
    assert set(tools["capabilities"]) == {"completion", "tools", "thinking"}
    assert chat["modelinfo"]["general.architecture"] == "llama"
    assert chat["modelinfo"]["llama.context_length"] == 8192
    assert "<|im_start|>" in chat["template"]
    assert "stop" in chat["parameters"]


def test_chat_answers_and_counts(got: Got) -> None:
    reply = got["chat"]

    assert reply["message"] == {"role": "assistant", "content": FRANCE}
    assert (reply["done"], reply["done_reason"]) == (True, "stop")
    assert (reply["prompt_eval_count"], reply["eval_count"]) == (16, 8)
    assert reply["total_duration"] >= reply["prompt_eval_duration"] + reply["eval_duration"] > 0


def test_chat_streams_the_same_words(got: Got) -> None:
    *pieces, last = got["chat_stream"]

    assert 1 < len(pieces) <= 7  # one for each token, unless the machine is busy
    assert "".join(piece["message"]["content"] for piece in pieces) == FRANCE
    assert not any(piece["done"] for piece in pieces)
    assert (last["done"], last["done_reason"], last["eval_count"]) == (True, "stop", 8)


def test_a_conversation_goes_on(got: Got) -> None:
    first, second = got["conversation"]

    assert second["prompt_eval_count"] > first["prompt_eval_count"] + first["eval_count"]


def test_generate_answers_and_streams_the_same_words(got: Got) -> None:
    *pieces, last = got["generate_stream"]

    assert got["generate"]["response"] == FRANCE
    assert len(pieces) > 1
    assert "".join(piece["response"] for piece in pieces) == FRANCE
    assert last["context"] == got["generate"]["context"]


def test_an_answer_that_was_cut_says_so(got: Got) -> None:
    assert got["cut_short"]["done_reason"] == "length"
    assert got["cut_short"]["eval_count"] == 3


def test_keep_alive_loads_and_ps_tells_until_when(got: Got) -> None:
    (running,) = (model for model in got["loaded"]["ps"]["models"] if model["name"] == "smollm2:135m")

    assert got["loaded"]["load"]["done_reason"] == "load"
    assert running["context_length"] == 8192
    assert running["size"] > 0
    assert running["expires_at"]


def test_a_schema_shapes_the_answer(got: Got) -> None:
    assert got["structured"] == {"name": "Ann", "age": 31}


def test_json_mode_opens_an_object(got: Got) -> None:
    assert got["json_mode"].lstrip().startswith("{")


def test_logprobs_come_for_each_token(got: Got) -> None:
    logprobs = got["logprobs"]["logprobs"]

    assert "".join(token["token"] for token in logprobs).startswith(FRANCE)
    assert {len(token["top_logprobs"]) for token in logprobs} == {2}
    assert all(token["logprob"] <= 0 for token in logprobs)


def test_a_function_becomes_a_tool_and_is_called(got: Got) -> None:
    reply = got["tools"]

    assert _calls([reply]) == [("get_weather", {"city": "Oslo"})]
    assert reply["done_reason"] == "stop"
    assert not reply["message"]["content"]


def test_tool_calls_stream_whole(got: Got) -> None:
    assert _calls(got["tools_stream"]) == [("get_weather", {"city": "Oslo"})]
    assert "<tool_call>" not in "".join(piece["message"]["content"] for piece in got["tools_stream"])


def test_the_result_of_a_tool_leads_to_an_answer(got: Got) -> None:
    assert got["tool_loop"]["message"]["content"].strip() == "It is sunny there."
    assert not _calls([got["tool_loop"]])


def test_thinking_is_kept_from_the_answer_and_can_be_turned_off(got: Got) -> None:
    on, off, stream = (got["thinking"][key] for key in ("on", "off", "stream"))

    assert on["message"]["thinking"].strip() == "Air scatters light."
    assert on["message"]["content"].strip() == "Because air scatters blue light most."
    assert off["message"] == {"role": "assistant", "content": "Because air scatters blue light most."}
    assert "".join(piece["message"].get("thinking", "") for piece in stream) == on["message"]["thinking"]
    assert "".join(piece["message"]["content"] for piece in stream) == on["message"]["content"]


def test_an_answer_depends_on_the_image(got: Got) -> None:
    assert_black_is_not_white(got["images"]["chat"])
    assert got["images"]["generate"] == got["images"]["chat"]


def test_embeddings_are_near_for_alike_texts(got: Got) -> None:
    assert_alike_texts_are_near(got["embed"]["embeddings"])
    assert got["embed"]["prompt_eval_count"] == 27


def test_a_model_that_chats_makes_embeddings_too(got: Got) -> None:
    assert len(got["embed_with_a_chat_model"]["embeddings"][0]) == 576


def test_the_older_route_of_embeddings_gives_one_vector(got: Got) -> None:
    assert len(got["embeddings"]["embedding"]) == 384


def test_pull_reports_progress_up_to_success(got: Got) -> None:
    first, *parts, last = got["pull"]["stream"]

    assert got["pull"]["whole"]["status"] == last["status"] == "success"
    assert first["status"] == "pulling manifest"
    layers = [part for part in parts if "digest" in part]
    assert layers
    assert all(part["status"].startswith("pulling ") and part["completed"] <= part["total"] for part in layers)


def test_a_model_is_copied_and_deleted(got: Got) -> None:
    copied, with_copy, deleted, without = got["copy_and_delete"]

    assert copied["status"] == deleted["status"] == "success"
    assert "a-copy:latest" in with_copy
    assert "a-copy:latest" not in without
    assert "smollm2:135m" in without


def test_the_asynchronous_client_gets_the_same(got: Got) -> None:
    replies = got["asynchronous"]

    assert replies["chat"]["message"]["content"] == FRANCE
    assert "".join(piece["message"]["content"] for piece in replies["stream"]) == FRANCE
    assert replies["generate"]["response"] == FRANCE
    assert len(replies["embed"]["embeddings"][0]) == 384
    assert replies["show"]["capabilities"] == ["completion"]
    assert {model["model"] for model in replies["list"]["models"]} >= {"smollm2:135m"}
    assert {model["name"] for model in replies["ps"]["models"]} >= {"smollm2:135m"}


@pytest.mark.parametrize(
    ("case", "status", "text"),
    [
        ("unknown model", 404, "model 'nosuchmodel' not found"),
        ("unknown model, streamed", 404, "model 'nosuchmodel' not found"),
        ("unknown model, asynchronously", 404, "model 'nosuchmodel' not found"),
        ("show of an unknown model", 404, "model 'nosuchmodel' not found"),
        ("delete of an unknown model", 404, "model 'nosuchmodel' not found"),
        ("copy of an unknown model", 404, 'model "nosuchmodel" not found'),
        ("tools without support", 400, "registry.ollama.ai/library/smollm2:135m does not support tools"),
        ("thinking without support", 400, '"smollm2:135m" does not support thinking'),
        ("chat without support", 400, '"all-minilm:latest" does not support chat'),
        ("image without support", 400, "registry.ollama.ai/library/smollm2:135m does not support vision"),
        ("wrong option", 400, 'option "temperature" must be of type float32'),
        ("pull of an unknown model", None, "pull model manifest: file does not exist"),
    ],
)
def test_a_refusal_is_the_clients_own_exception_with_ollamas_text(
    got: Got, case: str, status: int | None, text: str
) -> None:
    error = got["errors"][case]

    assert error["type"] == "ResponseError"
    assert text in error["text"]
    assert status in {None, error["status"]}


def _calls(replies: list[dict[str, dict[str, list[dict[str, dict[str, object]]]]]]) -> list[tuple[object, object]]:
    calls = [call["function"] for reply in replies for call in reply["message"].get("tool_calls", [])]
    return [(call["name"], call["arguments"]) for call in calls]
