"""A checked request with images on its way to the worker."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllama.ollama.requests import ChatRequest, GenerateRequest
from vllama.protocol import checked_record

NUMBERS = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
OBJECT = st.dictionaries(st.text(), JSON, max_size=3)
IMAGES = st.lists(st.binary(), max_size=2).map(lambda images: [b64encode(image).decode() for image in images])
COMMON: dict[str, Any] = {
    "model": st.text(),
    "stream": st.booleans(),
    "format": JSON,
    "options": OBJECT,
    "keep_alive": st.sampled_from([-1, 0, "5m", 3.5]),
    "think": st.sampled_from([True, False, "high"]),
    "truncate": st.booleans(),
    "logprobs": st.booleans(),
    "top_logprobs": st.integers(0, 20),
}
CALL = st.fixed_dictionaries({"function": st.fixed_dictionaries({"name": st.text(), "arguments": OBJECT})})
MESSAGE = st.fixed_dictionaries(
    {"role": st.text(), "content": st.text()},
    optional={"images": IMAGES, "thinking": st.text(), "tool_calls": st.lists(CALL, max_size=2)},
)
CHAT = {**COMMON, "messages": st.lists(MESSAGE, max_size=3), "tools": st.lists(OBJECT, max_size=2)}
CONTEXT = st.lists(st.integers(0, 2**31))
GENERATE = {**COMMON, "prompt": st.text(), "images": IMAGES, "context": CONTEXT, "raw": st.booleans()}


@given(st.fixed_dictionaries({}, optional=CHAT))
def test_a_chat_arrives_as_it_was_parsed(body: dict[str, Any]) -> None:
    body.get("options", {}).pop("think", None)
    request = ChatRequest.parse(orjson.dumps(body))
    record = checked_record.encode(request)
    assert record is not None
    assert checked_record.decode_chat(record) == request


@given(st.fixed_dictionaries({}, optional=GENERATE))
def test_a_prompt_arrives_as_it_was_parsed(body: dict[str, Any]) -> None:
    request = GenerateRequest.parse(orjson.dumps(body))
    record = checked_record.encode(request)
    assert record is not None
    assert checked_record.decode_generate(record) == request


@pytest.mark.parametrize("depth", [300, 900])
def test_what_is_nested_too_deeply_to_be_written_has_no_record(depth: int) -> None:
    schema = b'{"a":' * depth + b"1" + b"}" * depth
    assert checked_record.encode(GenerateRequest.parse(b'{"format":%b}' % schema)) is None
