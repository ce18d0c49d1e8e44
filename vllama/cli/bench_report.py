"""`vllama bench report`: print an existing result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vllama.cli.bench_output import Outputs, emit, output_options, read_result


@click.command("report")
@click.argument("result", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@output_options
def command(result: Path, **outputs: Any) -> None:
    """Print a RESULT that `vllama bench --json` or `-o` wrote, without measuring again."""
    emit(read_result(result), Outputs(**outputs))
