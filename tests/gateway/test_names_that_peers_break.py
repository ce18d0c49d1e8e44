"""Defects that other servers with Ollama's API ship, each a promise here, with the tests that keep it.

Tests without a file are in this one: they go as far as gateway and wire go. `engine/` has those that need a real model.

1. An empty prompt without `keep_alive` unloads the model:
   test_an_empty_prompt_without_keep_alive_preloads_and_does_not_unload,
   test_an_empty_keep_alive_is_an_error_and_not_an_unload
2. The last record has no counts, no durations and no `done_reason`:
   engine/test_conversations.py: test_chat_lines_have_exactly_the_recorded_keys,
   test_generate_lines_have_exactly_the_recorded_keys
3. `think` does nothing on vLLM, and its levels are dropped:
   worker/test_thinking_switch.py: test_the_switch_and_the_level_of_think_reach_the_chat_template
4. Only `reasoning_content` is read, which vLLM does not send any more, so thinking is lost:
   worker/test_thinking_families.py: test_thinking_and_answer_come_apart_without_marks,
   test_a_reply_cut_off_in_its_thinking_is_thinking_only
5. Fields are left out of the request, and `num_predict: -1` is taken for a number of tokens:
   test_no_field_of_a_request_is_dropped_on_the_way_to_the_worker
   ollama/test_ollama_options.py: test_an_option_with_an_effect_becomes_a_sampling_value
   engine/test_options.py: test_without_a_limit_the_model_speaks_until_it_stops
6. `/api/tags` says `gguf` and size 0 of safetensors, and the version is always 0.1.0:
   test_tags_says_the_real_format_and_the_real_size, test_the_version_is_numeric_and_of_this_age
7. `/api/generate` uses no chat template, and glues `system` to the prompt:
   worker/test_worker_conversation.py: test_a_completion_is_a_conversation_of_one_turn
   engine/test_conversations.py: test_context_is_the_prompt_in_the_chat_template_and_then_the_answer,
   test_system_stands_before_the_prompt_in_generate
8. Text in the finishing chunk is thrown away, and `done_reason` is always `stop`:
   test_text_in_the_finishing_chunk_is_not_thrown_away
   engine/test_conversations.py: test_an_answer_longer_than_num_predict_ends_by_length_and_a_finished_one_by_stop
9. `tools`, `format`, `think`, `images`, `keep_alive` are accepted and ignored; a reply has 2048 tokens at most:
   test_no_field_of_a_request_is_dropped_on_the_way_to_the_worker, test_a_keep_alive_is_kept_to
   gateway/test_checks.py: test_generate_refuses_for_the_first_mistake,
   test_chat_refuses_for_the_first_mistake
   engine/test_options.py: test_a_schema_decides_the_shape_of_the_answer,
   test_tools_are_refused_by_a_model_without_them_and_no_tools_are_fine,
   test_without_a_limit_the_model_speaks_until_it_stops
10. `/api/chat` ignores `tools` and `format`; an error in a stream is a `done_reason` with status 200 and no text:
   test_an_error_in_a_stream_is_an_error_and_not_a_done_reason,
   test_an_error_before_the_stream_has_its_status_and_is_no_stream
   worker/test_tool_families.py: test_a_call_comes_with_its_arguments_as_an_object
11. `/api/ps` always says that a model expires in 24 hours and holds nothing:
   test_ps_says_what_a_model_holds_and_not_0, test_a_keep_alive_is_kept_to
12. All durations are 0:
   worker/test_worker_timing.py: test_the_figures_are_the_engines_own
   engine/test_timings.py: test_load_prompt_and_eval_add_up_to_the_total_within_two_percent
13. A chat is plain text with `User:` before it, and `eval_count` counts chunks:
   worker/test_worker_conversation.py: test_a_chat_is_the_clients_messages
   engine/test_conversations.py: test_a_system_message_of_a_chat_renders_like_system_of_generate
   engine/test_options.py: test_num_predict_is_the_number_of_tokens_generated
14. Routes are missing, and `http://` is forced to `https://`:
   test_show_and_status_are_there_and_take_the_empty_fields_of_the_cli,
   test_a_client_behind_another_scheme_is_answered_over_the_one_it_used
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from vllama.ollama.status import NDJSON

from .conftest import MODEL, Running

pytestmark = pytest.mark.anyio

GENERATE, CHAT = "/api/generate", "/api/chat"
PROMPT = {"model": MODEL, "prompt": "hi"}
MESSAGES = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}


def test_every_defect_has_its_tests() -> None:
    defects = re.split(r"(?m)^([0-9]+)\. ", __doc__ or "")[1:]
    assert [int(number) for number in defects[::2]] == list(range(1, 15))
    for defect in defects[1::2]:
        file, tests = Path(__file__), 0
        for path, name in re.findall(r"(?:^| )(?:(\w+/test_\w+\.py):|(test_\w+)(?=,|$))", defect, re.MULTILINE):
            if path:
                file = Path(__file__).parents[1] / path
            else:
                tests += 1
                assert f"def {name}(" in file.read_text(), f"{file.name} has no {name}"
        assert tests, defect


@pytest.mark.parametrize("path", [GENERATE, CHAT])
async def test_an_empty_prompt_without_keep_alive_preloads_and_does_not_unload(gateway: Running, path: str) -> None:
    for _ in range(2):
        assert (await gateway.post(path, {"model": MODEL})).json()["done_reason"] == "load"
    assert [model["name"] for model in (await gateway.get("/api/ps")).json()["models"]] == [MODEL]
    assert len(gateway.launcher.workers) == 1


async def test_an_empty_keep_alive_is_an_error_and_not_an_unload(gateway: Running) -> None:
    await gateway.load()
    reply = await gateway.post(GENERATE, {"model": MODEL, "keep_alive": ""})
    assert (reply.status_code, reply.json()) == (400, {"error": 'time: invalid duration ""'})
    assert len((await gateway.get("/api/ps")).json()["models"]) == 1


async def test_a_keep_alive_is_kept_to(gateway: Running) -> None:
    await gateway.load(keep_alive="2h")
    (model,) = (await gateway.get("/api/ps")).json()["models"]
    left = datetime.fromisoformat(model["expires_at"]) - datetime.now(UTC)
    assert timedelta(hours=1.9) < left < timedelta(hours=2)


async def test_ps_says_what_a_model_holds_and_not_0(gateway: Running) -> None:
    await gateway.load()
    (model,) = (await gateway.get("/api/ps")).json()["models"]
    assert (model["size"], model["size_vram"], model["context_length"]) == (1000, 800, 4096)


async def test_the_version_is_numeric_and_of_this_age(gateway: Running) -> None:
    major, minor, patch = (await gateway.get("/api/version")).json()["version"].split(".")
    assert (int(major), int(minor), int(patch)) >= (0, 24, 0)


async def test_tags_says_the_real_format_and_the_real_size(gateway: Running) -> None:
    (model,) = (await gateway.get("/api/tags")).json()["models"]
    assert model["details"]["format"] == "safetensors"
    assert model["size"] == sum(file.size for file in gateway.store.list()[0].files) > 0
    assert len(model["digest"]) == 64
    assert model["name"] == model["model"]


async def test_show_and_status_are_there_and_take_the_empty_fields_of_the_cli(gateway: Running) -> None:
    assert (await gateway.get("/api/status")).status_code == 200
    body = {"model": "", "name": MODEL, "system": "", "template": "", "verbose": False, "options": None}
    assert (await gateway.post("/api/show", body)).status_code == 200
    body = {"model": MODEL, "prompt": "", "suffix": "", "system": "", "template": "", "options": None}
    assert (await gateway.post(GENERATE, body)).json()["done_reason"] == "load"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (GENERATE, PROMPT | {"format": "json"}),
        (GENERATE, PROMPT | {"format": {"properties": {"a": {"$ref": "#/$defs/a"}}, "$defs": {"a": {}}}}),
        (GENERATE, PROMPT | {"system": "Be brief."}),
        (GENERATE, PROMPT | {"raw": True}),
        (GENERATE, PROMPT | {"logprobs": True, "top_logprobs": 3}),
        (GENERATE, PROMPT | {"context": [1, 2, 3]}),
        (GENERATE, PROMPT | {"think": False}),
        (GENERATE, PROMPT | {"options": {"min_p": 0.1, "repeat_penalty": 1.1, "num_predict": -1, "stop": ["x"]}}),
        (GENERATE, PROMPT | {"truncate": False, "shift": False, "keep_alive": "10m", "stream": False}),
        (CHAT, MESSAGES | {"format": "json", "options": {"seed": 7, "num_ctx": 512}}),
        (CHAT, MESSAGES | {"tools": []}),
    ],
)
async def test_no_field_of_a_request_is_dropped_on_the_way_to_the_worker(
    gateway: Running, path: str, body: dict[str, Any]
) -> None:
    worker = await gateway.load()
    sent = gateway.send("POST", path, json=body)
    exchange = await worker.next_exchange()
    assert exchange.json == body
    exchange.reply(b"{}")
    await sent


async def test_text_in_the_finishing_chunk_is_not_thrown_away(gateway: Running) -> None:
    worker = await gateway.load()
    sent = gateway.send("POST", GENERATE, json=PROMPT)
    exchange = await worker.next_exchange()
    exchange.start(NDJSON)
    exchange.write(b'{"response":"a","done":false}\n')
    exchange.finish(b'{"response":"b","done":false}\n{"response":"","done":true,"done_reason":"length"}\n')
    assert (await sent).text.splitlines()[1:] == [
        '{"response":"b","done":false}',
        '{"response":"","done":true,"done_reason":"length"}',
    ]


async def test_an_error_in_a_stream_is_an_error_and_not_a_done_reason(gateway: Running) -> None:
    worker = await gateway.load()
    sent = gateway.send("POST", GENERATE, json=PROMPT)
    exchange = await worker.next_exchange()
    exchange.start(NDJSON)
    exchange.write(b'{"response":"a","done":false}\n')
    worker.die(last_words=True)
    *_, last = (await sent).text.splitlines()
    assert last.startswith('{"error":"')
    assert '"done"' not in last


@pytest.mark.parametrize("path", [GENERATE, CHAT])
async def test_an_error_before_the_stream_has_its_status_and_is_no_stream(gateway: Running, path: str) -> None:
    reply = await gateway.post(path, {"model": "nope", "stream": True})
    assert reply.status_code == 404
    assert reply.headers["content-type"] == "application/json; charset=utf-8"
    assert list(reply.json()) == ["error"]


async def test_no_reply_of_the_gateway_has_a_null(gateway: Running) -> None:
    """Clients that expect an absent key fail on null. `model_info` has two, which Ollama has as well."""
    loaded = await gateway.post(GENERATE, {"model": MODEL})
    replies = [loaded, await gateway.post(CHAT, {"model": MODEL}), await gateway.post("/api/show", {"model": MODEL})]
    paths = ("/api/tags", "/api/ps", "/api/version", "/api/status", "/v1/models", f"/v1/models/{MODEL}")
    replies += [await gateway.get(path) for path in paths]
    replies.append(await gateway.post(GENERATE, {"model": MODEL, "keep_alive": 0}))
    for reply in replies:
        assert reply.status_code == 200
        assert list(nulls(reply.json() | {"model_info": {}})) == [], reply.url


def nulls(value: Any, path: str = "") -> Iterator[str]:
    if value is None:
        yield path
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from nulls(item, f"{path}.{key}")
    elif isinstance(value, list):
        for item in value:
            yield from nulls(item, f"{path}[]")


async def test_a_load_reply_has_no_figures_and_no_context(gateway: Running) -> None:
    assert set((await gateway.post(GENERATE, {"model": MODEL})).json()) == {
        "model",
        "created_at",
        "response",
        "done",
        "done_reason",
    }


async def test_a_client_behind_another_scheme_is_answered_over_the_one_it_used(gateway: Running) -> None:
    """No redirect to https, which some servers force."""
    reply = await gateway.get("/", headers={"x-forwarded-proto": "https"})
    assert (reply.status_code, reply.text) == (200, "Ollama is running")
