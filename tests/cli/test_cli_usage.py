"""`vllama usage`."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from vllama.keys.usage import UsageRecord

from .conftest import Vllama


@pytest.fixture(autouse=True)
def usage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))
    now = time.time()
    for key, age in (("alice", 0), ("bob", 0), ("alice", 10 * 86_400)):
        record = UsageRecord(tmp_path / "usage.sqlite3", lambda age=age: now - age)  # type: ignore[misc]
        record.add(key, "smollm2:135m", (2, 30, 10, 7 if key == "bob" else 5, 1.26))
        record.close()


def test_usage_is_a_table_by_key_and_model(vllama: Vllama) -> None:
    lines = [" ".join(line.split()) for line in vllama("usage").stdout.splitlines()]
    assert lines == [
        "KEY MODEL REQUESTS PROMPT TOKENS CACHED TOKENS OUTPUT TOKENS SECONDS",
        "bob smollm2:135m 2 30 10 7 1.3",
        "alice smollm2:135m 2 30 10 5 1.3",
    ]


def test_usage_is_json_or_csv(vllama: Vllama) -> None:
    assert json.loads(vllama("usage", "--since", "4w", "--by", "key", "--json").stdout)[0] == {
        "key": "alice",
        "requests": 4,
        "prompt_tokens": 60,
        "cached_tokens": 20,
        "output_tokens": 10,
        "seconds": 2.52,
    }
    assert vllama("usage", "--by", "model", "--csv").stdout == (
        "model,requests,prompt_tokens,cached_tokens,output_tokens,seconds\nsmollm2:135m,4,60,20,12,2.5\n"
    )


@pytest.mark.parametrize(
    "arguments", [["--since", "7x"], ["--since", "-1d"], ["--by", "colour"], ["--json", "--csv"]], ids=str
)
def test_wrong_usage_ends_with_2(vllama: Vllama, arguments: list[str]) -> None:
    assert vllama("usage", *arguments).exit_code == 2


def test_without_a_record_the_table_is_empty(vllama: Vllama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLAMA_USAGE", str(tmp_path / "other"))
    assert vllama("usage", "--json").stdout == "[]\n"
    assert len(vllama("usage").stdout.splitlines()) == 1
