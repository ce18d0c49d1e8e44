"""The command group: finds the subcommands, and turns errors into messages and exit codes."""

from __future__ import annotations

import errno
from importlib import import_module
from typing import Any, NoReturn

import click

from vllama import OLLAMA_VERSION, __version__
from vllama.errors import BadEngineFlags, RequestError, ServerUnreachable, SettingsError, VllamaError

COMMANDS = (
    "serve", "run", "list", "ps", "show", "plan", "pull", "create", "import", "cp", "rm", "stop", "reload", "du", "gc",
    "stage", "load", "verify", "bench",
)  # fmt: skip
ALIASES = {"ls": "list"}
_MODULES = {"import": "import_models"}
"""Of commands whose name is a keyword of Python's."""

FAILED, WRONG_USAGE, UNREACHABLE, INTERRUPTED = 1, 2, 3, 130

EPILOG = f"""\b
Examples:
  vllama serve --model smollm2:135m
  vllama run smollm2:135m "Why is the sky blue?"

\b
Exit codes:
  0    it worked
  {FAILED}    the server, the model or the store answered with an error
  {WRONG_USAGE}    wrong usage: an unknown option, a bad value, no model name
  {UNREACHABLE}    no server could be reached at OLLAMA_HOST
  {INTERRUPTED}  stopped with Ctrl-C"""


class LazyGroup(click.Group):
    """A group that imports a command's module when the command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the commands in the order in which a newcomer meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Return the command of this name or alias, or None."""
        name = ALIASES.get(cmd_name, cmd_name)
        if name not in COMMANDS:
            return None
        command: click.Command = import_module(f"vllama.cli.{_MODULES.get(name, name)}").command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; the one place where an error becomes a message and an exit code."""
        try:
            return super().invoke(ctx)
        except VllamaError as error:
            _fail(ctx, error, exit_code(error))
        except KeyboardInterrupt:
            click.echo(err=True)
            ctx.exit(INTERRUPTED)
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise  # the reader of our output left: click ends quietly
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
    """Serve language models with Ollama's API and habits on vLLM's engine."""
