from __future__ import annotations

from typing import Any

import jsonschema
import orjson
import pytest
from bench_results import bench

from vllama.bench.result import dump
from vllama.bench.schema import generated, published


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    schema = orjson.loads(published())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_the_published_schema_is_that_of_the_records() -> None:
    assert published() == generated(), "run: python -m vllama.bench.schema > vllama/bench/result.schema.json"


def test_a_result_keeps_the_schema(validator: jsonschema.Draft202012Validator) -> None:
    validator.validate(orjson.loads(dump(bench(levels=[1, 32], repetitions=1))))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["schema"], 2),
        (["systems", 0, "api"], "soap"),
        (["runs", 0, "samples", 0, "outcome"], "fine"),
        (["runs", 0, "window"], [1]),
        (["runs", 0, "metrics", "ok"], "3"),
        (["novelty"], 1),
    ],
)
def test_what_is_no_result_breaks_it(
    validator: jsonschema.Draft202012Validator, path: list[str | int], value: object
) -> None:
    result: Any = orjson.loads(dump(bench(["vllama"], [1], repetitions=1)))
    place = result
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    assert not validator.is_valid(result)


def test_every_record_is_described(validator: jsonschema.Draft202012Validator) -> None:
    definitions: dict[str, Any] = validator.schema["$defs"]
    assert {"Sample", "Metrics", "Telemetry", "Comparison"} <= set(definitions)
    assert all(definition["description"] for definition in definitions.values())
