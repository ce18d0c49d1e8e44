"""Arguments of tool calls in a conversation's history (contract §2.9, §5.1)."""

from __future__ import annotations

from typing import Any

from vllama.errors import RequestError
from vllama.ollama.gojson import decode
from vllama.ollama.openai.ignored import mention


def arguments_of(text: str) -> dict[str, Any]:
    """Return the arguments in the JSON text of a past call; {} if it is not an object.

    A model may have written invalid JSON, or have been cut off in it. Its client sends that again with every further
    message, so a refusal as in Ollama would end the conversation. vLLM takes such arguments as {}, too
    (`renderers/chat_utils.py: _postprocess_messages`).
    """
    if not text.strip():
        return {}
    try:
        arguments = decode(text.encode())
    except RequestError:
        arguments = ()
    if arguments is None:
        return {}
    if not isinstance(arguments, dict):
        mention("the text of a past tool call that is no JSON object")
        return {}
    return arguments


def arguments_text(text: str) -> str:
    """Return the text of a past call's arguments, or "{}" if it is not a JSON object."""
    return text if arguments_of(text) else "{}"
