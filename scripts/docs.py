"""Write the generated parts of pages: flags of `vllama serve`, the replay of recordings, causes of failures.

usage: .venv/bin/python scripts/docs.py [--check]

With --check nothing is written: exit status 1 says that a page is stale.
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
    """A row; in italics what the log fills in."""
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
        "troubleshooting.md",
        "<!-- causes: written by scripts/docs.py from vllama/scheduler/causes.toml -->\n",
        "<!-- end of causes -->\n",
        _causes,
    ),
)
"""The page, the lines between which the part stands, and what makes the part."""


def render(page: str, begin: str, end: str, lines: list[str]) -> str:
    """Return the page with the part as it should be now."""
    before, found, rest = page.partition(begin)
    _, ended, after = rest.partition(end)
    if not (found and ended):
        message = f"a page lacks {begin.strip()} and {end.strip()}"
        raise SystemExit(message)
    return "".join([before, begin, "\n", *lines, "\n", end, after])


def main() -> int:
    """Write the pages, or say which are stale."""
    stale = 0
    for name, begin, end, lines in PARTS:
        path = ROOT / "docs" / name
        page = path.read_text(encoding="utf-8")
        fresh = render(page, begin, end, lines())
        if fresh == page:
            continue
        if "--check" in sys.argv[1:]:
            sys.stderr.write(f"docs/{name} is stale; renew it: .venv/bin/python scripts/docs.py\n")
            stale = 1
        else:
            path.write_text(fresh, encoding="utf-8")
    return stale


if __name__ == "__main__":
    sys.exit(main())
