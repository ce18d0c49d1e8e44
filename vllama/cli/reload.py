"""`vllama reload`: have a running server read its settings again."""

from __future__ import annotations

import os
import signal

import click

from vllama import settings_file
from vllama.errors import ServerUnreachable


@click.command(
    "reload",
    epilog="""\b
Examples:
  vllama reload
  OLLAMA_HOST=:8080 vllama reload""",
)
def command() -> None:
    """Have the server on this machine read its file of settings again.

    No stream is dropped. The server is the one that OLLAMA_HOST and OLLAMA_MODELS name; its log says what changed, and
    when that takes effect. What its flags and variables say stays, for they win over the file.
    """
    from vllama.gateway.pid_file import PidFile

    settings = settings_file.load(os.environ)  # a file that is wrong is said here already
    try:
        pid = PidFile(settings.models, settings.address.port).signal(signal.SIGHUP)
    except ServerUnreachable as error:
        message = f"{error}; for one that was started by a service manager, reload it there"
        raise ServerUnreachable(message) from error
    click.echo(f"server {pid} reads its settings again")
