"""`vllama run`: ask once, or chat."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import click

from vllama.cli.answer import Answer, timings
from vllama.cli.chat import Chat
from vllama.cli.client import Client
from vllama.cli.conversation import Conversation, Think, infer_think
from vllama.cli.loading import LoadSpinner
from vllama.cli.output import print_json
from vllama.durations import FOREVER, NS_PER_SECOND, parse_keep_alive
from vllama.errors import RequestError, ServerError
from vllama.settings import parse_bool

HISTORY = Path("~/.vllama/history")
HISTORY_LINES = 1000

THINK_LEVELS = ("true", "false", "low", "medium", "high", "max")


def _format(ctx: click.Context, param: click.Parameter, value: str | None) -> Any:  # noqa: ARG001
    """Return what is sent as `format`: "json", or a JSON schema (contract §2.4)."""
    if value is None or value == "json":
        return value
    try:
        schema = json.loads(value)
    except ValueError:
        schema = None
    if not isinstance(schema, dict):
        message = f"{value!r} is neither json nor a JSON schema object"
        raise click.BadParameter(message)
    return schema


def _seconds(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:  # noqa: ARG001
    """Return the seconds of a keep-alive; -1 is for ever."""
    try:
        ns = parse_keep_alive(value)
    except RequestError as error:
        raise click.BadParameter(str(error)) from error
    if ns is None or ns == FOREVER:
        return ns
    return ns // NS_PER_SECOND if ns % NS_PER_SECOND == 0 else ns / NS_PER_SECOND


class RunCommand(click.Command):
    """Lets `--think` stand alone: the word after it is the prompt, a level is given as `--think=high`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments as click does, once `--think` has its value."""
        end = args.index("--") if "--" in args else len(args)
        options = ["--think=true" if arg == "--think" else arg for arg in args[:end]]
        return super().parse_args(ctx, options + args[end:])


@click.command(
    "run",
    cls=RunCommand,
    epilog="""\b
Examples:
  vllama run smollm2:135m
  vllama run smollm2:135m "Why is the sky blue?"
  vllama run smollm2:135m "Summarise this:" < notes.txt
  vllama run smollm2:135m --json "Name a colour" | jq -r .response""",
)
@click.argument("name")
@click.argument("prompt", nargs=-1)
@click.option("--system", default="", help="System message, instead of the model's own.")
@click.option(
    "--format", "format_", metavar="json|SCHEMA", callback=_format, help="Answer in JSON, or after a JSON schema."
)
@click.option(
    "--keepalive", metavar="DURATION", callback=_seconds, help="How long the model stays loaded: 5m, 300, 0, -1."
)
@click.option("--think", type=click.Choice(THINK_LEVELS), help="Let the model think first: --think or --think=LEVEL.")
@click.option("--hidethinking", is_flag=True, help="Do not show what it thinks.")
@click.option("--verbose", is_flag=True, help="Show the timings of each answer.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON record instead of streaming text.")
def command(
    name: str,
    prompt: Sequence[str],
    *,
    system: str,
    format_: Any,
    keepalive: float | None,
    think: str | None,
    hidethinking: bool,
    verbose: bool,
    as_json: bool,
) -> None:
    """Ask a model once, or chat with it.

    Without a PROMPT it is a chat; type /? there for help. Text on standard input comes before the PROMPT.
    """
    text, interactive = _gather(prompt)
    if interactive and as_json:
        message = "--json needs a prompt"
        raise click.UsageError(message)
    client = Client.from_environment()
    info = client.show(name)
    chosen: Think | None = {"true": True, "false": False}.get(think or "", think)
    conversation = Conversation(name, system, format_, keepalive, think=infer_think(info) if chosen is None else chosen)
    capabilities = info.get("capabilities") or ()
    if "embedding" in capabilities and "completion" not in capabilities:
        _embed(client, conversation, text)
    elif interactive:
        _chat(client, conversation, verbose=verbose, hide_thinking=hidethinking, think_is_chosen=chosen is not None)
    elif as_json:
        with LoadSpinner(client, name):
            record = client.post("/api/generate", {**conversation.generate(text), "stream": False})
        print_json(record)
    else:
        _ask_once(client, conversation, text, verbose=verbose, hide_thinking=hidethinking)


def _gather(words: Sequence[str]) -> tuple[str, bool]:
    """Return the prompt, and whether to chat instead: only where a person sits at both ends."""
    parts = list(words)
    at_terminal = sys.stdin.isatty()
    if not at_terminal:
        piped = sys.stdin.buffer.read().decode(errors="replace")
        parts = [piped, *parts] if piped else parts
    return " ".join(parts), at_terminal and sys.stdout.isatty() and not parts


def _ask_once(client: Client, conversation: Conversation, text: str, *, verbose: bool, hide_thinking: bool) -> None:
    answer = Answer()
    stream = client.stream("/api/generate", conversation.generate(text))
    with LoadSpinner(client, conversation.model) as spinner, closing(stream) as records:
        answer.show(spinner.until_first(records), sys.stdout, hide_thinking=hide_thinking)
    if text:
        click.echo("\n")
    if verbose:
        click.echo(timings(answer.final), err=True)


def _embed(client: Client, conversation: Conversation, text: str) -> None:
    if not text:
        message = f'an embedding model needs a text: vllama run {conversation.model} "your text"'
        raise click.UsageError(message)
    embeddings = client.post("/api/embed", {**conversation.load(), "input": text}).get("embeddings")
    if not embeddings:
        message = "the server returned no embedding"
        raise ServerError(message)
    click.echo(json.dumps(embeddings[0]))


def _chat(client: Client, conversation: Conversation, **switches: bool) -> None:
    with LoadSpinner(client, conversation.model, f"loading {conversation.model}"):
        client.post("/api/generate", {**conversation.load(), "stream": False})
    with _line_editor() as keep_history:
        Chat(conversation, client, input, keep_history, sys.stdout, sys.stderr, **switches).run()


@contextmanager
def _line_editor() -> Iterator[Callable[[bool], None]]:
    """Give `input` line editing and a history that outlives the session; yield its switch."""
    try:
        import readline
    except ImportError:  # a Python that was built without it
        yield lambda on: None  # noqa: ARG005
        return
    path = HISTORY.expanduser()
    with suppress(OSError):
        readline.read_history_file(path)
    readline.set_history_length(HISTORY_LINES)
    readline.set_auto_history(not parse_bool(os.environ.get("OLLAMA_NOHISTORY") or "0"))
    try:
        yield readline.set_auto_history
    finally:
        with suppress(OSError):  # a home that cannot be written is no reason to fail a chat that is over
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
            readline.write_history_file(path)
