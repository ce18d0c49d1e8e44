from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllama.errors import RequestError
from vllama.ollama.creation import Changes, CreateRequest

GO_MAP = "map[string]interface {}"
DIGEST = f"sha256:{'a' * 64}"


def parse(**fields: Any) -> CreateRequest:
    return CreateRequest.parse(json.dumps({"model": "mario", **fields}).encode())


def refusal(**fields: Any) -> str:
    with pytest.raises(RequestError) as caught:
        parse(**fields)
    return str(caught.value)


def test_a_request_names_a_base_and_what_is_added_to_it() -> None:
    request = parse(
        **{"from": "smollm2:135m", "stream": False, "quantize": "q8_0"},
        parameters={"temperature": 0},
        system="You are Mario.",
        template="{{ .Prompt }}",
        license=["MIT", "Apache-2.0"],
        messages=[{"role": "User", "content": "hi"}],
    )
    assert (request.name.display, request.base, request.files, request.stream) == (
        "mario:latest",
        "smollm2:135m",
        None,
        False,
    )
    assert request.changes == Changes(
        parameters={"temperature": 0},
        system="You are Mario.",
        template="{{ .Prompt }}",
        license="MIT\nApache-2.0",
        messages=(("user", "hi"),),
        quantize="q8_0",
    )


def test_what_is_not_said_is_empty() -> None:
    request = parse()
    assert (request.base, request.files, request.stream, request.changes) == ("", None, True, Changes())


def test_a_precision_is_one_of_two_or_that_of_the_server() -> None:
    assert [parse(precision=stated).precision for stated in ("exact", "bf16", "", None)] == ["exact", "bf16", "", ""]
    assert refusal(precision="fp8") == "precision must be one of exact, bf16"


def test_fields_of_older_clients_are_understood() -> None:
    request = CreateRequest.parse(b'{"NAME":"mario","Quantization":"f16"}')
    assert (request.name.model, request.changes.quantize) == ("mario", "f16")


def test_fields_that_go_sends_empty_count_as_absent() -> None:
    request = parse(name="", files=None, adapters={}, renderer="", requires="", info=None, draft_quantize="")
    assert request.changes == Changes()


def test_the_files_of_an_adapter_are_named_as_those_of_a_model() -> None:
    files = {"adapter_config.json": DIGEST, "adapter_model.safetensors": DIGEST}
    request = parse(**{"from": "smollm2:135m"}, adapters=files)
    assert (request.base, request.files, request.adapters) == ("smollm2:135m", None, files)
    assert refusal(adapters={"../lora": DIGEST}) == "file path must be relative"
    assert "CreateRequest.adapters" in refusal(adapters=["lora"])


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ({"temperature": 0.0, "top_p": 0.5, "seed": 3.0}, {"temperature": 0, "top_p": 0.5, "seed": 3}),
        ({"stop": "END"}, {"stop": ["END"]}),
        ({"stop": ["a", "b"]}, {"stop": ["a", "b"]}),
        ({"temperature": None}, {"temperature": None}),
        # Ollama says nothing of these before they are used.
        ({"temperature": "hot", "bogus": 1, "use_mmap": True}, {"temperature": "hot", "bogus": 1, "use_mmap": True}),
    ],
)
def test_parameters_are_kept_as_sent_in_one_spelling(sent: dict[str, Any], kept: dict[str, Any]) -> None:
    parameters = parse(parameters=sent).changes.parameters
    assert parameters == kept
    assert [type(value) for value in parameters.values()] == [type(value) for value in kept.values()]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "!!"}, "invalid model name"),
        ({"model": ""}, "invalid model name"),
        ({"files": {"/etc/passwd": DIGEST}}, "file path must be relative"),
        ({"files": {"../x.gguf": DIGEST}}, "file path must be relative"),
        ({"files": {"a//x.gguf": DIGEST}}, "file path must be relative"),
        ({"files": {".": DIGEST}}, "file path must be relative"),
        ({"files": {"a\0b": DIGEST}}, "file path must be relative"),
        (
            {"files": []},
            "json: cannot unmarshal array into Go struct field CreateRequest.files of type map[string]string",
        ),
        (
            {"files": {"a.gguf": 1}},
            "json: cannot unmarshal number into Go struct field CreateRequest.files of type string",
        ),
        (
            {"system": 1},
            "json: cannot unmarshal number into Go struct field CreateRequest.system of type string",
        ),
        (
            {"license": [1]},
            "json: cannot unmarshal number into Go struct field CreateRequest.license of type string",
        ),
        (
            {"parameters": "x"},
            f"json: cannot unmarshal string into Go struct field CreateRequest.parameters of type {GO_MAP}",
        ),
        ({"draft_quantize": "q4_0"}, "--draft-quantize requires a DRAFT model"),
        ({"from": "a", "files": {"a.gguf": DIGEST}}, "only one of 'from' and 'files' can be given"),
        ({"requires": "x"}, "requires must be a valid semver (e.g. 0.14.0)"),
        (
            {"parameters": {"stop": [["a"]]}},
            'parameter "stop" must be a number, a string, a boolean or a list of these',
        ),
        (
            {"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]},
            "a model's messages can have role and content only; images is not supported",
        ),
    ],
)
def test_what_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    assert refusal(**fields) == message


@pytest.mark.parametrize(
    "field", [{"draft_files": {"d.gguf": DIGEST}}, {"renderer": "qwen3"},
              {"parser": "qwen3"}, {"remote_host": "https://ollama.com"}, {"info": {"context_length": 1}}],
    ids=lambda field: next(iter(field)),
)  # fmt: skip
def test_what_is_not_supported_is_refused_and_not_ignored(field: dict[str, Any]) -> None:
    assert " is not supported" in refusal(**{"from": "smollm2:135m"}, **field)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ("model", "from", "files", "parameters", "messages", "license", "template", "info", "requires", "stream")


@given(st.dictionaries(st.sampled_from(FIELDS), anything))
def test_any_json_is_read_or_refused(fields: dict[str, Any]) -> None:
    with suppress(RequestError):
        assert CreateRequest.parse(json.dumps(fields).encode()).name.display
