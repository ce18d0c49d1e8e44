from __future__ import annotations

import logging
import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from vllama.store.description import describe
from vllama.store.listing import details, show_reply, tags_item, tags_reply
from vllama.store.manifest import ChatMessage, Manifest
from vllama.store.model_store import ModelStore

from .conftest import BuildSnapshot, make_manifest

Recorded = Callable[[str], Any]
STOPS = {"stop": ["<|im_start|>", "<|im_end|>"]}

# Ollama 0.24 does not have them yet; later releases do (contract §4.2).
SINCE_RECORDED = {"capabilities"}
LENGTHS = {"context_length", "embedding_length"}


def _show(manifest: Manifest, *, verbose: bool = False, **changes: Any) -> dict[str, Any]:
    return show_reply(manifest, describe(manifest), verbose=verbose, **changes)


def test_tags_have_the_keys_of_ollama(build_snapshot: BuildSnapshot, recorded: Recorded) -> None:
    manifest = make_manifest(snapshot=build_snapshot())
    item = tags_item(manifest, describe(manifest))
    expected = recorded("005_get_api_tags")["models"][0]
    assert item.keys() == expected.keys() | SINCE_RECORDED
    assert item["details"].keys() == expected["details"].keys() | LENGTHS
    assert {key: type(value) for key, value in item.items() if key in expected} == {
        key: type(value) for key, value in expected.items()
    }


def test_a_tags_item_tells_name_size_and_digest(build_snapshot: BuildSnapshot) -> None:
    manifest = make_manifest("me/Foo", build_snapshot())
    item = tags_item(manifest, describe(manifest))
    assert item["name"] == item["model"] == "me/Foo:latest"
    assert item["size"] == manifest.size > 0
    assert re.fullmatch("[0-9a-f]{64}", item["digest"])
    assert item["capabilities"] == ["completion"]


def test_times_carry_their_offset(build_snapshot: BuildSnapshot) -> None:
    manifest = make_manifest(snapshot=build_snapshot())
    text = tags_item(manifest, describe(manifest))["modified_at"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?[+-]\d\d:\d\d", text)
    assert datetime.fromisoformat(text) == manifest.modified_at


def test_details_keep_six_keys_even_if_nothing_is_known(build_snapshot: BuildSnapshot) -> None:
    config = {"model_type": "", "max_position_embeddings": None, "hidden_size": None}
    snapshot = build_snapshot(config=config, tensors={})
    assert details(describe(make_manifest(snapshot=snapshot))) == {
        "parent_model": "",
        "format": "safetensors",
        "family": "",
        "families": None,
        "parameter_size": "0",
        "quantization_level": "",
    }


def test_all_models_of_the_store_are_listed(store: ModelStore, build_snapshot: BuildSnapshot) -> None:
    assert tags_reply(store) == {"models": []}
    store.put(make_manifest("one", build_snapshot("a")))
    store.put(make_manifest("two", build_snapshot("b")))
    assert {model["name"] for model in tags_reply(store)["models"]} == {"one:latest", "two:latest"}


def test_a_model_without_its_files_does_not_hide_the_others(
    store: ModelStore, build_snapshot: BuildSnapshot, caplog: pytest.LogCaptureFixture
) -> None:
    store.put(make_manifest("good", build_snapshot("a")))
    store.put(make_manifest("bad", build_snapshot("b")))
    (store.list()[0].snapshot.parent / "b" / "config.json").unlink()
    with caplog.at_level(logging.WARNING):
        assert [model["name"] for model in tags_reply(store)["models"]] == ["good:latest"]
    assert "cannot list 'bad:latest'" in caplog.text


@pytest.mark.parametrize(("reply", "system"), [("021_show_name_field", ""), ("030_show_system_override", "be brief")])
def test_show_has_the_keys_of_ollama(
    build_snapshot: BuildSnapshot, recorded: Recorded, reply: str, system: str
) -> None:
    manifest = make_manifest(snapshot=build_snapshot(), parameters=STOPS)
    ours, theirs = _show(manifest, system=system), recorded(reply)
    assert ours.keys() == theirs.keys()
    assert {key: type(value) for key, value in ours.items()} == {key: type(value) for key, value in theirs.items()}
    assert ours["details"].keys() == theirs["details"].keys() | LENGTHS
    assert ours["tensors"][0].keys() == theirs["tensors"][0].keys()
    assert ours["parameters"] == theirs["parameters"]
    assert ours.get("system") == theirs.get("system")


def test_show_tells_what_clients_look_for_in_model_info(build_snapshot: BuildSnapshot, recorded: Recorded) -> None:
    ours = _show(make_manifest(snapshot=build_snapshot()))["model_info"]
    theirs = recorded("021_show_name_field")["model_info"]
    absent = theirs.keys() - ours.keys()
    # Facts of the GGUF file and of its tokenizer that a Hugging Face snapshot does not state.
    assert {key for key in absent if not key.startswith("tokenizer.ggml.")} == {
        "general.finetune",
        "general.languages",
        "general.license",
        "general.organization",
        "general.quantization_version",
        "general.size_label",
    }
    assert list(ours) == sorted(ours)


def test_the_modelfile_is_written_as_ollama_writes_it(build_snapshot: BuildSnapshot, recorded: Recorded) -> None:
    theirs = recorded("431_show_created")
    manifest = make_manifest(
        "mario",
        build_snapshot(),
        parameters={"num_ctx": 2048, "stop": ["<|im_end|>", "STOP"], "temperature": 0},
        system="You are Mario.",
        template="{{ .System }} USER: {{ .Prompt }} ASSISTANT: {{ .Response }}",
        license="MIT",
        messages=(ChatMessage("user", "hi"), ChatMessage("assistant", "It's-a me")),
    )
    ours = _show(manifest)
    assert ours["modelfile"] == re.sub(r"(?m)^FROM .*$", "FROM mario:latest", theirs["modelfile"])
    for key in ("parameters", "system", "template", "license", "messages"):
        assert ours[key] == theirs[key]


@pytest.mark.parametrize(
    ("system", "line"),
    [
        ("You are Mario.", "SYSTEM You are Mario.\n"),
        ("two\nlines", 'SYSTEM "two\nlines"\n'),
        (" blank", 'SYSTEM " blank"\n'),
        ('say "hi"\nthere', 'SYSTEM """say "hi"\nthere"""\n'),
    ],
)
def test_values_of_the_modelfile_are_quoted_where_needed(build_snapshot: BuildSnapshot, system: str, line: str) -> None:
    assert line in _show(make_manifest(snapshot=build_snapshot()), system=system)["modelfile"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.7, "0.7"),
        (1.0, "1"),
        (40, "40"),
        (True, "true"),
        ("a b", '"a b"'),
        ('"\n', r'"\"\n"'),
        (["</s>", "é"], '"</s>"\nstop                           "é"'),
    ],
)
def test_parameters_are_padded_and_spelled_as_in_go(build_snapshot: BuildSnapshot, value: object, text: str) -> None:
    manifest = make_manifest(snapshot=build_snapshot(), parameters={"stop": value})
    shown = _show(manifest)["parameters"]
    assert shown == f"stop                           {text}"
    for line in shown.split("\n"):
        assert re.match(r'^(\S+)\s+((?:".*")|\S+)$', line)  # as the Continue client reads it


def test_what_is_empty_is_left_out_of_show(build_snapshot: BuildSnapshot) -> None:
    snapshot = build_snapshot(files={"chat_template.jinja": None, "tokenizer.json": None, "vocab.txt": "a"})
    reply = _show(make_manifest(snapshot=snapshot))
    assert reply.keys() == {"modelfile", "details", "model_info", "tensors", "capabilities", "modified_at"}


def test_the_served_context_replaces_the_trained_one(build_snapshot: BuildSnapshot) -> None:
    reply = _show(make_manifest(snapshot=build_snapshot()), served_context=2048)
    assert reply["model_info"]["llama.context_length"] == 2048
    assert reply["details"]["context_length"] == 2048


def test_the_basename_can_be_overridden(build_snapshot: BuildSnapshot) -> None:
    manifest = make_manifest(snapshot=build_snapshot())
    assert _show(manifest)["model_info"]["general.basename"] == "smollm2"
    assert _show(manifest, basename="asked:tag")["model_info"]["general.basename"] == "asked:tag"


def test_the_vocabulary_is_shown_only_where_it_is_asked_for(build_snapshot: BuildSnapshot) -> None:
    manifest = make_manifest(snapshot=build_snapshot())
    assert _show(manifest)["model_info"]["tokenizer.ggml.tokens"] is None
    info = _show(manifest, verbose=True)["model_info"]
    assert info["tokenizer.ggml.tokens"] == ["a", "b"]
    assert info["tokenizer.ggml.merges"] == ["a b"]


def test_an_override_does_not_stick(build_snapshot: BuildSnapshot, tmp_path: Path) -> None:
    manifest = make_manifest(snapshot=build_snapshot())
    before = _show(manifest)
    _show(manifest, system="x", basename="y", served_context=1, verbose=True)
    assert _show(manifest) == before
