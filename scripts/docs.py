"""Write the generated part of docs/configuration.md: the flags of `vllama serve` and their variables.

usage: .venv/bin/python scripts/docs.py [--check]

With --check nothing is written: exit status 1 says that the page is stale.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from vllama.cli.serve import command

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"
BEGIN = "<!-- flags: written by scripts/docs.py from the command line itself -->\n"
END = "<!-- end of flags -->\n"


def render(page: str) -> str:
    """Return the page with the table as it should be now."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        message = f"{PAGE} lacks the lines between which the table of flags stands"
        raise SystemExit(message)
    return "".join([before, begin, "\n", *_table(), "\n", end, after])


def _table() -> list[str]:
    rows = ["| Flag | Variable | Default | Meaning |\n", "|---|---|---|---|\n"]
    for option in command.params:
        if isinstance(option, click.Option):
            flag = " / ".join([*option.opts, *option.secondary_opts])
            meaning, _, origin = (option.help or "").partition("  [")
            variable, _, default = origin.rstrip("]").partition("; default: ")
            cells = [flag, variable, default]
            rows.append(f"| {' | '.join(f'`{cell}`' if cell else '' for cell in cells)} | {meaning} |\n")
    return rows


def main() -> int:
    """Write the page, or say whether it is stale."""
    page = PAGE.read_text(encoding="utf-8")
    fresh = render(page)
    if fresh == page:
        return 0
    if "--check" in sys.argv[1:]:
        sys.stderr.write("docs/configuration.md is stale; renew it: .venv/bin/python scripts/docs.py\n")
        return 1
    PAGE.write_text(fresh, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
