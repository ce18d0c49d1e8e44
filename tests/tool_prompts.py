"""Measure the tool calls of a real model: prompts that want a call, and prompts that must not become one.

    python tests/tool_prompts.py http://localhost:11434 MODEL [--show]

asks a running server each prompt with all tools, greedily, and prints how many calls were found and how many false
ones. A false call is one of another tool than the prompt's, or any call where the prompt wants none.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx


def _tool(name: str, description: str, required: tuple[str, ...] = (), **properties: str) -> dict[str, Any]:
    schema = {
        "type": "object",
        "properties": {key: {"type": kind} for key, kind in properties.items()},
        "required": list(required),
    }
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


TOOLS = [
    _tool("get_weather", "The current weather in a city", ("city",), city="string"),
    _tool("get_time", "The current time in a city", ("city",), city="string"),
    _tool("add", "The sum of two numbers", ("a", "b"), a="number", b="number"),
    _tool("send_email", "Send an email", ("to", "body"), to="string", subject="string", body="string"),
    _tool("search", "Search the web", ("query",), query="string"),
    _tool(
        "convert_currency",
        "Convert money",
        ("amount", "source", "target"),
        amount="number",
        source="string",
        target="string",
    ),
]

WANT_A_CALL = [
    ("What is the weather in Paris?", "get_weather"),
    ("What's the weather like in Tokyo right now?", "get_weather"),
    ("Is it raining in London?", "get_weather"),
    ("Tell me the temperature in Oslo.", "get_weather"),
    ("Do I need an umbrella in Seattle today?", "get_weather"),
    ("How is the weather in Buenos Aires?", "get_weather"),
    ("What time is it in Berlin?", "get_time"),
    ("Tell me the current time in New York.", "get_time"),
    ("What is the local time in Sydney?", "get_time"),
    ("Which time is it now in Nairobi?", "get_time"),
    ("Add 17 and 25.", "add"),
    ("What is 1234 plus 5678? Use the tool.", "add"),
    ("Calculate the sum of 3.5 and 4.25.", "add"),
    ("Please add 99 and 1 with your tool.", "add"),
    ("Send an email to anna@example.com that says I am late.", "send_email"),
    ("Email bob@example.com: the meeting is moved to Monday.", "send_email"),
    ("Write to carol@example.com, subject Lunch, body Are you free at noon?", "send_email"),
    ("Search the web for the latest news about Mars.", "search"),
    ("Look up the population of Iceland on the web.", "search"),
    ("Find recent articles about electric cars.", "search"),
    ("Search for a recipe of lentil soup.", "search"),
    ("Convert 100 USD to EUR.", "convert_currency"),
    ("How many yen are 50 euros? Convert EUR to JPY.", "convert_currency"),
    ("Convert 20 GBP into USD.", "convert_currency"),
    ("Change 75 Swiss francs (CHF) to dollars (USD).", "convert_currency"),
]
"""Prompts and the tool that answers them."""

WANT_JSON = [
    "Write a JSON object that describes a cat with name and age. Answer with JSON only, do not call a tool.",
    "Give me a JSON list of three colors. Only JSON, no tool.",
    "Return this person as JSON with the keys name and arguments: Tom, who likes to argue about cats and dogs.",
    "Write a JSON object with the keys name and parameters for a car called Beetle.",
    'Translate to JSON: name is "Ada", function is "engineer". Only JSON.',
    "Make a JSON object for a book: title, author, year. Use Dune by Frank Herbert, 1965.",
    "Output a JSON array of two users, each with name and email.",
    "Give an example of a package.json with name and version.",
    "Write the JSON of a GeoJSON point in Paris.",
    "Show a JSON Schema for an object with a string property called city.",
    "Extract as JSON with the keys city and country: I live in Lyon, France.",
    "Answer as JSON with the key answer: what is the capital of Italy?",
    "Give me a JSON object with the name of a function in Python and a list of its arguments.",
    "Write a JSON configuration of a web server with host and port.",
    "Return a JSON object with name set to weather_report and parameters set to an empty object.",
]
"""Prompts for JSON that is no call."""

WANT_TEXT = [
    "Hello! How are you?",
    "Who wrote Romeo and Juliet?",
    "Explain in one sentence what a function is.",
    "Write a haiku about the sea.",
    "What can you do for me?",
    "Write a Python function that adds two numbers.",
    "Name three primary colors.",
    "What is an email?",
    "Say hello in French.",
    "Describe your tools in a sentence, without using them.",
]
"""Prompts for an answer in words."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Counts over all prompts."""

    wanted: int
    found: int
    false_where_json: int
    false_elsewhere: int

    @property
    def text(self) -> str:
        """The counts in one line of text."""
        return (
            f"calls found: {self.found} of {self.wanted}; false calls: {self.false_where_json} of {len(WANT_JSON)} "
            f"prompts for JSON, {self.false_elsewhere} of {self.wanted + len(WANT_TEXT)} others"
        )


def ask(client: httpx.Client, model: str, prompt: str, *, stream: bool = False) -> dict[str, Any]:
    """Return text and called names of one reply of /api/chat."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "tools": TOOLS,
        "options": {"temperature": 0, "num_predict": 100, "seed": 1},
        "stream": stream,
    }
    reply = client.post("/api/chat", json=body)
    reply.raise_for_status()
    messages = [json.loads(line)["message"] for line in reply.text.splitlines()]
    calls = [call["function"] for message in messages for call in message.get("tool_calls", ())]
    return {"content": "".join(message["content"] for message in messages), "calls": calls}


def measure(client: httpx.Client, model: str, *, show: bool = False) -> Figures:
    """Ask all prompts, eight at a time."""
    asked = [*WANT_A_CALL, *((prompt, "") for prompt in [*WANT_JSON, *WANT_TEXT])]
    found = false_json = false_others = 0
    with ThreadPoolExecutor(8) as pool:
        replies = pool.map(lambda pair: ask(client, model, pair[0]), asked)
        for (prompt, wanted), said in zip(asked, replies, strict=True):
            names = [call["name"] for call in said["calls"]]
            if show:
                print(json.dumps({"prompt": prompt, "wanted": wanted, **said}, ensure_ascii=False), flush=True)
            found += bool(wanted) and names[:1] == [wanted]
            if any(name != wanted for name in names):
                false_json += prompt in WANT_JSON
                false_others += prompt not in WANT_JSON
    return Figures(len(WANT_A_CALL), found, false_json, false_others)


def main() -> None:
    """Print the figures of a model on a running server."""
    url, model, *flags = sys.argv[1:]
    with httpx.Client(base_url=url, timeout=600) as client:
        print(measure(client, model, show="--show" in flags).text)


if __name__ == "__main__":
    main()
