"""The command group: imports subcommands on demand and turns errors into messages and exit codes."""

from __future__ import annotations

import errno
from importlib import import_module
from typing import Any, NoReturn

import click

from vllama import OLLAMA_VERSION, __version__
from vllama.errors import BadEngineFlags, RequestError, ServerUnreachable, SettingsError, VllamaError

COMMANDS = (
    "serve", "run", "list", "ps", "show", "plan", "pull", "create", "import", "cp", "rm", "stop", "reload", "du", "gc",
    "stage", "load", "verify", "bench", "key", "usage",
)  # fmt: skip
ALIASES = {"ls": "list"}
_MODULES = {"import": "import_models"}
"""Module names of commands whose names are Python keywords."""

FAILED, WRONG_USAGE, UNREACHABLE, INTERRUPTED = 1, 2, 3, 130

EPILOG = f"""\b
Examples:
  vllama serve --model smollm2:135m
  vllama run smollm2:135m "Why is the sky blue?"

\b
Environment variables (more in vllama serve --help):
  OLLAMA_HOST    address of the server; default: 127.0.0.1:11434
  OLLAMA_MODELS  model store directory; default: ~/.vllama/models

\b
Exit codes:
  0    success
  {FAILED}    error from the server, a model or the model store
  {WRONG_USAGE}    wrong usage: unknown option, invalid value or missing model name
  {UNREACHABLE}    no server reachable at OLLAMA_HOST
  {INTERRUPTED}  interrupted with Ctrl-C"""


class LazyGroup(click.Group):
    """A command group that imports a command's module only when the command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the commands in the order in which a new user needs them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Return the command of this name or alias, or None."""
        name = ALIASES.get(cmd_name, cmd_name)
        if name not in COMMANDS:
            return None
        command: click.Command = import_module(f"vllama.cli.{_MODULES.get(name, name)}").command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command and turn an error into a message and an exit code."""
        try:
            return super().invoke(ctx)
        except VllamaError as error:
            _fail(ctx, error, exit_code(error))
        except KeyboardInterrupt:
            click.echo(err=True)
            ctx.exit(INTERRUPTED)
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise  # the reader of our output is gone: click exits silently
            _fail(ctx, error, FAILED)


def _fail(ctx: click.Context, error: Exception, code: int) -> NoReturn:
    click.echo(f"Error: {error}", err=True)
    ctx.exit(code)


def exit_code(error: VllamaError) -> int:
    """Return the exit code that `vllama --help` promises for this error."""
    if isinstance(error, ServerUnreachable):
        return UNREACHABLE
    if isinstance(error, RequestError | BadEngineFlags | SettingsError):
        return WRONG_USAGE
    return FAILED


@click.group(
    cls=LazyGroup,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, "-v", "--version", message=f"vllama %(version)s (Ollama API {OLLAMA_VERSION})")
def main() -> None:
    """Run language models with Ollama's API and commands on vLLM's engine."""
