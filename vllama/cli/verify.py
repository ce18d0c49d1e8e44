"""`vllama verify`: check the files of stored models against their checksums."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from vllama.cli.local_store import open_store, with_hint
from vllama.cli.output import human_size, print_json
from vllama.cli.progress import report
from vllama.names import ModelName

if TYPE_CHECKING:
    from vllama.store.progress import Progress
    from vllama.store.verify import Verdict


@click.command(
    "verify",
    epilog="""\b
Examples:
  vllama verify
  vllama verify smollm2:135m --json | jq '.[].problems'""",
)
@click.argument("names", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_context
def command(ctx: click.Context, names: tuple[str, ...], *, as_json: bool) -> None:
    """Check the files of stored models against their checksums.

    Checks the models with these NAMES, or all models in the model store (OLLAMA_MODELS). The exit code is 1 if a file
    is damaged or missing.
    """
    models = [ModelName.parse(name) for name in names]
    from vllama.store.verify import verify

    store = open_store()
    verdicts: list[Verdict] = []

    def steps() -> Iterator[Progress]:
        verdicts.extend((yield from verify(store, models)))

    with with_hint(store):
        report(steps(), as_json=False)
    if as_json:
        print_json([verdict.to_record() for verdict in verdicts])
    else:
        for verdict in verdicts:
            click.echo(_line(verdict))
    if any(verdict.problems for verdict in verdicts):
        ctx.exit(1)


def _line(verdict: Verdict) -> str:
    if not verdict.problems:
        return f"{verdict.name}: {verdict.files} files, {human_size(verdict.size)}, no damage"
    return "\n".join(f"{verdict.name}: {problem}" for problem in verdict.problems.values())
