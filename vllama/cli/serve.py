"""`vllama serve`: start the server. Options that are not ours are passed to vLLM unchanged."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from vllama import settings_file
from vllama.cli.output import go_duration
from vllama.errors import RequestError
from vllama.names import ModelName
from vllama.settings import SETTINGS, Setting, Settings

_FLAG = re.compile(r"-(?![\d.]|$)")  # "-1" and "-" are values


def split_arguments(arguments: Sequence[str], own: Mapping[str, bool]) -> tuple[list[str], list[str]]:
    """Split a command line into our arguments and vLLM's, keeping their order.

    `own` maps each of our flags to whether a value follows it. An argument that is not a flag
    belongs to the flag before it: one of vLLM's flags may have any number of values, and
    `--flag=value` has no further ones. Everything after `--` is vLLM's. Raises click.UsageError for
    a value that belongs to no flag.
    """
    ours: list[str] = []
    engine: list[str] = []
    rest = iter(arguments)
    takes_values = False
    for argument in rest:
        flag, has_value, _ = argument.partition("=")
        spelled = flag.replace("_", "-")  # vLLM accepts - and _, so we do too
        if argument == "--":
            own, takes_values = {}, False
        elif not _FLAG.match(argument):
            if not takes_values:
                message = f"unexpected argument '{argument}'; to load a model, use --model {argument}"
                raise click.UsageError(message)
            engine.append(argument)
        elif spelled in own:
            ours.append(argument.replace(flag, spelled, 1))
            if own[spelled] and not has_value:
                ours += [value for value in [next(rest, None)] if value is not None]
            takes_values = False
        else:
            engine.append(argument)
            takes_values = not has_value
    return ours, engine


class ServeCommand(click.Command):
    """A command that keeps vLLM's flags from click and stores them in `ctx.meta`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Remove vLLM's flags and parse the rest strictly."""
        own = {
            spelling: not option.is_flag
            for option in self.get_params(ctx)
            if isinstance(option, click.Option)
            for spelling in (*option.opts, *option.secondary_opts)
        }
        ours, ctx.meta["engine_flags"] = split_arguments(args, own)
        return super().parse_args(ctx, ours)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Return the pieces of the usage line, including vLLM's flags."""
        return [*super().collect_usage_pieces(ctx), "[VLLM FLAGS]..."]


def _setting_option(row: Setting) -> click.Option:
    """Return the flag for a row of the settings table. It accepts the same values as the variable."""
    flag = f"--{row.name.replace('_', '-')}"
    help_text = f"{row.meaning[0].upper()}{row.meaning[1:]}.  [{row.env}{_default_text(row)}]"
    if isinstance(row.default, bool):
        return click.Option([f"{flag}/--no-{flag[2:]}", row.name], default=None, help=help_text)

    def check(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:  # noqa: ARG001
        try:
            if value is not None:
                row.parse(value)
        except (ValueError, RequestError) as error:
            raise click.BadParameter(str(error)) from error
        return value

    return click.Option([flag, row.name], callback=check, metavar="VALUE", help=help_text)


def _default_text(row: Setting) -> str:
    """Return the default for `--help`."""
    default = row.default
    if row.shown:
        text = row.shown
    elif row.is_duration:
        text = go_duration(default)
    elif isinstance(default, Path) and default.is_relative_to(Path.home()):
        text = f"~/{default.relative_to(Path.home())}"
    else:
        text = str(default) if default else ""
    return f"; default: {text}" if text else ""


def _check_models(ctx: click.Context, param: click.Parameter, value: Sequence[str]) -> Sequence[str]:  # noqa: ARG001
    for text in value:
        name, has_path, path = text.partition("=")
        ModelName.parse(name)
        if has_path and not path:
            message = f"'{text}': the path after = is missing"
            raise click.BadParameter(message)
    return value


@click.pass_context
def serve(
    ctx: click.Context,
    /,
    models_to_load: Sequence[str],
    port: int | None,
    file: str | None,
    *,
    compiled: bool,
    fast_start: bool,
    **rows: Any,
) -> None:
    """Start the server.

    Flags that are not listed below are passed to vLLM unchanged, for every model, for example

    \b
      --gpu-memory-utilization 0.9   --max-num-seqs 256
      --max-model-len 4096           --enable-prefix-caching

    Square brackets after an option hold its environment variable and its default.
    """
    from vllama.scheduler.engine_flags import EAGER, check_for_all

    engine_flags: list[str] = ctx.meta["engine_flags"]
    check_for_all(engine_flags)
    if fast_start:
        if compiled:
            message = "--fast-start and --compile cannot be used together"
            raise click.UsageError(message)
        engine_flags = [EAGER, *engine_flags]
    read = partial(_settings, rows, port, file)
    settings = read()
    from vllama.cli.missing_models import pull_missing
    from vllama.gateway.server import serve as serve_gateway

    pull_missing(settings, models_to_load)

    ctx.exit(serve_gateway(settings, read, models=models_to_load, engine_flags=engine_flags, compile=compiled))


def _settings(rows: Mapping[str, Any], port: int | None, file: str | None) -> Settings:
    """Return the settings in force; flags replace their variables."""
    given = {row.env: rows[row.name] for row in SETTINGS if rows[row.name] is not None}
    if file is not None:
        given[settings_file.VARIABLE] = file
    settings = settings_file.load({**os.environ, **{env: str(value) for env, value in given.items()}})
    if port is None:
        return settings
    address = settings.address
    host = f"[{address.host}]" if ":" in address.host else address.host
    path = f"/{address.path}" if address.path else ""
    return replace(settings, host=f"{address.scheme}://{host}:{port}{path}")


command = ServeCommand(
    "serve",
    callback=serve,
    help=serve.__doc__,
    params=[
        click.Option(
            ["--model", "models_to_load"],
            multiple=True,
            callback=_check_models,
            metavar="NAME[=PATH]",
            help="Model to load at startup; with PATH, a Hugging Face snapshot to serve as NAME. Repeatable.",
        ),
        *(_setting_option(row) for row in SETTINGS),
        click.Option(
            ["--settings", "file"],
            metavar="FILE",
            help="Settings file (TOML); flags and variables take precedence. `vllama reload` reads it again."
            f"  [{settings_file.VARIABLE}; default: {settings_file.DEFAULT}]",
        ),
        click.Option(
            ["--port"],
            metavar="PORT",
            type=click.IntRange(0, 65535),
            help="Port to listen on; replaces the port of --host.",
        ),
        click.Option(
            ["--compile/--no-compile", "compiled"],
            default=False,
            help="Compile models on CPUs too: slower startup, somewhat faster inference. GPUs compile by default.",
        ),
        click.Option(
            ["--fast-start"],
            is_flag=True,
            help="Skip compilation and CUDA graphs: faster startup, slower inference. The default on CPUs.",
        ),
    ],
    epilog="""\b
Examples:
  vllama serve --model smollm2:135m
  vllama serve --model qwen=/models/qwen2.5-7b --keep-alive -1 --max-num-seqs 256
  vllama serve --host 0.0.0.0 --port 8080""",
)
