"""The tables of `docs/compatibility.md` that `verdicts.json` makes."""

from __future__ import annotations

import json
from typing import Any

from v1_fields.verdicts import COMMITTED

_WORDS = ("left out", "rewritten", "accepted", "refused")
_MOST = 4
"""Maximum values shown of each outcome."""


def lines() -> list[str]:
    """Return the tables: for each route the fields for which vLLM is stricter, and the names of all others."""
    verdicts: dict[str, Any] = json.loads(COMMITTED.read_text(encoding="utf-8"))
    made: list[str] = []
    for path, route in verdicts.items():
        stricter = {name: verdict for name, verdict in route["fields"].items() if verdict["here"]}
        alike = [f"`{name}`" for name in route["fields"] if name not in stricter]
        made += [f"**`{path}`**\n", "\n", "| Field | Ollama | vLLM | Here |\n", "|---|---|---|---|\n"]
        made += [_row(name, verdict) for name, verdict in stricter.items()]
        made += ["\n", f"vLLM is not stricter: {', '.join(alike)}.\n", "\n"]
        made += [
            f"Only vLLM reads these, with its own checks: {', '.join(f'`{name}`' for name in route['vllm_only'])}.\n"
        ]
        made += ["\n"]
    return made[:-1]


def _row(name: str, verdict: dict[str, Any]) -> str:
    here = "; ".join(f"{_outcome(outcome)}: {_listed(values)}" for outcome, values in verdict["here"].items())
    return f"| `{name}` | {verdict['ollama']} | {_cell(verdict['vllm'])} | {here} |\n"


def _outcome(outcome: str) -> str:
    return outcome if outcome in _WORDS else f"becomes `{outcome}`"


def _listed(values: list[str]) -> str:
    more = ["…"] if len(values) > _MOST else []
    return ", ".join([f"`{_cell(value)}`" for value in values[:_MOST]] + more)


def _cell(value: str) -> str:
    return value.replace("|", "\\|")
