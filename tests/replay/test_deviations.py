"""What may be otherwise, and no more than that."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from replay import results
from replay.deviations import DEVIATIONS, Verdict, judge
from replay.recording import Exchange, Response, exchanges
from replay.rules import Deviation


def answered(status: int, body: Any, content_type: str = "application/json; charset=utf-8") -> Response:
    text = json.dumps(body).encode()
    return Response(status, "", (("content-type", content_type), ("content-length", str(len(text)))), text)


def verdict(name: str, actual: Response) -> Verdict:
    return judge(exchanges()[name], replace(actual, reason=actual.reason or exchanges()[name].response.reason))


def edited(name: str, before: str, after: str) -> Response:
    response = exchanges()[name].response
    body = response.body.decode()
    assert before in body
    return replace(response, body=body.replace(before, after).encode())


def test_a_response_like_the_recorded_one_is_the_same() -> None:
    for exchange in exchanges().values():
        assert judge(exchange, exchange.response).word == "same"


def test_every_exchange_has_a_result() -> None:
    assert list(results.committed()) == list(exchanges())


def test_no_exchange_is_different() -> None:
    assert results.counts(results.committed())["different"] == 0


@pytest.mark.parametrize("rule", DEVIATIONS, ids=lambda rule: rule.id)
def test_every_rule_occurs(rule: Deviation) -> None:
    assert any(rule.id in row.rules for row in results.committed().values())


def test_ids_of_rules_differ() -> None:
    assert len({rule.id for rule in DEVIATIONS}) == len(DEVIATIONS)


def test_a_wrong_option_is_refused_with_the_same_text() -> None:
    name = "140_generate_options_temperature_string"
    error = {"error": 'option "temperature" must be of type float32'}

    assert verdict(name, answered(400, error)).rules == ("option types",)
    assert verdict(name, answered(422, error)).word == "different"
    assert verdict(name, answered(400, {"error": "temperature is wrong"})).word == "different"


def test_what_is_accepted_leniently_has_to_be_answered_like_a_chat() -> None:
    name = "235_chat_keep_alive_string_300"
    chat = exchanges()["200_chat_nonstream"].response

    assert judge(exchanges()[name], chat).rules == ("lenient input",)
    assert judge(exchanges()[name], replace(chat, body=chat.body.replace(b'"done":true', b'"done":false'))).left
    assert judge(exchanges()["234_chat_keep_alive_abc"], chat).word == "different"


def test_a_modelfile_may_differ_in_its_template_but_not_in_its_parameters() -> None:
    name = "021_show_name_field"
    response = exchanges()[name].response
    show = json.loads(response.body)

    def shown(**changes: Any) -> Verdict:
        return judge(exchanges()[name], replace(response, body=json.dumps({**show, **changes}).encode()))

    jinja = show["modelfile"].replace("{{- range .Messages }}", "{%- for m in messages %}")
    assert shown(modelfile=jinja).rules == ("template",)
    assert shown(modelfile=show["modelfile"].replace("PARAMETER stop", "PARAMETER top")).word == "different"
    assert shown(capabilities=["completion", "tools"]).word == "different"
    assert shown(template="no template").word == "different"


def test_the_error_of_a_pull_has_to_begin_as_ollamas_does() -> None:
    name = "705_pull_fakereg_manifest_404_nonstream"
    known = "pull model manifest: file does not exist: no known source for 'x'"

    assert verdict(name, answered(500, {"error": known}, "application/json")).rules == ("catalogue",)
    assert verdict(name, answered(500, {"error": "no known source"}, "application/json")).word == "different"
    assert verdict(name, answered(500, {"error": known})).word == "different"


def test_only_a_whole_reply_may_be_framed_otherwise() -> None:
    exchange: Exchange = exchanges()["434_create_no_from_no_files"]
    whole = [header for header in exchange.response.headers if header[0] != "transfer-encoding"]
    length = ("content-length", str(len(exchange.response.body)))

    assert judge(exchange, replace(exchange.response, headers=(*whole, length))).rules == ("framing",)
    assert judge(exchange, replace(exchange.response, headers=tuple(whole))).word == "different"
    stream = exchanges()["103_generate_stream"]
    assert judge(stream, replace(stream.response, headers=(*whole, length))).word == "different"


def test_v1_may_have_keys_of_vllm_but_none_that_is_not_known() -> None:
    name = "525_v1_chat_stop_string"

    assert judge(exchanges()[name], edited(name, '"usage":', '"metrics":null,"usage":')).rules == ("v1 keys",)
    assert judge(exchanges()[name], edited(name, '"usage":', '"surprise":null,"usage":')).word == "different"
    assert judge(exchanges()[name], edited(name, '"system_fingerprint":"fp_ollama",', "")).rules == ("v1 fingerprint",)
    assert judge(exchanges()[name], edited(name, '"role":"assistant",', "")).word == "different"
    assert judge(exchanges()["102_generate_nonstream"], edited("102_generate_nonstream", "{", '{"metrics":1,')).left


def test_tools_may_be_json_in_a_prompt_that_is_the_same_otherwise() -> None:
    name = "808_chat_tool_result_roundtrip_rendered"
    shown = json.loads(exchanges()[name].response.body)
    tool = json.dumps(exchanges()[name].request.fields["tools"][0], separators=(",", ":"))
    rendered = shown["_debug_info"]["rendered_template"]
    before, _, after = rendered.partition("<|im_end|>")

    def rendering(text: str) -> Verdict:
        body = json.dumps({**shown, "_debug_info": {"rendered_template": text}}).encode()
        return judge(exchanges()[name], replace(exchanges()[name].response, body=body))

    start = before[: before.index("{function")]
    assert rendering(f"{start}{tool}<|im_end|>{after}").rules == ("tools as JSON",)
    assert rendering(f"{start}{tool}<|im_end|>{after} ").word == "different"
    assert rendering(f"{start}{tool[:-1]}<|im_end|>{after}").word == "different"


def test_a_prompt_with_a_developer_may_be_a_token_shorter_and_no_more() -> None:
    name = "535_v1_chat_developer_role"
    counts = '"prompt_tokens":25,"completion_tokens":8,"total_tokens":33'

    def counted(tokens: int) -> Verdict:
        changed = counts.replace("25", str(tokens)).replace("33", str(tokens + 8))
        return judge(exchanges()[name], edited(name, counts, changed))

    assert counted(24).rules == ("developer",)
    assert counted(23).word == counted(26).word == "different"


def test_the_tables_count_and_list_every_exchange() -> None:
    rows = {
        "001_a": results.Result("same"),
        "002_b": results.Result("allowed deviation", (DEVIATIONS[0].id,)),
        "861_queue_3": results.Result("different", (), ("status: 200 → 503",)),
    }
    text = "".join(results.tables(rows))

    assert text.startswith("1 same, 1 allowed deviation, 1 different.\n")
    assert "| 002 |\n" in text
    assert "| 861_queue_3 | status: 200 → 503 |\n" in text
    assert text.endswith("Same: 001.\n")
