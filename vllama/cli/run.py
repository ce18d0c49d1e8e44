"""`vllama run`: send a prompt to a model, or chat with it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import click

from vllama import settings_file
from vllama.cli.answer import Answer, timings
from vllama.cli.api_client import ApiClient, Record
from vllama.cli.chat import Chat
from vllama.cli.conversation import Conversation, Think, infer_think
from vllama.cli.loading import LoadSpinner
from vllama.cli.output import print_json
from vllama.durations import FOREVER, NS_PER_SECOND, parse_keep_alive
from vllama.errors import RequestError, ServerError, ServerRefused
from vllama.settings import parse_bool

HISTORY = Path("~/.vllama/history")
HISTORY_LINES = 1000


def _format(ctx: click.Context, param: click.Parameter, value: str | None) -> Any:  # noqa: ARG001
    """Return the request's `format`: "json", or a JSON schema (contract §2.4)."""
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
    """Return a keep-alive in seconds; -1 means forever."""
    try:
        ns = parse_keep_alive(value)
    except RequestError as error:
        raise click.BadParameter(str(error)) from error
    if ns is None or ns == FOREVER:
        return ns
    return ns // NS_PER_SECOND if ns % NS_PER_SECOND == 0 else ns / NS_PER_SECOND


class RunCommand(click.Command):
    """A command whose `--think` needs no value: the next word is the prompt; levels are given as `--think=high`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Give a bare `--think` its value, then parse the arguments as click does."""
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
@click.option("--system", default="", help="System message that replaces the model's own.")
@click.option(
    "--format", "format_", metavar="json|SCHEMA", callback=_format, help="Reply format: json, or a JSON schema."
)
@click.option(
    "--keepalive",
    metavar="DURATION",
    callback=_seconds,
    help="How long the idle model stays loaded: 5m, 300 (seconds), 0 (unload at once), -1 (forever).",
)
@click.option(
    "--think",
    metavar="[LEVEL]",
    help="Thinking: --think turns it on, --think=false off, and --think=LEVEL (low, medium, high, max, …) sets it.",
)
@click.option("--hidethinking", is_flag=True, help="Hide the model's thinking.")
@click.option("--no-pull", is_flag=True, help="Fail if the model is not stored instead of pulling it.  [VLLAMA_PULL=0]")
@click.option("--verbose", is_flag=True, help="Print timings after each reply.")
@click.option("--json", "as_json", is_flag=True, help="Print the reply as one JSON object instead of streaming text.")
def command(
    name: str,
    prompt: Sequence[str],
    *,
    system: str,
    format_: Any,
    keepalive: float | None,
    think: str | None,
    hidethinking: bool,
    no_pull: bool,
    verbose: bool,
    as_json: bool,
) -> None:
    """Send a prompt to a model, or chat with it.

    The server pulls a model that is not stored. Without PROMPT, an interactive chat starts; type /? in it for help.
    Text from standard input is put before PROMPT.
    """
    text, interactive = _gather(prompt)
    if interactive and as_json:
        message = "--json needs a prompt"
        raise click.UsageError(message)
    client = ApiClient.from_environment()
    info = _details(client, name, no_pull=no_pull)
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


def _details(client: ApiClient, name: str, *, no_pull: bool) -> Record:
    """Return the server's details of the model, which it pulls first if it is not stored."""
    try:
        return client.show(name)
    except ServerRefused as error:
        from vllama.cli.missing_models import have_pulled, may_pull

        if error.status != 404 or no_pull or not may_pull(settings_file.load(os.environ)):
            raise
    have_pulled(client, name)
    return client.show(name)


def _gather(words: Sequence[str]) -> tuple[str, bool]:
    """Return the prompt, and whether to chat instead (no prompt, and both stdin and stdout are terminals)."""
    parts = list(words)
    at_terminal = sys.stdin.isatty()
    if not at_terminal:
        piped = sys.stdin.buffer.read().decode(errors="replace")
        parts = [piped, *parts] if piped else parts
    return " ".join(parts), at_terminal and sys.stdout.isatty() and not parts


def _ask_once(client: ApiClient, conversation: Conversation, text: str, *, verbose: bool, hide_thinking: bool) -> None:
    answer = Answer()
    stream = client.stream("/api/generate", conversation.generate(text))
    with LoadSpinner(client, conversation.model) as spinner, closing(stream) as records:
        answer.show(spinner.until_first(records), sys.stdout, hide_thinking=hide_thinking)
    if text:
        click.echo("\n")
    if verbose:
        click.echo(timings(answer.final), err=True)


def _embed(client: ApiClient, conversation: Conversation, text: str) -> None:
    if not text:
        message = f'an embedding model needs text: vllama run {conversation.model} "your text"'
        raise click.UsageError(message)
    embeddings = client.post("/api/embed", {**conversation.load(), "input": text}).get("embeddings")
    if not embeddings:
        message = "the server returned no embedding"
        raise ServerError(message)
    click.echo(json.dumps(embeddings[0]))


def _chat(client: ApiClient, conversation: Conversation, **switches: bool) -> None:
    with LoadSpinner(client, conversation.model, f"loading {conversation.model}"):
        client.post("/api/generate", {**conversation.load(), "stream": False})
    with _line_editor() as keep_history:
        Chat(conversation, client, input, keep_history, sys.stdout, sys.stderr, **switches).run()


@contextmanager
def _line_editor() -> Iterator[Callable[[bool], None]]:
    """Give `input` line editing and a persistent history; yield a function that switches the history on or off."""
    try:
        import readline
    except ImportError:  # this Python was built without readline
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
        with suppress(OSError):  # an unwritable home directory must not fail a finished chat
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
            readline.write_history_file(path)
