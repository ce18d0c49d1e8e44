"""The command `scripts/fuzz`."""

from __future__ import annotations

import json
import random
import sys
import tempfile
from pathlib import Path

import click
from engine.server import Server

from fuzz.campaign import ENVIRONMENT, FLAGS, Campaign, Tally, table
from fuzz.models import stock
from vllama.machine.tied import tied
from vllama.store.model_store import ModelStore


@click.command()
@click.option("--number", default=2000, show_default=True, help="Number of requests.")
@click.option("--seed", type=int, help="Random seed of the requests; default: a new one, which is printed.")
@click.option("--only", default="", help='Text that the routes have in common, such as "POST /api".')
@click.option("--minutes", default=30.0, show_default=True, help="Time limit, from the start of the server.")
@click.option("--snapshots", type=click.Path(path_type=Path), help="Directory that keeps the models for further runs.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="File to write all results to.")
def command(
    number: int, seed: int | None, only: str, minutes: float, snapshots: Path | None, json_file: Path | None
) -> None:
    """Send random requests to every route of a server with tiny models, and print a table of the replies.

    The routes and their fields are read from the server's own OpenAPI document, and from vLLM's. No reply may be a 5xx
    that is not documented, no connection may be dropped, no process may die, and every error must have the form of its
    API. The exit status is 1 if one of these fails. The tiny models use the tokenizers of smollm2:135m and all-minilm
    in the model store ($OLLAMA_MODELS); without all-minilm no model ranks.
    """
    seed = random.randrange(1 << 30) if seed is None else seed
    click.echo(f"seed {seed}", err=True)
    with tempfile.TemporaryDirectory(prefix="vllama-fuzz-") as directory:
        store = ModelStore(Path(directory) / "models")
        models = stock(store, snapshots or Path(directory) / "snapshots")
        server = Server(store.root, *FLAGS, environ={**ENVIRONMENT, "VLLAMA_SPARE_WORKERS": "1"}, under=tied())
        try:
            campaign = Campaign(server, models, seed, minutes * 60, only)

            def tell(tally: Tally) -> None:
                click.echo(_line(tally), err=True)
                if json_file is not None:
                    json_file.write_text(json.dumps(campaign.report.as_json(), indent=1) + "\n")

            report = campaign.run(number, tell)
        finally:
            server.close()
    if json_file is not None:
        json_file.write_text(json.dumps(report.as_json(), indent=1) + "\n")
    click.echo("\n".join(table(report)))
    for fault in report.faults:
        click.echo(f"{fault.route}: {fault.what}\n  {fault.request[:1000]}\n  {fault.reply[:500]!r}", err=True)
    for line in report.wrong:
        click.echo(f"WRONG: {line}", err=True)
    sys.exit(1 if report.wrong else 0)


def _line(tally: Tally) -> str:
    bad = f", {tally.faulty} faulty, {tally.dropped} dropped, {tally.shapes} of another form" if tally.is_bad else ""
    return f"{tally.route}: {tally.requests} requests{bad}"


if __name__ == "__main__":
    command()
