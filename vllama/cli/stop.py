"""`vllama stop`: unload a model."""

from __future__ import annotations

import click

from vllama.cli.api_client import ApiClient
from vllama.errors import ServerRefused


@click.command(
    "stop",
    epilog="""\b
Example:
  vllama stop smollm2:135m""",
)
@click.argument("name")
def command(name: str) -> None:
    """Unload a model and free its memory.

    Does nothing if the model is not loaded.
    """
    try:
        ApiClient.from_environment().post("/api/generate", {"model": name, "keep_alive": 0})
    except ServerRefused as error:
        if error.status != 404:
            raise
        message = f'couldn\'t find model "{name}" to stop; `vllama ps` lists the loaded models'
        raise ServerRefused(404, message) from error
