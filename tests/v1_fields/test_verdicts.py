"""No field of `/v1` is stricter here than in Ollama, whatever the installed vLLM refuses."""

from __future__ import annotations

import json
import os

import pytest

from v1_fields.verdicts import COMMITTED, described, measured, refused_here

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def refused() -> dict[str, dict[str, list[str]]]:
    return refused_here()


@pytest.mark.parametrize("path", described())
def test_what_ollama_accepts_is_accepted_unless_there_is_a_reason(
    refused: dict[str, dict[str, list[str]]], path: str
) -> None:
    assert refused[path].keys() == described()[path].get("refused", {}).keys(), refused[path]
    committed = json.loads(COMMITTED.read_text(encoding="utf-8"))[path]["fields"]
    assert refused[path] == {name: verdict["refused"] for name, verdict in committed.items() if verdict["refused"]}


@pytest.mark.slow  # what vLLM itself refuses changes with its version
def test_the_table_in_the_docs_says_so() -> None:
    """To update it: V1_FIELDS_KEEP=1 and this test in the full run, then scripts/docs.py."""
    found = measured()
    if os.environ.get("V1_FIELDS_KEEP"):
        COMMITTED.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    assert json.loads(COMMITTED.read_text(encoding="utf-8")) == found
