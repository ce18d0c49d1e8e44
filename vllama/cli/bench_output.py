"""Options shared by all `vllama bench` commands that print or write a result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import click

if TYPE_CHECKING:
    from vllama.bench.cost import Cost
    from vllama.bench.result import ExperimentResult

F = TypeVar("F", bound=Callable[..., Any])

_FILE = click.Path(dir_okay=False, path_type=Path)

_OPTIONS = (
    click.option("--json", "as_json", is_flag=True, help="Print the whole result as JSON; its schema is published."),
    click.option("--csv", "as_csv", is_flag=True, help="Print one line of figures for each system and load."),
    click.option("--markdown", "as_markdown", is_flag=True, help="Print a report in Markdown."),
    click.option("-o", "--output", type=_FILE, metavar="FILE", help="Also keep the result as JSON in FILE."),
    click.option("--html", type=_FILE, metavar="FILE", help="Also write a page with plots that needs nothing else."),
    click.option(
        "--png", type=click.Path(file_okay=False, path_type=Path), metavar="DIR", help="Also write each plot to DIR."
    ),
    click.option(
        "--cost", type=click.FloatRange(min=0, min_open=True), metavar="MONEY",
        help="Price of one GPU (or machine without GPU) per hour; adds the cost of a million tokens.",
    ),
    click.option(
        "--users", type=click.IntRange(min=1), metavar="N", help="With --cost: number of GPUs for N concurrent users.",
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Outputs:
    """The values of the options."""

    as_json: bool = False
    as_csv: bool = False
    as_markdown: bool = False
    output: Path | None = None
    html: Path | None = None
    png: Path | None = None
    cost: float | None = None
    users: int | None = None

    @classmethod
    def taken_from(cls, options: dict[str, Any]) -> Self:
        """Return them, and take them out of a command's options, which a result keeps."""
        return cls(**{field.name: options.pop(field.name) for field in fields(cls)})

    def __post_init__(self) -> None:
        if self.as_json + self.as_csv + self.as_markdown > 1:
            raise click.UsageError("--json, --csv and --markdown exclude each other")
        if self.users is not None and self.cost is None:
            raise click.UsageError("--users needs --cost")
        if self.html or self.png:
            from vllama.bench.report.plots import require_matplotlib

            require_matplotlib()


def output_options(command: F) -> F:
    """Give a command the options, which reach it as keyword arguments with the names of Outputs' fields."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def emit(result: ExperimentResult, outputs: Outputs) -> None:
    """Write the files that were asked for, and print the result."""
    from vllama.bench.cost import costs_of
    from vllama.bench.report import text
    from vllama.bench.result import dump

    costs = costs_of(result, outputs.cost, outputs.users) if outputs.cost is not None else []
    written = _write_files(result, outputs, costs)
    if outputs.as_json:
        click.echo(dump(result), nl=False)
    elif outputs.as_csv:
        click.echo(text.comma_separated(result), nl=False)
    elif outputs.as_markdown:
        click.echo(text.markdown(result, costs), nl=False)
    else:
        click.echo(text.console(result, costs))
    for path in written:
        click.echo(f"wrote {path}", err=True)


def _write_files(result: ExperimentResult, outputs: Outputs, costs: Sequence[Cost]) -> list[Path]:
    written = []
    if outputs.output:
        from vllama.bench.result import dump

        outputs.output.write_bytes(dump(result))
        written.append(outputs.output)
    if outputs.html:
        from vllama.bench.report.page import page

        outputs.html.write_text(page(result, costs), encoding="utf-8")
        written.append(outputs.html)
    if outputs.png:
        from vllama.bench.report.plots import plots_of

        outputs.png.mkdir(parents=True, exist_ok=True)
        for plot in plots_of(result):
            path = outputs.png / f"{plot.name}.png"
            path.write_bytes(plot.png())
            written.append(path)
    return written


def read_result(path: Path) -> ExperimentResult:
    """Return the result in this file. Raises BadResult, which names the file."""
    from vllama.bench.dataclass_json import BadResult
    from vllama.bench.result import load

    try:
        return load(path.read_bytes())
    except BadResult as error:
        message = f"{path}: {error}"
        raise BadResult(message) from error
