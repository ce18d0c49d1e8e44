"""`vllama pull`: download a model into the model store."""

from __future__ import annotations

from pathlib import Path

import click

from vllama.cli.local_store import open_store, precision_option
from vllama.cli.progress import report
from vllama.names import ModelName

_PATHS = ("/", "./", "../", "~")
"""Beginnings of paths; no model name begins like this."""


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
    help="Import the model from this directory or file instead of downloading it.",
)
@precision_option
@click.option(
    "--force", is_flag=True, help="Pull the model even if it is stored, or if the installed vLLM cannot load it."
)
@click.option(
    "--trust-remote-code",
    is_flag=True,
    help="Pull the Python code of the model's repository too, and allow the model to run it.",
)
@click.option("--json", "as_json", is_flag=True, help="Print progress as JSON, one object per line.")
def command(
    name: str, from_path: Path | None, precision: str | None, *, force: bool, trust_remote_code: bool, as_json: bool
) -> None:
    """Download a model into the model store (OLLAMA_MODELS).

    NAME is a model of Ollama's library, org/repo on the Hugging Face Hub, or the path of a snapshot directory or GGUF
    file; the last part of the path becomes the model's name. No server is needed; a running server with the same store
    can serve the model at once.
    """
    if from_path is None and name.startswith(_PATHS):
        from_path = Path(name).expanduser()
        if not from_path.exists():
            message = f"no such file or directory: {name} (a model name does not begin with {name[0]!r})"
            raise click.BadParameter(message, param_hint="NAME")
        name = from_path.resolve().stem if from_path.is_file() else from_path.resolve().name
    model = ModelName.parse(name)
    from vllama.store.pull import pull

    store = open_store(precision)
    steps = pull(store, model, from_path=from_path, force=force, trust_remote_code=trust_remote_code)
    report(steps, as_json=as_json)
