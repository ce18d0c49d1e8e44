"""Rewriting a schema takes memory and time in proportion to the schema, and results are kept within a limit."""

from __future__ import annotations

import copy
import sys
import unicodedata
from collections.abc import Iterator
from typing import Any

import pytest

from vllama.errors import SchemaError
from vllama.schemas import is_kept, patterns, rewrite, rewriting, values

STRING = {"type": "string"}


@pytest.fixture(autouse=True)
def _nothing_is_kept() -> Iterator[None]:
    rewriting._kept.clear()
    yield
    rewriting._kept.clear()


@pytest.mark.parametrize("size", [10, 3000], ids=["few", "many"])
def test_a_kept_result_is_the_same_as_the_first_and_belongs_to_the_caller(size: int) -> None:
    schema = {"type": "object", "properties": {f"p{n}": {**STRING, "format": "x"} for n in range(size // 4)}}
    first = rewrite(schema)
    before = copy.deepcopy(first)
    first.schema["properties"].clear()
    assert is_kept(schema)
    assert rewrite(schema) == before


def test_results_are_kept_up_to_a_limit_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    rewrite({"enum": [f"{0}.{index:050}" for index in range(1000)]})
    of_one = int(rewriting._kept.currsize)
    assert 50_000 < of_one < 100_000
    monkeypatch.setattr(rewriting._kept, "_Cache__maxsize", 10 * of_one)
    schemas = [{"enum": [f"{number}.{index:050}" for index in range(1000)]} for number in range(1, 30)]
    for schema in schemas:
        rewrite(schema)
    kept = [is_kept(schema) for schema in schemas]
    assert 5 <= sum(kept) <= 10
    assert kept == sorted(kept)  # the last ones
    assert rewriting._kept.currsize <= 10 * of_one


def test_a_result_larger_than_the_limit_is_kept_until_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    large = {"enum": [f"{index:050}" for index in range(1000)]}
    monkeypatch.setattr(rewriting, "_MOST_KEPT", 1000)
    monkeypatch.setattr(rewriting._kept, "_Cache__maxsize", 1000)
    rewrite(large)
    assert is_kept(large)
    rewrite(STRING)
    assert is_kept(STRING)
    assert not is_kept(large)


def test_a_schema_of_more_than_a_mebibyte_is_refused() -> None:
    assert rewrite({**STRING, "description": "a" * 2**19}) == rewrite(STRING)
    with pytest.raises(SchemaError, match="more than 1048576 bytes"):
        rewrite({**STRING, "description": "a" * 2**20})


def test_names_whose_pointers_would_fill_the_memory_are_refused() -> None:
    many = {"type": "object", "properties": {f"p{number}": {**STRING, "format": "x"} for number in range(900)}}
    with pytest.raises(SchemaError, match="have more than 4096 characters") as refused:
        rewrite({"type": "object", "properties": {"a" * 500_000: many}})
    assert len(str(refused.value)) < 300
    assert len(rewrite({"type": "object", "properties": {"a" * 4_000: many}}).relaxed) == 900


def test_a_long_pointer_is_counted_in_the_header_and_not_written() -> None:
    long_name: dict[str, Any] = {"type": "object", "properties": {"a" * 4_000: {**STRING, "format": "x"}}}
    assert rewrite(long_name).header() == "1 keywords"
    both = {"type": "object", "properties": {"b": {**STRING, "format": "x"}, **long_name["properties"]}}
    assert rewrite(both).header() == "/properties/b/format, and 1 more"


@pytest.mark.parametrize("part", ["a", "[ab]", "a?", "\\d"])
def test_a_pattern_of_tens_of_thousands_of_characters_is_relaxed(part: str) -> None:
    assert rewrite({**STRING, "pattern": f"^{part * (100_000 // len(part))}$"}).relaxed == ("/pattern",)


@pytest.mark.parametrize("name", ["La", "Zz", "LL", "L ", "Xx"])
def test_a_category_that_unicode_lacks_is_not_searched_for(name: str) -> None:
    searched = patterns._of_category.cache_info().misses
    assert rewrite({**STRING, "pattern": f"^\\p{{{name}}}$"}).relaxed == ("/pattern",)
    assert patterns._of_category.cache_info().misses == searched


def test_every_category_of_unicode_is_known() -> None:
    found = {unicodedata.category(chr(code)) for code in range(sys.maxunicode + 1)}
    assert found == {name for name in patterns._CATEGORY_NAMES if len(name) == 2}


def test_an_enumerated_array_is_not_compared_with_itself_for_minutes() -> None:
    mixed = [part for number in range(15_000) for part in (number, {"a": number})]
    schema = {"enum": [mixed], "uniqueItems": True}
    assert rewrite(schema).relaxed == ("/enum",)


@pytest.mark.parametrize("one", [{"minItems": 1}, {"not": {"enum": [7]}}], ids=["keyword", "negation"])
def test_an_enumerated_value_is_not_written_as_text_for_each_schema_that_checks_it(
    one: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    written = 0

    def counted(value: Any, key: Any = values.key) -> str:
        nonlocal written
        written += isinstance(value, list)
        return str(key(value))

    monkeypatch.setattr(values, "key", counted)
    rewrite({"enum": [list(range(100))], "allOf": [{**one, "maxItems": 1000 + number} for number in range(200)]})
    assert written == 2  # for the list of values, and for what the schema that lists them admits
