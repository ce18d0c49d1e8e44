"""`vllama bench rerun`: repeat a measurement with the options stored in its result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vllama.cli.bench_output import output_options, read_result

if TYPE_CHECKING:
    from vllama.bench.result import ExperimentResult


@click.command("rerun")
@click.argument("result", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@output_options
@click.pass_context
def command(ctx: click.Context, /, result: Path, **outputs: Any) -> None:
    """Repeat the measurement of RESULT and list what has changed in its environment.

    The same servers must be running. Output options are taken from this command line, not from RESULT.
    """
    from vllama.cli.bench import command as bench

    before = read_result(result)
    if not before.options:
        raise click.UsageError(f"{result} does not keep the options that it was made with")
    options = {**before.options, **_first_system(before)}
    _say_what_changed(before)
    status = bench.main(arguments_of(bench, {**options, **outputs}), prog_name="vllama bench", standalone_mode=False)
    if isinstance(status, int):
        ctx.exit(status)


def _first_system(before: ExperimentResult) -> dict[str, str]:
    """Return what the options may have left to OLLAMA_HOST and to what was loaded; overhead brings its own servers."""
    if before.options.get("mode") == "overhead":
        return {}
    return {"url": before.systems[0].url, "model": before.systems[0].model}


def arguments_of(command: click.Command, values: Mapping[str, Any]) -> list[str]:
    """Return the command line that gives a command's parameters these values, positional ones last.

    Values are as JSON keeps them; a list for an option that is given once is joined by commas.
    """
    options: list[str] = []
    positional: list[str] = []
    for param in command.params:
        value = values.get(param.name or "")
        if value is None or value == []:
            continue
        if isinstance(param, click.Option):
            options += _option(param, value)
        else:
            positional += _texts(value)
    return [*options, *(["--", *positional] if positional else [])]


def _option(param: click.Option, value: Any) -> list[str]:
    name = max(param.opts, key=len)
    if param.is_flag:
        if value:
            return [name]
        return param.secondary_opts[:1]
    if param.multiple:
        return [word for text in _texts(value) for word in (name, text)]
    return [name, ",".join(_texts(value))]


def _texts(value: Any) -> list[str]:
    entries: Sequence[Any] = value if isinstance(value, list | tuple) else [value]
    return [f"{entry:g}" if isinstance(entry, float) else str(entry) for entry in entries]


def _say_what_changed(before: ExperimentResult) -> None:
    from vllama.bench.environment import differences, manifest

    changed = differences(before.environment, manifest(before.systems)) if before.environment else {}
    for name, (was, now) in changed.items():
        click.echo(f"changed since: {name}: {was or 'nothing'} → {now or 'nothing'}", err=True)
