"""No field of `/v1` is stricter here than in Ollama, whatever the installed vLLM refuses."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from v1_fields.verdicts import COMMITTED, described, measured

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def verdicts() -> dict[str, Any]:
    """The verdicts of the installed vLLM; with V1_FIELDS_KEEP=1 they are stored."""
    found = measured()
    if os.environ.get("V1_FIELDS_KEEP"):
        COMMITTED.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return found


@pytest.mark.parametrize("path", described())
def test_what_ollama_accepts_is_accepted_unless_there_is_a_reason(verdicts: dict[str, Any], path: str) -> None:
    refused = {name: verdict["refused"] for name, verdict in verdicts[path]["fields"].items() if verdict["refused"]}
    assert refused.keys() == described()[path].get("refused", {}).keys(), refused


def test_the_table_in_the_docs_says_so(verdicts: dict[str, Any]) -> None:
    """To update it: V1_FIELDS_KEEP=1 and this test, then scripts/docs.py."""
    assert json.loads(COMMITTED.read_text(encoding="utf-8")) == verdicts
