"""Grammars of JSON by the installed xgrammar and llguidance, without an engine: white space, and what they enforce."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from itertools import product
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import pytest
from grammar_samples import accepts, samples
from json_schema_suite import Group, groups
from jsonschema import Draft7Validator, Draft202012Validator
from jsonschema.validators import validator_for
from llama_cpp_sources import NAMES, keys
from pydantic import BaseModel, Field
from referencing import Registry
from referencing.exceptions import Unresolvable
from sampling import count
from tokenizers import Tokenizer

from vllama.errors import SchemaError
from vllama.schemas import rewrite
from vllama.store.gguf.tokenizer import build_tokenizer

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore")]

SMALL = ("deepseek-coder", "phi-3")
"""Vocabularies of llama.cpp's tests that are tried in each push: byte level, and pieces with bytes for the rest."""

GENERATORS = sorted((Path(__file__).parents[1] / "schemas" / "generators").glob("*.json"))
ENTRY: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 20},
        "tags": {"type": "array", "items": {"type": "string"}},
        "inner": {"type": "object"},
        "any": {},
    },
    "required": ["name"],
}
VALUE = {"name": 'a "b"\n\\c', "tags": ["x", "ä"], "inner": {"k": [1, None, {}]}, "any": [-1.5e3, True, []]}


def test_the_adapter_names_the_versions_that_it_was_written_against() -> None:
    from importlib.metadata import version

    from vllama.worker import grammars

    for package in ("xgrammar", "llguidance"):
        release = re.search(rf"{package} ([\d.]+)", grammars.__doc__ or "")
        assert release
        assert version(package).startswith(release[1].rstrip("."))


@pytest.mark.parametrize(
    "layout",
    [{}, {"indent": 2}, {"indent": 4}, {"indent": "\t"}, {"separators": (",", ":")}, {"ensure_ascii": False}],
    ids=str,
)
@pytest.mark.parametrize("schema", [ENTRY, {"type": "object"}, {}], ids=["schema", "object", "any"])
def test_usual_layouts_of_json_stay_possible(layout: dict[str, Any], schema: dict[str, Any]) -> None:
    assert accepts(rewrite(schema).schema, json.dumps(VALUE, **layout))


@pytest.mark.parametrize(
    "text", ['{  "name":"x"}', '{"name":\t"x"}', '{\n\n\n"name":"x"}', '{"name":"x"\n' + " " * 30 + "}"]
)
def test_more_white_space_than_a_line_end_and_indentation_is_impossible(text: str) -> None:
    assert json.loads(text)
    for schema in (ENTRY, {"type": "object"}):
        assert not accepts(rewrite(schema).schema, text)


def test_white_space_in_the_arguments_of_strict_tools_is_bounded() -> None:
    import xgrammar
    from vllm.v1.structured_output.backend_types import StructuredOutputOptions as Kind

    from vllama.worker.grammars import bounding_xgrammar

    def tag(content: dict[str, Any]) -> dict[str, Any]:
        one = {"type": "tag", "begin": '{"arguments": ', "content": content, "end": "}</tool_call>"}
        dispatch = {"type": "triggered_tags", "triggers": ['{"arguments"'], "tags": [one]}
        return {"type": "structural_tag", "format": dispatch}

    plain = {"type": "json_schema", "json_schema": {**ENTRY, "uniqueItems": True}}
    compiled: list[str] = []
    compile_grammar = bounding_xgrammar(lambda self, kind, specification: compiled.append(specification))
    others = ({**plain, "style": "qwen_xml"}, {**plain, "json_schema": True}, {"type": "any_text"})
    for content in (plain, *others):
        compile_grammar(Backend(disable_any_whitespace=False), Kind.STRUCTURAL_TAG, json.dumps(tag(content)))
    compile_grammar(Backend(disable_any_whitespace=True), Kind.STRUCTURAL_TAG, json.dumps(tag(plain)))
    bounded, *unchanged, without = map(json.loads, compiled)
    assert [*unchanged, without] == [tag(content) for content in (*others, plain)]
    assert bounded["format"]["tags"][0]["content"]["type"] == "grammar"

    grammar = xgrammar.Grammar.from_structural_tag(json.dumps(bounded))
    compiler = xgrammar.GrammarCompiler(xgrammar.TokenizerInfo([chr(code) for code in range(128)]))
    for text, is_possible in (('{"name": "x"}', True), ('{\n\n  "name":"x"\n}', True), ('{\n\n\n"name": "x"}', False)):
        matcher = xgrammar.GrammarMatcher(compiler.compile_grammar(grammar))
        assert matcher.accept_string(f'Hm. {{"arguments": {text}}}</tool_call>') is is_possible, text


def test_digits_end() -> None:
    for text, is_possible in (("9" * 19, True), ("9" * 20, False), ("0." + "1" * 17, True), ("0." + "1" * 18, False)):
        assert accepts({"type": "number"}, text) is is_possible


def test_strings_of_a_limited_length_have_escapes_and_no_control_characters() -> None:
    limited = {"type": "string", "minLength": 2, "maxLength": 2}
    assert accepts(limited, r'"\n\""')
    assert accepts(limited, r'"\u00e9x"')
    assert not accepts(limited, '"\t\t"')
    assert not accepts(limited, r'"\ud800x"')


@pytest.mark.parametrize(
    ("least", "most"), [(0, 0), (0, 5), (0, 63), (0, 64), (0, 200), (3, 3), (1, 128), (64, 64), (70, 300), (130, None)]
)
def test_strings_have_the_lengths_of_their_schema_however_long(least: int, most: int | None) -> None:
    limited = {"type": "string", "minLength": least} | ({} if most is None else {"maxLength": most})
    lengths = {0, least - 1, least, least + 1, *((most - 1, most, most + 1) if most is not None else (2000,))}
    for length in lengths - {-1}:
        is_possible = least <= length <= (length if most is None else most)
        assert accepts(limited, f'"{"x" * length}"') is is_possible, length
        assert accepts(limited, '"' + r"\n" * length + '"') is is_possible, length


def test_the_tokens_of_strings_of_a_limited_length_are_found_as_quickly_as_those_of_any() -> None:
    import xgrammar

    from vllama.worker.grammars import bounded_grammar

    words = [*map("".join, product(ascii_lowercase, repeat=3)), *ascii_lowercase, '"']
    compiler = xgrammar.GrammarCompiler(xgrammar.TokenizerInfo(words))
    mask = xgrammar.allocate_token_bitmask(1, len(words))

    def seconds(schema: dict[str, Any]) -> float:
        grammar = bounded_grammar(json.dumps(schema))
        assert grammar
        matcher = xgrammar.GrammarMatcher(compiler.compile_grammar(grammar))
        assert matcher.accept_string('"')
        taken = []
        for _ in range(100):
            began = time.process_time()
            matcher.fill_next_token_bitmask(mask)
            taken.append(time.process_time() - began)
            assert matcher.accept_token(0)
        return sorted(taken)[50]

    # With a rule for one character that is repeated, it was 100,000 times as long.
    assert seconds({"type": "string", "maxLength": 1000}) < 1000 * seconds({"type": "string"})


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in SMALL else pytest.mark.slow) for name in NAMES]
)
def test_the_tokens_of_real_vocabularies_end_strings_at_their_limit(name: str) -> None:
    import numpy as np
    import xgrammar
    from transformers import PreTrainedTokenizerFast

    from vllama.worker.grammars import bounded_grammar

    tokenizer = Tokenizer.from_str(json.dumps(build_tokenizer(keys(name))[0]))
    size, most = tokenizer.get_vocab_size(), 200
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    info = xgrammar.TokenizerInfo.from_huggingface(fast, vocab_size=size, stop_token_ids=[0])
    grammar = bounded_grammar(json.dumps({"type": "string", "maxLength": most}))
    assert grammar
    matcher = xgrammar.GrammarMatcher(xgrammar.GrammarCompiler(info).compile_grammar(grammar))
    mask = xgrammar.allocate_token_bitmask(1, size)
    lengths = np.array([len(text) if text.isascii() and text.isalpha() else 0 for text in info.decoded_vocab])
    assert matcher.accept_string('"')
    for left in range(most, 0, -1):
        matcher.fill_next_token_bitmask(mask)
        allowed = np.unpackbits(mask[0].numpy().view(np.uint8), bitorder="little")[:size]
        assert (allowed[lengths > 0] == (lengths <= left)[lengths > 0]).all(), left
        assert matcher.accept_string("x")
    assert matcher.accept_string('"')
    assert matcher.is_terminated() or matcher.accept_token(0)


def test_text_that_looks_like_a_grammar_is_left_alone() -> None:
    strings = ["whitespace_3{0, 7919}", "root_characters{0, 3}", '[^"\\\r\n]', "[0-9]*", "basic_number_digits{1, -1}"]
    for string in strings:
        assert accepts({"enum": strings}, json.dumps(string))


def test_the_engines_compilation_is_replaced_once_and_only_in_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.structured_output import backend_guidance
    from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend

    from vllama.worker import grammars

    of_vllm = getattr(XgrammarBackend.compile_grammar, "__wrapped__", XgrammarBackend.compile_grammar)
    serialize = backend_guidance.serialize_guidance_grammar
    monkeypatch.setattr(XgrammarBackend, "compile_grammar", of_vllm)
    monkeypatch.setattr(backend_guidance, "serialize_guidance_grammar", getattr(serialize, "__wrapped__", serialize))
    monkeypatch.setenv("VLLM_PLUGINS", "other")
    grammars.register()
    assert XgrammarBackend.compile_grammar is of_vllm

    monkeypatch.setenv("VLLM_PLUGINS", "vllama")
    grammars.register()
    grammars.register()
    assert XgrammarBackend.compile_grammar.__wrapped__ is of_vllm


class Backend:
    """What `XgrammarBackend.compile_grammar` is bound to."""

    def __init__(self, *, disable_any_whitespace: bool) -> None:
        self.disable_any_whitespace = disable_any_whitespace


@pytest.mark.parametrize(
    ("disabled", "kinds"), [(False, ["GRAMMAR", "GRAMMAR", "REGEX"]), (True, ["JSON", "JSON_OBJECT", "REGEX"])]
)
def test_only_json_is_compiled_from_a_grammar_of_ours(disabled: bool, kinds: list[str]) -> None:
    from vllm.v1.structured_output.backend_types import StructuredOutputOptions as Kind

    from vllama.worker.grammars import bounding_xgrammar

    def compile_grammar(_: Any, kind: Kind, specification: str, stop_token_ids: Any = None) -> Any:
        return kind.name, specification, stop_token_ids

    bounded = bounding_xgrammar(compile_grammar)
    backend = Backend(disable_any_whitespace=disabled)
    asked = [(Kind.JSON, '{"type": "object"}'), (Kind.JSON_OBJECT, ""), (Kind.REGEX, "a")]
    compiled = [bounded(backend, kind, text, stop_token_ids={1}) for kind, text in asked]

    assert [kind for kind, _, _ in compiled] == kinds
    assert all(("vllama_space" in text) == (kind == "GRAMMAR") for kind, text, _ in compiled)
    assert all(stops == {1} for _, _, stops in compiled)


def guidance(schema: dict[str, Any], text: str) -> bool:
    """Whether llguidance accepts this text, with the white space that we ask it for."""
    import llguidance
    from vllm.v1.structured_output import backend_guidance
    from vllm.v1.structured_output.backend_types import StructuredOutputOptions as Kind

    from vllama.worker.grammars import bounding_guidance

    serialize = backend_guidance.serialize_guidance_grammar
    grammar = bounding_guidance(getattr(serialize, "__wrapped__", serialize))(Kind.JSON, json.dumps(schema))
    matcher = llguidance.LLMatcher(llguidance.LLTokenizer("byte"), grammar)
    assert not matcher.get_error()
    written = list(text.encode())
    return bool(matcher.try_consume_tokens(written) == len(written) and matcher.is_accepting())


def test_llguidance_bounds_white_space_beside_separators() -> None:
    schema = rewrite(ENTRY).schema
    layouts: list[dict[str, Any]] = [{}, {"separators": (",", ":")}]
    for text in (*(json.dumps(VALUE, ensure_ascii=False, **one) for one in layouts), '{"name": "x",\n  "tags": []}'):
        assert guidance(schema, text)
    for text in ('{"name":  "x"}', '{"name": "x",   "tags": []}', '{   "name": "x"}'):
        assert not guidance(schema, text)


class Pet(BaseModel):
    kind: str = Field(pattern="^(cat|dog)$")
    owner: Pet | None = None
    toys: set[str] = set()
    size: tuple[int, float] = (1, 1.0)
    years: dict[int, str] = Field(default={}, max_length=3)


def generated() -> dict[str, Any]:
    """What generators of schemas write, by name: from files, and pydantic's own."""
    found = {"pydantic: Pet": Pet.model_json_schema()}
    for path in GENERATORS:
        found |= {f"{path.stem}: {name}": schema for name, schema in json.loads(path.read_bytes()).items()}
    return found


@pytest.mark.parametrize("schema", generated().values(), ids=generated().keys())
def test_what_generators_write_is_served_and_valid_unless_told(schema: dict[str, Any]) -> None:
    rewritten = rewrite(schema)
    validator = validator_for(schema, default=Draft202012Validator)(schema)
    for text in samples(rewritten.schema, seed=1, count=count(3, 20)):
        value = json.loads(text)
        if not rewritten.relaxed and "nullable" not in json.dumps(schema):
            assert validator.is_valid(value), text


def outcome(group: Group) -> tuple[str, list[str]]:
    """Return how a schema of the suite fares, and what its grammar allows and should not."""
    from vllm.v1.structured_output.backend_xgrammar import has_xgrammar_unsupported_json_features

    try:
        rewritten = rewrite(group.schema)
    except SchemaError as error:
        return f"refused: {error}", []
    assert not has_xgrammar_unsupported_json_features(rewritten.schema), group.name
    wrong = [
        json.dumps(test["data"])
        for test in group.tests
        if not test["valid"] and accepts(rewritten.schema, json.dumps(test["data"], ensure_ascii=False))
    ]
    kind = Draft7Validator if group.draft == "draft7" else Draft202012Validator
    validator = kind(group.schema, registry=Registry())
    for text in samples(rewritten.schema, seed=2, count=count(1, 10)):
        try:
            if not validator.is_valid(json.loads(text)):
                wrong.append(text)
        except Unresolvable:
            assert rewritten.relaxed, group.name
    return ("relaxed", []) if rewritten.relaxed else ("enforced", wrong)


def test_the_official_suite_is_served_and_enforced_or_told() -> None:
    all_groups = groups()
    chosen = all_groups[:: count(6, 1)]
    outcomes = {group.name: outcome(group) for group in chosen}

    assert {name: wrong for name, (_, wrong) in outcomes.items() if wrong} == {}
    refused = {name: how for name, (how, _) in outcomes.items() if how.startswith("refused")}
    assert all(how.endswith(": nothing satisfies it") for how in refused.values()), refused
    counted = Counter(how.partition(":")[0] for how, _ in outcomes.values())
    print(dict(counted))
    assert counted["enforced"] > 0.65 * len(chosen)
    if len(chosen) == len(all_groups):
        assert counted["refused"] == 15  # `false`, `not: {}` and the like


def test_llguidance_enforces_the_same_forms() -> None:
    for group in groups()[:: count(6, 1)]:
        try:
            rewritten = rewrite(group.schema)
        except SchemaError:
            continue
        for test in group.tests:
            is_accepted = guidance(rewritten.schema, json.dumps(test["data"], ensure_ascii=False))
            assert test["valid"] or rewritten.relaxed or not is_accepted, (group.name, test["data"])


@pytest.mark.parametrize("text", ["ünïcödé", "cafébabe", "\\xef", "naïf ÿ0"])
def test_letters_beyond_ascii_may_stand_before_hexadecimal_digits(text: str) -> None:
    """xgrammar prints its grammar with escapes that it would read with the digits behind them."""
    assert accepts({"const": text}, json.dumps(text, ensure_ascii=False))
