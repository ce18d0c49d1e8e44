"""Forecast of a conversion: the form and size that the weights of a GGUF file would get, without converting it.

The work needs gguf, as the conversion does, so it runs in a separate process:
`python -m vllama.store.gguf.forecast SOURCE TARGET PRECISION [PROJECTOR]` writes to TARGET what config.json would
have as `gguf`, and the bytes of the weights.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllama.errors import StoreError
from vllama.store.description import served_weights
from vllama.store.gguf.conversion import ConverterFailed, plan, run_as_converter, run_converter


@dataclass(frozen=True, slots=True)
class Forecast:
    """The form and size that a file's weights would get.

    `file_type` is Ollama's `quantization_level`; `weights` says what each type of tensors becomes and the error;
    `bytes` is the size of the weights, on disk and in the memory of a GPU.
    """

    file_type: str
    weights: str
    bytes: int


def forecast(source: Path, precision: str, projector: Path | None = None) -> Forecast:
    """Foresee the conversion of a GGUF file with a precision, "exact" or "bf16", and with its projector if any.

    Raises StoreError with the cause.
    """
    more = () if projector is None else (projector,)
    with tempfile.TemporaryDirectory() as directory:
        target = Path(directory) / "gguf.json"
        try:
            deque(run_converter("vllama.store.gguf.forecast", source, target, precision, *more), maxlen=0)
            found: dict[str, Any] = json.loads(target.read_bytes())
        except ConverterFailed as error:
            raise StoreError(error.last or f"the converter ended with {error.how}") from None
    return Forecast(str(found["gguf"]["file_type"]), served_weights(found["gguf"]), int(found["bytes"]))


def main(arguments: list[str]) -> None:
    """Write the forecast in this process."""
    source, target, precision = Path(arguments[0]), Path(arguments[1]), arguments[2]
    try:
        from vllama.store.gguf.reading import GgufFile
    except ImportError as error:
        sys.exit(f"reading GGUF needs numpy and gguf, which come with vLLM: {error}")

    def work() -> None:
        projector = GgufFile(Path(arguments[3])) if len(arguments) > 3 else None
        made = plan(GgufFile(source), repacks=precision == "exact", projector=projector)
        found = {"gguf": made.config["gguf"], "bytes": sum(tensor.size for tensor in made.tensors)}
        target.write_text(json.dumps(found), encoding="utf-8")

    run_as_converter(work)


if __name__ == "__main__":
    main(sys.argv[1:])
