"""`vllama reload`: make a running server read its settings again."""

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
    """Make the running server read its settings file again.

    Running requests continue. The server must run on this machine; OLLAMA_HOST and OLLAMA_MODELS say which one it is.
    Its log lists the changes and when each takes effect. The server's flags and environment variables still take
    precedence over the file.
    """
    from vllama.gateway.pid_file import PidFile

    settings = settings_file.load(os.environ)  # reports an invalid file before the signal is sent
    try:
        pid = PidFile(settings.models, settings.address.port).signal(signal.SIGHUP)
    except ServerUnreachable as error:
        message = f"{error}; if a service manager started the server, reload it there"
        raise ServerUnreachable(message) from error
    click.echo(f"server {pid} is reading its settings again; its log lists the changes")
