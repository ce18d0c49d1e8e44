"""Files are left out of a run only where none of their tests can be selected."""

from __future__ import annotations

import pytest
from selected_files import has_no_selected_test

QUICK = "not engine and not vllm and not browser"
ENGINE = "engine or browser"
WHOLE = "pytestmark = pytest.mark.vllm\n"
LISTED = "pytestmark = [\n    pytest.mark.vllm,\n    pytest.mark.timeout(300),\n]\n"
ALIASED = "from pytest import mark\n\n@mark.vllm\ndef test_it() -> None: ...\n"
ONE_TEST = "@pytest.mark.vllm\ndef test_it() -> None: ...\n"


@pytest.mark.parametrize(
    ("source", "expression"),
    [(WHOLE, QUICK), (LISTED, QUICK), (WHOLE, ENGINE), (ONE_TEST, ENGINE), ("", ENGINE), ("", "vllm")],
)
def test_a_file_without_a_test_that_may_match_is_left_out(source: str, expression: str) -> None:
    assert has_no_selected_test(source, expression)


@pytest.mark.parametrize(
    ("source", "expression"),
    [
        (ONE_TEST, QUICK),
        ("", QUICK),
        (WHOLE, "vllm"),
        (ONE_TEST, "vllm or engine"),
        (ALIASED, "vllm"),
        (WHOLE, ""),
        (WHOLE, "not vllm or slow"),
        ("pytestmark = pytest.mark.timeout(300)\n", QUICK),
        ("pytestmark = pytest.mark.vllm_like\n", QUICK),
    ],
)
def test_every_other_file_is_imported(source: str, expression: str) -> None:
    assert not has_no_selected_test(source, expression)
