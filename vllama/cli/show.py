"""`vllama show`: show the details of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import click

from vllama.cli.api_client import ApiClient, Record
from vllama.cli.output import human_number, print_json, table

PARTS = ("license", "modelfile", "parameters", "system", "template")
_TITLES = {"modelfile": "Modelfile", "system": "system message", "template": "prompt template"}


def _part_options(function: Callable[..., None]) -> Callable[..., None]:
    for part in reversed(PARTS):
        function = click.option(f"--{part}", is_flag=True, help=f"Print only the {_TITLES.get(part, part)}.")(function)
    return function


@click.command(
    "show",
    epilog="""\b
Examples:
  vllama show smollm2:135m
  vllama show smollm2:135m --template
  vllama show smollm2:135m --json | jq .capabilities""",
)
@click.argument("name")
@_part_options
@click.option("--verbose", is_flag=True, help="Also print all metadata and tensors.")
@click.option("--json", "as_json", is_flag=True, help="Print the server's reply as JSON.")
def command(name: str, *, verbose: bool, as_json: bool, **only: bool) -> None:
    """Show the details of a model.

    Prints its architecture, size, capabilities, parameters, system message and licence.
    """
    parts = [part for part in PARTS if only[part]]
    if len(parts) + as_json > 1:
        choices = ", ".join(f"--{part}" for part in PARTS)
        message = f"give only one of {choices} and --json"
        raise click.UsageError(message)
    info = ApiClient.from_environment().show(name, verbose=verbose)
    if as_json:
        print_json(info)
    elif parts:
        click.echo(info.get(parts[0], ""))
    else:
        click.echo(describe(info, verbose=verbose))


def describe(info: Record, *, verbose: bool) -> str:
    """Return the sections that `ollama show` prints; empty ones are left out."""
    sections = {
        "Model": _model_rows(info),
        "Capabilities": [[capability] for capability in info.get("capabilities") or ()],
        "Projector": _projector_rows(info.get("projector_info") or {}),
        "Parameters": [line.split(maxsplit=1) for line in info.get("parameters", "").splitlines() if line],
        "Metadata": _metadata_rows(info) if verbose else [],
        "Tensors": _tensor_rows(info) if verbose else [],
        "System": _head(info.get("system", "")),
        "License": _head(info.get("license", "")),
    }
    return "\n".join(_section(title, rows) for title, rows in sections.items() if rows)


def _section(title: str, rows: Iterable[Sequence[str]]) -> str:
    return f"  {title}\n{table((), [['', *row] for row in rows])}\n"


def _model_rows(info: Record) -> list[list[str]]:
    details: Record = info.get("details") or {}
    metadata: Record = info.get("model_info") or {}
    architecture = metadata.get("general.architecture") or details.get("family", "")
    count = metadata.get("general.parameter_count")
    rows = {
        "architecture": architecture,
        "parameters": details.get("parameter_size") or (human_number(count) if count else None),
        "context length": metadata.get(f"{architecture}.context_length"),
        "embedding length": metadata.get(f"{architecture}.embedding_length"),
        "quantization": details.get("quantization_level", ""),
        "requires": info.get("requires"),
        "asked for": metadata.get("vllama.asked"),
        "served": metadata.get("vllama.served"),
        "difference": metadata.get("vllama.difference"),
        "remote code": metadata.get("vllama.remote_code"),
        "adapter": metadata.get("vllama.adapter"),
        "tool parser": metadata.get("vllama.tool_parser"),
        "reasoning parser": metadata.get("vllama.reasoning_parser"),
    }
    return [[key, str(value)] for key, value in rows.items() if value is not None]


def _projector_rows(metadata: Record) -> list[list[str]]:
    architecture = metadata.get("general.architecture")
    count = metadata.get("general.parameter_count")
    rows = {
        "architecture": architecture,
        "parameters": human_number(count) if count else None,
        "embedding length": metadata.get(f"{architecture}.vision.embedding_length"),
        "dimensions": metadata.get(f"{architecture}.vision.projection_dim"),
    }
    return [[key, str(value)] for key, value in rows.items() if value is not None]


def _metadata_rows(info: Record) -> list[list[str]]:
    metadata: Record = info.get("model_info") or {}
    return [[key, _value_text(metadata[key])] for key in sorted(metadata)]


def _value_text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        shown = " ".join(str(item) for item in value[:3])
        more = len(value) - 3
        return f"[{shown} ...+{more} more]" if more > 0 else f"[{shown}]"
    return "null" if value is None else str(value)


def _tensor_rows(info: Record) -> list[list[str]]:
    return [
        [tensor["name"], tensor["type"], f"[{' '.join(map(str, tensor['shape']))}]"]
        for tensor in info.get("tensors") or ()
    ]


def _head(text: str) -> list[list[str]]:
    """Return the first two non-empty lines, and "..." if there are more."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return [[line] for line in lines[:2]] + ([["..."]] if len(lines) > 2 else [])
