"""The verdicts of the last replay, which are committed, and the tables made of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from replay.deviations import DEVIATIONS, Verdict

FILE = Path(__file__).with_name("results.json")


@dataclass(frozen=True)
class Result:
    """A verdict as it is kept: its word, the ids of its rules, and the differences that none explains."""

    word: str
    rules: tuple[str, ...] = ()
    left: tuple[str, ...] = ()

    @classmethod
    def of(cls, verdict: Verdict) -> Result:
        return cls(verdict.word, _in_table_order(verdict.rules), tuple(map(str, verdict.left)))

    def needs_no_more_than(self, kept: Result) -> bool:
        """Return whether all that is otherwise is what was kept.

        A sample may need fewer rules than the full run: what a model shows depends on what was asked of it before.
        """
        return self.left == kept.left and set(self.rules) <= set(kept.rules)


def _in_table_order(rules: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(rules, key=[rule.id for rule in DEVIATIONS].index))


@cache
def committed() -> dict[str, Result]:
    """The results of the last replay, by the names of exchanges."""
    rows = json.loads(FILE.read_text(encoding="utf-8"))
    return {name: Result(word, tuple(rules), tuple(left)) for name, (word, rules, left) in rows.items()}


def commit(results: Mapping[str, Result]) -> None:
    """Write the file, one exchange a line."""
    rows = [
        f"{json.dumps(name)}: {json.dumps([row.word, row.rules, row.left], ensure_ascii=False)}"
        for name, row in results.items()
    ]
    FILE.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")


def counts(results: Mapping[str, Result]) -> dict[str, int]:
    """How many exchanges got which verdict."""
    words = [row.word for row in results.values()]
    return {word: words.count(word) for word in ("same", "allowed deviation", "different")}


def tables(results: Mapping[str, Result]) -> list[str]:
    """The lines of Markdown: how many of each, the rules with their exchanges, and what is different."""
    lines = [", ".join(f"{number} {word}" for word, number in counts(results).items()) + ".\n", "\n"]
    lines += ["| Rule | What is otherwise | Reference | Exchanges |\n", "|---|---|---|---|\n"]
    for rule in DEVIATIONS:
        names = [name for name, row in results.items() if rule.id in row.rules]
        lines.append(f"| {rule.id} | {rule.text} | {rule.reference} | {_numbers(names)} |\n")
    different = {name: row for name, row in results.items() if row.word == "different"}
    if different:
        lines += ["\n", "| Different | Recorded → actual |\n", "|---|---|\n"]
        lines += [f"| {name} | {_cell(row.left)} |\n" for name, row in different.items()]
    lines += ["\n", f"Same: {_numbers(name for name, row in results.items() if row.word == 'same')}.\n"]
    return lines


def _numbers(names: Iterable[str]) -> str:
    """The numbers that names begin with; several exchanges of one number are told apart by their last letter."""
    return ", ".join(_number(name) for name in names)


def _number(name: str) -> str:
    number, last = name.partition("_")[0], name.rpartition("_")[2]
    return f"{number}-{last}" if len(last) == 1 and last.isdigit() and number[0] == "8" else number


def _cell(left: Iterable[str]) -> str:
    text = "; ".join(left).replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
    return text if len(text) <= _CELL else f"{text[:_CELL]}…"


_CELL = 400
