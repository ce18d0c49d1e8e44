"""JSON as Go's decoder reads it, and its words for what it cannot read (contract §1.1)."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vllama.errors import RequestError
from vllama.ollama.gojson import MOST_MENDED, MOST_SCANNED, Fields, decode, decode_base64, known_fields
from vllama.ollama.goscanner import MOST_DEPTH, MOST_STEPS, end_of_first_value


def refusal(body: bytes) -> str:
    with pytest.raises(RequestError) as refused:
        decode(body)
    return str(refused.value)


# Each row is one transition of the state machine in Go's encoding/json/scanner.go.
@pytest.mark.parametrize(
    ("body", "message"),
    [
        # stateBeginValue, stateBeginValueOrEmpty
        (b"x", "invalid character 'x' looking for beginning of value"),
        (b"}", "invalid character '}' looking for beginning of value"),
        (b"'a'", r"invalid character '\'' looking for beginning of value"),
        (b"model=x", "invalid character 'm' looking for beginning of value"),
        (b'{"a":}', "invalid character '}' looking for beginning of value"),
        (b'{"a":,}', "invalid character ',' looking for beginning of value"),
        (b"[,]", "invalid character ',' looking for beginning of value"),
        (b"[1,]", "invalid character ']' looking for beginning of value"),
        (b"[1, }", "invalid character '}' looking for beginning of value"),
        (b'{"a":NaN}', "invalid character 'N' looking for beginning of value"),
        (b'{"a":Infinity}', "invalid character 'I' looking for beginning of value"),
        (b'{"a":+1}', "invalid character '+' looking for beginning of value"),
        (b'{"a":.5}', "invalid character '.' looking for beginning of value"),
        (b"\x0b{}", r"invalid character '\v' looking for beginning of value"),
        (b"\x00", r"invalid character '\x00' looking for beginning of value"),
        (b"\\", r"invalid character '\\' looking for beginning of value"),
        ("é".encode(), "invalid character 'Ã' looking for beginning of value"),
        (b"\x85", r"invalid character '\u0085' looking for beginning of value"),
        # stateBeginString, stateBeginStringOrEmpty
        (b"{model: x}", "invalid character 'm' looking for beginning of object key string"),
        (b"{'a':1}", r"invalid character '\'' looking for beginning of object key string"),
        (b"{,}", "invalid character ',' looking for beginning of object key string"),
        (b"{1:2}", "invalid character '1' looking for beginning of object key string"),
        (b"{]", "invalid character ']' looking for beginning of object key string"),
        (b'{"a":1,}', "invalid character '}' looking for beginning of object key string"),
        (b'{"a":1, , }', "invalid character ',' looking for beginning of object key string"),
        # stateEndValue
        (b'{"a"}', "invalid character '}' after object key"),
        (b'{"a" "b"}', "invalid character '\"' after object key"),
        (b'{"a"=1}', "invalid character '=' after object key"),
        (b'{"a":1 "b":2}', "invalid character '\"' after object key:value pair"),
        (b'{"a":"b";}', "invalid character ';' after object key:value pair"),
        (b'{"a":1]', "invalid character ']' after object key:value pair"),
        (b'{"a":{"b":[]}]', "invalid character ']' after object key:value pair"),
        (b'{"a":01}', "invalid character '1' after object key:value pair"),
        (b'{"a":1_000}', "invalid character '_' after object key:value pair"),
        (b"[1 2]", "invalid character '2' after array element"),
        (b"[1}", "invalid character '}' after array element"),
        (b'["a":1]', "invalid character ':' after array element"),
        (b"[[],{}:]", "invalid character ':' after array element"),
        (b"[0x10]", "invalid character 'x' after array element"),
        (b"[-01]", "invalid character '1' after array element"),
        # stateInString
        (b'"a\nb"', r"invalid character '\n' in string literal"),
        (b'{"a\tb":1}', r"invalid character '\t' in string literal"),
        (b'["\x1f"]', r"invalid character '\x1f' in string literal"),
        # stateInStringEsc, stateInStringEscU to stateInStringEscU123
        (rb'"\x41"', "invalid character 'x' in string escape code"),
        (rb'"\ "', "invalid character ' ' in string escape code"),
        (rb'"C:\Users"', "invalid character 'U' in string escape code"),
        (rb'"\'"', r"invalid character '\'' in string escape code"),
        (rb'"\u12g4"', r"invalid character 'g' in \u hexadecimal character escape"),
        (rb'"\uX"', r"invalid character 'X' in \u hexadecimal character escape"),
        (rb'"\u123"', "invalid character '\"' in \\u hexadecimal character escape"),
        # stateNeg, stateDot, stateE, stateESign
        (b"[-]", "invalid character ']' in numeric literal"),
        (b"[-x]", "invalid character 'x' in numeric literal"),
        (b"[-.5]", "invalid character '.' in numeric literal"),
        (b"[--1]", "invalid character '-' in numeric literal"),
        (b"[-Infinity]", "invalid character 'I' in numeric literal"),
        (b"[1.]", "invalid character ']' after decimal point in numeric literal"),
        (b"[0.e1]", "invalid character 'e' after decimal point in numeric literal"),
        (b"[1.2.3]", "invalid character '.' after array element"),
        (b"[1e]", "invalid character ']' in exponent of numeric literal"),
        (b"[1E+]", "invalid character ']' in exponent of numeric literal"),
        (b"[1e+-1]", "invalid character '-' in exponent of numeric literal"),
        (b"[1.5e.]", "invalid character '.' in exponent of numeric literal"),
        # stateT to stateTru, stateF to stateFals, stateN to stateNul
        (b"[tRue]", "invalid character 'R' in literal true (expecting 'r')"),
        (b"[tr]", "invalid character ']' in literal true (expecting 'u')"),
        (b"[truE]", "invalid character 'E' in literal true (expecting 'e')"),
        (b"[truee]", "invalid character 'e' after array element"),
        (b"[fals]", "invalid character ']' in literal false (expecting 'e')"),
        (b"[fAlse]", "invalid character 'A' in literal false (expecting 'a')"),
        (b"[faLse]", "invalid character 'L' in literal false (expecting 'l')"),
        (b"[falze]", "invalid character 'z' in literal false (expecting 's')"),
        (b'{"a":none}', "invalid character 'o' in literal null (expecting 'u')"),
        (b"[nuLl]", "invalid character 'L' in literal null (expecting 'l')"),
        (b"[nul\x00]", r"invalid character '\x00' in literal null (expecting 'l')"),
        # the first mistake counts, wherever the second one is
        (b'{"model":"x","stream":tru,"prompt":}', "invalid character ',' in literal true (expecting 'e')"),
    ],
)
def test_malformed_json_is_refused_in_gos_words(body: bytes, message: str) -> None:
    assert refusal(body) == message


@pytest.mark.parametrize(
    "body",
    [
        b"{", b"[", b'{"a"', b'{"a" ', b'{"a":', b'{"a":1', b'{"a":1,', b'{"a":1, "', b"[1", b"[1,", b"[[]",
        b'"', b'"a', b'"a\\', b'"\\u', b'"\\u00', b'"\xc3', b"-", b"1.", b"1e", b"1e+", b"t", b"tru", b"nul", b"f",
        b" [ ", b'{"model": "smollm2:135m", "prompt": ',
    ],
)  # fmt: skip
def test_json_that_ends_too_early_is_an_unexpected_eof(body: bytes) -> None:
    assert refusal(body) == "unexpected EOF"


@pytest.mark.parametrize("body", [b"", b" ", b"\n\r\t ", b"\xef\xbb\xbf", b"\xef\xbb\xbf\n"])
def test_a_body_of_nothing_but_blanks_is_a_missing_body(body: bytes) -> None:
    assert refusal(body) == "missing request body"


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b'{"a":1} trailing', {"a": 1}),
        (b'{"a":1}{"a":2}', {"a": 1}),
        (b'{"a":1}}', {"a": 1}),
        (b"[1,[2]]]", [1, [2]]),
        (b'"text"x', "text"),
        (b"12 34", 12),
        (b"5x", 5),
        (b"truex", True),
        (b"null\x00", None),
        (b"0123", 0),
    ],
)
def test_bytes_after_the_first_value_are_ignored(body: bytes, value: object) -> None:
    assert decode(body) == value


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b'"a\xffb"', "a\ufffdb"),
        (b'{"\xc3":"\xe2\x82"}', {"\ufffd": "\ufffd"}),
        (rb'"\ud800"', "\ufffd"),
        (rb'"\udc00x\uD83D"', "\ufffdx\ufffd"),
        (rb'"\ud800\ud83d\ude00"', "\ufffd\U0001f600"),
        (rb'{"\udfff":["\\ud800"," \ud800\u0041"]}', {"\ufffd": ["\\ud800", " \ufffdA"]}),
        (b'\xef\xbb\xbf {"a":1}', {"a": 1}),
    ],
)
def test_characters_that_are_none_become_replacement_characters(body: bytes, value: object) -> None:
    assert decode(body) == value


@pytest.mark.parametrize(
    ("body", "number"),
    [(b"[1e400]", "1e400"), (b'{"a":{"b":-1.5E+999 }}', "-1.5E+999"), (b"[2, 1" + b"0" * 400 + b"]", "1" + "0" * 39)],
)
def test_a_number_that_no_float_holds_is_refused(body: bytes, number: str) -> None:
    assert refusal(body) == f"json: cannot unmarshal number {number} into Go value of type float64"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"[" + b"{}," * MOST_STEPS + b"x]", "invalid JSON: unexpected character"),
        (b'{"a":"' + b"x" * MOST_SCANNED + b'"', "unexpected EOF"),
        (b'{"a":"' + b"x" * MOST_SCANNED + b'";}', "invalid JSON: unexpected character"),
        (b'{"a":"' + b"x" * MOST_MENDED + b'"} trailing', "invalid JSON: unexpected content after document"),
        (b'["' + rb"\ud800" * 5 + rb"\n" * 200_000 + b'"]', "invalid JSON: "),
    ],
)
def test_what_is_wrong_with_a_large_body_is_said_in_short(body: bytes, message: str) -> None:
    """Finding Go's words for it would hold up everybody else."""
    assert refusal(body).startswith(message)


def test_a_large_body_is_mended_like_a_small_one() -> None:
    picture = b"A" * (3 * MOST_SCANNED)
    assert decode(b'{"images":["' + picture + b'"],"prompt":"\xff\\ud83d"} \n-') == {
        "images": [picture.decode()],
        "prompt": "\ufffd\ufffd",
    }


def test_json_may_be_nested_deeply_but_not_without_end() -> None:
    assert decode(b"[" * MOST_DEPTH + b"]" * MOST_DEPTH + b" trailing")
    assert refusal(b"[" * (MOST_DEPTH + 1) + b"]" * (MOST_DEPTH + 1)) == "invalid character '[' exceeded max depth"
    assert refusal(b'{"a":' * 100_000) == "invalid character '{' exceeded max depth"


_INTEGERS = st.integers(-(2**63), 2**64 - 1)
_SCALARS = st.none() | st.booleans() | _INTEGERS | st.floats(allow_nan=False, allow_infinity=False) | st.text()
JSON_VALUES = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4)
)


@st.composite
def damaged_documents(draw: st.DrawFn) -> str:
    """A JSON array or object with a few characters cut out, doubled or replaced."""
    separators = draw(st.sampled_from([(",", ":"), (" , ", "\n: ")]))
    value = draw(st.lists(JSON_VALUES, max_size=3) | st.dictionaries(st.text(max_size=3), JSON_VALUES, max_size=3))
    text = json.dumps(value, separators=separators, ensure_ascii=draw(st.booleans()))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(text)))
        cut = draw(st.integers(0, 2))
        text = text[:at] + draw(st.text('{}[]:,"\\utfne0123.-+E \n\x00é', max_size=3)) + text[at + cut :]
    return text


def python_reads(text: str) -> int | None:
    """Where the first value ends for Python's decoder; None where it refuses."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)  # NaN and the infinities, which are no JSON

    try:
        _, end = json.JSONDecoder(parse_constant=refuse).raw_decode(text)
    except ValueError:
        return None
    return end


@given(damaged_documents())
@example("[1,]")
@example('{"a":NaN}')
@example(r'["\u12"]')
def test_the_scanner_takes_just_what_is_json(text: str) -> None:
    text = text.lstrip(" \n")
    if text[:1] not in {"{", "["}:
        return  # Python ends a bare `1.` before its point, where Go reads on
    end = python_reads(text)
    if end is None:
        with pytest.raises(RequestError, match=r"^unexpected EOF$|^invalid character '.+' "):
            end_of_first_value(text.encode())
    else:
        assert end_of_first_value(text.encode()) == len(text[:end].encode())


@given(st.one_of(st.binary(), damaged_documents().map(str.encode)))
def test_any_bytes_are_a_value_or_an_error_for_the_client(body: bytes) -> None:
    try:
        value = decode(body)
    except RequestError:
        return
    orjson.dumps(value)  # whatever was read can be written again


@given(JSON_VALUES, st.sampled_from([b"", b" ", b"x", b"\xff", b"]"]))
def test_valid_json_means_the_same_whatever_follows_it(value: Any, rest: bytes) -> None:
    assert decode(orjson.dumps([value]) + rest) == [value]


def fields(value: Any, *names: str) -> Fields:
    return Fields(value, "GenerateRequest", known_fields(*names))


def test_field_names_match_whatever_their_case_and_others_are_ignored() -> None:
    read = fields({"MODEL": "x", "numCtx": 5}, "model", "prompt")
    assert read.string("model") == "x"
    assert read.raw("numCtx") is None


def test_null_leaves_a_field_at_its_zero_value() -> None:
    names = ("text", "flag", "count", "map", "list", "pictures")
    read = fields(dict.fromkeys(names), *names)
    assert (read.string("text"), read.boolean("flag"), read.integer("count")) == ("", None, 0)
    assert (read.mapping("map"), read.integers("list"), read.images("pictures")) == ({}, (), ())


def test_null_in_a_list_is_the_zero_value_of_its_items() -> None:
    read = fields({"context": [1, None], "images": [None]}, "context", "images")
    assert read.integers("context") == (1, 0)
    assert read.images("images") == (b"",)


def test_a_null_body_is_an_object_without_fields() -> None:
    assert fields(decode(b"null"), "model").string("model") == ""


@pytest.mark.parametrize(
    ("reader", "value", "found", "go"),
    [
        ("string", 5, "number", "string"),
        ("string", 5.5, "number", "string"),
        ("string", True, "bool", "string"),
        ("string", [], "array", "string"),
        ("string", {}, "object", "string"),
        ("boolean", "no", "string", "bool"),
        ("boolean", 1, "number", "bool"),
        ("integer", "3", "string", "int"),
        ("integer", True, "bool", "int"),
        ("integer", 1.5, "number 1.5", "int"),
        ("mapping", [1], "array", "map[string]interface {}"),
        ("mapping", "x", "string", "map[string]interface {}"),
        ("integers", {}, "object", "[]int"),
        ("integers", [1, "2"], "string", "int"),
        ("integers", [1.5], "number 1.5", "int"),
        ("integers", [True], "bool", "int"),
        ("images", "aGk=", "string", "[]api.ImageData"),
        ("images", [5], "number", "api.ImageData"),
    ],
)
def test_a_wrong_type_names_field_and_type_as_go_does(reader: str, value: Any, found: str, go: str) -> None:
    read = fields({"Field": value}, "field")
    with pytest.raises(RequestError) as refused:
        getattr(read, reader)("field")
    assert (
        str(refused.value) == f"json: cannot unmarshal {found} into Go struct field GenerateRequest.field of type {go}"
    )


@pytest.mark.parametrize(
    ("body", "found"),
    [(b"[]", "array"), (b'"x"', "string"), (b"5", "number"), (b"false", "bool"), (b"1.5 x", "number")],
)
def test_a_body_that_is_no_object_is_refused(body: bytes, found: str) -> None:
    with pytest.raises(RequestError) as refused:
        fields(decode(body))
    assert str(refused.value) == f"json: cannot unmarshal {found} into Go value of type api.GenerateRequest"


def test_base64_is_decoded_with_line_breaks_and_with_a_data_prefix() -> None:
    assert decode_base64("aGVs\r\nbG8=\n") == b"hello"
    for prefix in (
        "data:image/png;base64,",
        "data:;base64,",
        "DATA:IMAGE/PNG;BASE64,",
        "data:a/b;charset=utf-8;base64,",
    ):
        assert decode_base64(f"{prefix}aGVsbG8=") == b"hello"
    assert decode_base64("") == decode_base64("data:image/png;base64,") == b""


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("@@notb64", 0),
        ("aGVs@G8=", 4),
        ("aGVsbG8", 4),  # the last group is cut short
        ("aGVsb", 4),
        ("aG\nVsbG8", 5),  # line breaks are counted
        ("aG\n@", 3),
        ("a===", 1),
        ("=", 0),
        ("YQ=", 3),
        ("YQ=x", 2),
        ("YQ==YQ==", 4),
        ("YQ==\n!", 5),
        ("YWI=Y", 4),
        ("YWJj=", 4),
        ("YWJj====", 4),
        ("aGk-", 3),  # not the alphabet for URLs
        ("aGké", 3),
        ("data:image/png;base64", 4),
        ("data:image/png,aGVs", 4),  # not said to be base64
        ("data:image/png;base64,aGVs@", 4),
    ],
)
def test_bad_base64_is_refused_with_the_byte_where_go_gives_up(text: str, position: int) -> None:
    with pytest.raises(RequestError) as refused:
        decode_base64(text)
    assert str(refused.value) == f"illegal base64 data at input byte {position}"


@given(st.binary(max_size=30), st.data())
def test_base64_with_line_breaks_anywhere_is_what_it_was(data: bytes, draw: st.DataObject) -> None:
    text = base64.b64encode(data).decode()
    for at in draw.draw(st.lists(st.integers(0, len(text)), max_size=3)):
        text = f"{text[:at]}\n{text[at:]}"
    assert decode_base64(text) == data


@given(st.text("aQ=+/\n\r-é", max_size=12))
def test_base64_is_whole_groups_of_four_padded_at_the_end_or_it_is_refused(text: str) -> None:
    bare = text.replace("\n", "").replace("\r", "")
    if re.fullmatch(r"([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?", bare):
        assert len(decode_base64(text)) == len(bare) * 3 // 4 - bare.count("=")
    else:
        with pytest.raises(RequestError) as refused:
            decode_base64(text)
        position = int(str(refused.value).rpartition(" ")[2])
        assert 0 <= position <= len(text)


_ALPHABET = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")


def _byte_by_byte(text: str) -> int:
    """Where Go fails, found as Go does it, for texts without padding."""
    in_group = 0
    for position, character in enumerate(text):
        if character in _ALPHABET:
            in_group = (in_group + 1) % 4
        elif character not in "\r\n":
            return position
    return len(text) - in_group


@given(st.text(st.sampled_from("ABab01+/\r\n-é\ud800 "), max_size=20))
def test_the_first_wrong_byte_of_base64_is_found_as_go_finds_it(text: str) -> None:
    bare = text.replace("\n", "").replace("\r", "")
    if set(bare) <= _ALPHABET and len(bare) % 4 == 0:
        return
    with pytest.raises(RequestError, match=f"at input byte {_byte_by_byte(text)}$"):
        decode_base64(text)
