"""Update the generated parts of docs: flags of `vllama serve`, replay results, fields of `/v1`, causes of failures.

usage: .venv/bin/python scripts/docs.py [--check]

With --check, nothing is written; the exit status is 1 if a page is out of date.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import click

from vllama.cli.serve import command
from vllama.scheduler.causes import catalogue, signals

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests"))

from replay import results  # noqa: E402
from v1_fields import table  # noqa: E402


def _flags() -> list[str]:
    rows = ["| Flag | Variable | Default | Meaning |\n", "|---|---|---|---|\n"]
    for option in command.params:
        if isinstance(option, click.Option):
            flag = " / ".join([*option.opts, *option.secondary_opts])
            meaning, _, origin = (option.help or "").partition("  [")
            variable, _, default = origin.rstrip("]").partition("; default: ")
            cells = [flag, variable, default]
            rows.append(f"| {' | '.join(f'`{cell}`' if cell else '' for cell in cells)} | {meaning} |\n")
    return rows


def _replay() -> list[str]:
    return results.tables(results.committed())


def _causes() -> list[str]:
    known = [(cause.text, cause.fix) for cause in catalogue()]
    killed = [(cause.text.replace("{name}", name), cause.fix) for name, cause in signals().items()]
    return ["| Cause | What to do |\n", "|---|---|\n", *(_row(text, fix) for text, fix in [*known, *killed])]


def _row(text: str, fix: str) -> str:
    """Return a table row; placeholders that the log fills in are in italics."""
    return re.sub(r" ?\(?\{(\w+)\}\)?", r" *\1*", f"| {text} | {fix} |\n").replace("|  ", "| ")


PARTS: tuple[tuple[str, str, str, Callable[[], list[str]]], ...] = (
    (
        "configuration.md",
        "<!-- flags: written by scripts/docs.py from the command line itself -->\n",
        "<!-- end of flags -->\n",
        _flags,
    ),
    (
        "compatibility.md",
        "<!-- replay: written by scripts/docs.py from tests/replay/results.json -->\n",
        "<!-- end of replay -->\n",
        _replay,
    ),
    (
        "compatibility.md",
        "<!-- v1 fields: written by scripts/docs.py from tests/v1_fields/verdicts.json -->\n",
        "<!-- end of v1 fields -->\n",
        table.lines,
    ),
    (
        "troubleshooting.md",
        "<!-- causes: written by scripts/docs.py from vllama/scheduler/causes.toml -->\n",
        "<!-- end of causes -->\n",
        _causes,
    ),
)
"""Page, first line and last line of the generated part, and the function that generates it."""


def render(page: str, begin: str, end: str, lines: list[str]) -> str:
    """Return the page with its generated part replaced by `lines`."""
    before, found, rest = page.partition(begin)
    _, ended, after = rest.partition(end)
    if not (found and ended):
        message = f"a page lacks the lines {begin.strip()} and {end.strip()}"
        raise SystemExit(message)
    return "".join([before, begin, "\n", *lines, "\n", end, after])


def main() -> int:
    """Write the pages, or with --check report those that are out of date; return the exit status."""
    stale = 0
    for name, begin, end, lines in PARTS:
        path = ROOT / "docs" / name
        page = path.read_text(encoding="utf-8")
        fresh = render(page, begin, end, lines())
        if fresh == page:
            continue
        if "--check" in sys.argv[1:]:
            sys.stderr.write(f"docs/{name} is out of date; run .venv/bin/python scripts/docs.py\n")
            stale = 1
        else:
            path.write_text(fresh, encoding="utf-8")
    return stale


if __name__ == "__main__":
    sys.exit(main())
