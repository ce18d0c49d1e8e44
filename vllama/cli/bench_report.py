"""`vllama bench report`: a result that is there already, once more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vllama.cli.bench_output import Outputs, emit, output_options, read_result


@click.command("report")
@click.argument("result", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@output_options
def command(result: Path, **outputs: Any) -> None:
    """Report on a RESULT that `vllama bench --json` or `-o` kept, without measuring again."""
    emit(read_result(result), Outputs(**outputs))
