"""Models that see, converted from GGUF files and served by the real vLLM: what they say of an image is the same.

The tokens are compared with transformers, and one model is served with all routes' code around it.
"""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from gguf_vision_families import FAMILIES
from PIL import Image

from engine.server import Server
from vllama.names import ModelName
from vllama.ollama.creation import Changes
from vllama.store.create import create
from vllama.store.gguf.conversion import convert
from vllama.store.model_store import ModelStore

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

_SCRIPT = Path(__file__).parents[1] / "greedy_image_tokens.py"
_NEED_TORCHVISION = {"mistral3", "qwen2.5vl"}
"""Models whose processors in transformers need torchvision, which installations for CPUs lack."""


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_converted_model_says_of_an_image_what_it_says_in_transformers(name: str, tmp_path: Path) -> None:
    if name in _NEED_TORCHVISION and find_spec("torchvision") is None:
        pytest.skip("vLLM needs torchvision for this model")
    family = FAMILIES[name]
    text, projector = family.write(tmp_path / "before", family.build(tmp_path / "before"), tmp_path)
    for _ in convert(text, tmp_path / "after", "exact", projector):
        pass
    command = [sys.executable, str(_SCRIPT), family.image, str(tmp_path / "after")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (record,) = (json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
    assert record.get("vllm prompt") == record.get("transformers prompt"), record
    assert record.get("vllm") == record.get("transformers"), record


@pytest.fixture(scope="module")
def sees(store: ModelStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a tiny Gemma 3 that was created from two GGUF files, whose text model is quantized."""
    directory = tmp_path_factory.mktemp("gemma3")
    family = FAMILIES["gemma3"]
    text, projector = family.write(directory / "before", family.build(directory / "before"), directory, "Q8_0")
    for _ in create(store, ModelName.parse("sees"), Changes(), path=text, projector_path=projector):
        pass
    running = Server(store.root, "--model", "sees", "--max-model-len", "256", "--limit-mm-per-prompt", '{"image":1}')
    try:
        running.load("sees")
        yield running
    finally:
        running.close()


def _picture(colour: str) -> str:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_a_model_of_two_gguf_files_sees(sees: Server) -> None:
    shown = sees.ask("/api/show", {"model": "sees"})
    assert shown["capabilities"] == ["completion", "vision"]
    assert (shown["details"]["family"], shown["details"]["format"]) == ("gemma3", "gguf")
    assert "Q8_0: INT8" in shown["model_info"]["vllama.weights"]

    def said(*images: str) -> tuple[Any, int]:
        message = {"role": "user", "content": "What is this?", "images": images}
        options = {"temperature": 0, "num_predict": 6}
        body = {"model": "sees", "messages": [message], "options": options, "logprobs": True}
        reply = sees.ask("/api/chat", body)
        return reply["logprobs"], reply["prompt_eval_count"]

    (black, longer), (white, _), (_, shorter) = said(_picture("black")), said(_picture("white")), said()
    assert black != white
    assert longer > shorter
