"""The embedding routes on the wire (contract §1.4, §1.5, §5.4); texts of errors as Ollama 0.24.0 sent them."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from vllama.durations import FOREVER
from vllama.errors import OptionTypeError, RequestError, Unsupported
from vllama.ollama.embedding import EmbeddingsRequest, EmbedRequest, OpenAIEmbedRequest, check_embedding
from vllama.ollama.replies import Timings


def embed(**fields: Any) -> EmbedRequest:
    return EmbedRequest.parse(orjson.dumps({"model": "m", **fields}))


def embeddings(**fields: Any) -> EmbeddingsRequest:
    return EmbeddingsRequest.parse(orjson.dumps({"model": "m", **fields}))


@pytest.mark.parametrize(
    ("given", "inputs"),
    [
        ({"input": "hello world"}, ("hello world",)),
        ({"input": ["b", "a", "b"]}, ("b", "a", "b")),
        ({"input": ["hello", ""]}, ("hello", "")),
        ({"input": [""]}, ("",)),
        ({"input": ""}, ()),
        ({"input": []}, ()),
        ({"input": None}, ()),
        ({}, ()),
        ({"prompt": "hello"}, ()),
    ],
)
def test_the_input_is_a_text_or_several_and_an_empty_text_alone_is_none(
    given: dict[str, Any], inputs: tuple[str, ...]
) -> None:
    assert embed(**given).inputs == inputs


@pytest.mark.parametrize("value", [5, 0, True, False, {}, {"text": "a"}, [1, 2, 3], ["a", 1], [["a"]], [None]])
def test_an_input_of_another_type_is_refused(value: Any) -> None:
    with pytest.raises(RequestError, match=r"\Ainvalid input type\Z"):
        embed(input=value)


def test_a_body_is_needed() -> None:
    for request in (EmbedRequest, EmbeddingsRequest):
        with pytest.raises(RequestError, match=r"\Amissing request body\Z"):
            request.parse(b"")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": 5}, "json: cannot unmarshal number into Go struct field EmbedRequest.model of type string"),
        ({"truncate": "no"}, "json: cannot unmarshal string into Go struct field EmbedRequest.truncate of type bool"),
        ({"dimensions": "8"}, "json: cannot unmarshal string into Go struct field EmbedRequest.dimensions of type int"),
        ({"keep_alive": True}, "Unsupported type: 'bool'"),
    ],
)
def test_a_field_of_the_wrong_type_is_refused_in_go_s_words(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as refused:
        embed(**fields)
    assert str(refused.value) == message


def test_the_old_route_s_errors_name_its_own_struct() -> None:
    with pytest.raises(RequestError) as refused:
        embeddings(prompt=["a"])
    assert str(refused.value) == (
        "json: cannot unmarshal array into Go struct field EmbeddingRequest.prompt of type string"
    )


def test_what_is_unsaid_means_cut_what_is_too_long_and_keep_all_dimensions() -> None:
    for request in (embed(), embed(truncate=None, dimensions=None, keep_alive=None, options=None)):
        assert (request.truncate, request.dimensions, request.keep_alive, request.options) == (True, 0, None, {})
    said = embed(truncate=False, dimensions=8, keep_alive=-1, options={"num_ctx": 64})
    assert (said.truncate, said.dimensions, said.keep_alive, said.options) == (False, 8, FOREVER, {"num_ctx": 64})


@pytest.mark.parametrize(("fields", "inputs"), [({"prompt": "a"}, ("a",)), ({"prompt": ""}, ()), ({"input": "a"}, ())])
def test_the_old_route_has_one_prompt_and_no_input(fields: dict[str, Any], inputs: tuple[str, ...]) -> None:
    assert embeddings(**fields).inputs == inputs


def test_field_names_match_in_any_case() -> None:
    assert EmbedRequest.parse(b'{"MODEL":"m","Input":"a"}').inputs == ("a",)


TIMINGS = Timings(420641573, 400482034, 2, 0, 0, 0)


def test_a_reply_is_written_as_ollama_writes_it() -> None:
    vectors = [np.array([-0.6684662, -0.046954844], np.float32), np.array([0.5, 1], np.float32)]
    assert embed(input="a").reply(vectors, TIMINGS) == (
        b'{"model":"m","embeddings":[[-0.6684662,-0.046954844],[0.5,1.0]],'
        b'"total_duration":420641573,"load_duration":400482034,"prompt_eval_count":2}'
    )


def test_without_vectors_there_are_no_figures() -> None:
    assert embed().reply(()) == b'{"model":"m","embeddings":[]}'
    assert embeddings().reply(()) == b'{"embedding":[]}'


def test_the_old_route_s_reply_is_the_vector_alone() -> None:
    assert embeddings(prompt="a").reply([np.array([2, -0.25], np.float32)], TIMINGS) == b'{"embedding":[2.0,-0.25]}'


def test_the_model_is_echoed_as_it_was_spelled() -> None:
    assert json.loads(embed(model='a"\u2028').reply(()))["model"] == 'a"\u2028'


@given(
    arrays.arrays(np.float32, st.integers(1, 9), elements=st.floats(width=32, allow_nan=False, allow_infinity=False))
)
def test_the_digits_written_are_those_of_the_float32_and_no_more(vector: np.ndarray[Any, np.dtype[np.float32]]) -> None:
    written = embeddings(prompt="a").reply([vector])
    assert np.array_equal(np.array(json.loads(written)["embedding"], np.float32), vector)
    assert all(len(number.lstrip(b"-0.").split(b"e")[0].replace(b".", b"").rstrip(b"0")) <= 9
               for number in written[len(b'{"embedding":['):-2].split(b","))  # fmt: skip


@pytest.mark.parametrize("capabilities", [("completion",), ("completion", "tools"), ()])
def test_a_model_that_makes_no_embeddings_says_so(capabilities: tuple[str, ...]) -> None:
    for request in (embed(input="a"), embeddings(prompt="a")):
        with pytest.raises(Unsupported, match=r'\A"m" does not support embeddings\Z'):
            check_embedding(request, capabilities)


def test_options_are_checked_as_elsewhere() -> None:
    with pytest.raises(OptionTypeError, match='option "num_ctx" must be of type integer'):
        check_embedding(embed(input="a", options={"num_ctx": "many"}), ("embedding",))
    check_embedding(embed(input="a", options={"num_ctx": 64, "temperature": None}), ("embedding",))


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "EOF"),
        (b'{"model":"m"}', "invalid input"),
        (b'{"model":"m","input":[]}', "invalid input"),
        (b'{"model":"m","input":[1,2,3]}', "invalid input type"),
        (b'{"model":"m","input":[[1,2]]}', "invalid input type"),
        (
            b'{"model":"m","input":"x","encoding_format":"hex"}',
            "Invalid value for 'encoding_format' = hex. Supported values: ['float', 'base64'].",
        ),
    ],
)
def test_openai_embeddings_refuse_in_ollama_s_words(body: bytes, text: str) -> None:
    with pytest.raises(RequestError) as refused:
        OpenAIEmbedRequest.parse(body)
    assert str(refused.value) == text


def test_an_empty_text_is_an_input_of_openai_s_embeddings() -> None:
    assert OpenAIEmbedRequest.parse(b'{"model":"m","input":""}').inputs == ("",)


@pytest.mark.parametrize(("encoding", "in_base64"), [("float", False), ("Base64", True), ("", False)])
def test_openai_embeddings_are_numbers_or_little_endian_base64(encoding: str, *, in_base64: bool) -> None:
    asked = {"model": "m", "input": ["a", "b"], "encoding_format": encoding, "dimensions": 3}
    request = OpenAIEmbedRequest.parse(orjson.dumps(asked))
    vectors = [np.array([0.5, -1.0], np.float32), np.array([2.0, 0.25], np.float32)]
    reply = orjson.loads(request.reply(vectors, Timings(1, 1, 7, 0, 0, 0)))
    shown = [item.pop("embedding") for item in reply["data"]]
    if in_base64:
        shown = [list(struct.unpack("<2f", base64.b64decode(text))) for text in shown]
    assert shown == [[0.5, -1.0], [2.0, 0.25]]
    assert (request.dimensions, request.normalizes, request.truncate) == (3, True, True)
    assert reply == {
        "object": "list",
        "data": [{"object": "embedding", "index": 0}, {"object": "embedding", "index": 1}],
        "model": "m",
        "usage": {"prompt_tokens": 7, "total_tokens": 7},
    }
