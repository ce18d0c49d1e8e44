"""What the scripts here share: each runs every use of one client and prints one JSON object of what they got.

A script knows of the server only what the client itself reads from the environment (`OLLAMA_HOST` and the like), and
the names of the models below. So it can be run by hand against any server, a real Ollama among them.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import traceback
from base64 import b64encode
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel

CHAT = os.environ["CHAT_MODEL"]
"""Writes text; has neither tools nor thinking."""
EMBED = os.environ["EMBEDDING_MODEL"]
TOOLS = os.environ["TOOLS_MODEL"]
"""Calls tools and thinks."""
SEES = os.environ["VISION_MODEL"]
"""Says noise that depends on the image."""

QUESTION = "What is the capital of France?"
WEATHER = "What is the weather in Oslo?"
"""Asks for the tool below."""
GET_WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
"""As OpenAI's and Ollama's APIs take it."""
TEXTS = ["A cat sits on the mat.", "A kitten rests on a rug.", "The stock market fell sharply today."]

LOOK = "What is this?"
ANN = "How old is Ann?"


class Person(BaseModel):
    """What is asked for as structured output."""

    name: str
    age: int


_HERE = Path(__file__).parent
BLACK, WHITE = (_HERE / "black.png").read_bytes(), (_HERE / "white.png").read_bytes()


def data_uri(image: bytes) -> str:
    """As the APIs after OpenAI's want images."""
    return f"data:image/png;base64,{b64encode(image).decode()}"


_uses: list[Callable[[], Any]] = []


def use(function: Callable[[], Any]) -> Callable[[], Any]:
    """Make a function, plain or `async`, one of the uses that `report` runs."""
    _uses.append(function)
    return function


def raised(act: Callable[[], Any]) -> dict[str, Any]:
    """What an act that has to fail raised: the exception's type, text, and its HTTP status where it has one."""
    try:
        got = act()
        if inspect.iscoroutine(got):
            got = asyncio.run(got)
    except Exception as error:  # noqa: BLE001 - its type is what is asked for
        return {"type": type(error).__name__, "text": str(error), "status": getattr(error, "status_code", None)}
    return {"type": None, "text": f"nothing was raised: {got!r}", "status": None}


def report(*packages: str) -> None:
    """Run all uses and print what they got, by their names, and the versions of the packages."""
    got: dict[str, Any] = {"versions": {package: version(package) for package in packages}}
    for function in _uses:
        try:
            result = function()
            got[function.__name__] = asyncio.run(result) if inspect.iscoroutine(result) else result
        except Exception:  # noqa: BLE001 - goes to the test that asks for this use
            got[function.__name__] = {"traceback": traceback.format_exc()}
    print(json.dumps(got, default=_plain))


def _plain(value: Any) -> Any:
    """What clients return, as JSON: nearly all of it is pydantic's."""
    return value.model_dump(mode="json", exclude_none=True)
