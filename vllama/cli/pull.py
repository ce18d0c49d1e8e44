"""`vllama pull`: put a model into the local store."""

from __future__ import annotations

import os
from pathlib import Path

import click

from vllama import settings_file
from vllama.cli.progress import report
from vllama.names import ModelName

_PATHS = ("/", "./", "../", "~")
"""What a path begins with, and no name does."""


@click.command(
    "pull",
    epilog="""\b
Examples:
  vllama pull qwen2.5:7b
  vllama pull Qwen/Qwen3-8B-AWQ
  vllama pull hf.co/Qwen/Qwen2.5-0.5B-Instruct-GGUF:Q8_0
  vllama pull ./snapshot
  vllama pull my-model --from ./snapshot""",
)
@click.argument("name")
@click.option(
    "--from",
    "from_path",
    type=click.Path(exists=True, path_type=Path),
    help="Take the model from this directory or file instead of downloading it.",
)
@click.option("--force", is_flag=True, help="Fetch it again even if it is stored already.")
@click.option(
    "--trust-remote-code",
    is_flag=True,
    help="Let the model's worker run the Python code that its repository brings. Without this, code is left out.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the progress as JSON, one object a line.")
def command(name: str, from_path: Path | None, *, force: bool, trust_remote_code: bool, as_json: bool) -> None:
    """Put a model into the store (OLLAMA_MODELS).

    NAME is one of Ollama's library, org/repo on the Hugging Face Hub, or the path of a snapshot directory or
    GGUF file, which is then called as its last part. Needs no server; a running server with the same store
    knows the model at once.
    """
    if from_path is None and name.startswith(_PATHS):
        from_path = Path(name).expanduser()
        if not from_path.exists():
            message = f"there is no {name}; a name of a model does not begin with {name[0]!r}"
            raise click.BadParameter(message, param_hint="NAME")
        name = from_path.resolve().stem if from_path.is_file() else from_path.resolve().name
    model = ModelName.parse(name)
    from vllama.store.model_store import ModelStore
    from vllama.store.pull import pull

    store = ModelStore(settings_file.load(os.environ).models)
    steps = pull(store, model, from_path=from_path, force=force, trust_remote_code=trust_remote_code)
    report(steps, as_json=as_json)
