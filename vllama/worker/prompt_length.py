"""Prompts that cannot fit, told by their characters: they are neither rendered nor tokenised as a whole.

A token has at most as many characters as the longest one of the vocabulary. So a text of more characters than that,
times the tokens that fit, cannot fit. Of what would be cut anyway, only so much is kept that the cut is the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from vllama.errors import PromptTooLong
from vllama.ollama.requests import GenerateRequest
from vllama.worker.conversation import TemplateMessage


def longest_token(tokenizer: Any) -> int:
    """Return the maximum number of characters of a token, which most of vLLM's tokenizers state."""
    stated = getattr(tokenizer, "max_chars_per_token", 0)
    return int(stated) or max(map(len, tokenizer.get_vocab()))


def without_middle(text: str, most: int) -> str:
    """Return a text of which the middle is removed, if at least `most` characters stay on either side."""
    return text if len(text) <= 2 * most else text[:most] + text[-most:]


def characters(conversation: Iterable[TemplateMessage]) -> int:
    """Return the number of characters of all messages."""
    return sum(map(_characters, conversation))


def shortened_request(request: GenerateRequest, most: int) -> GenerateRequest:
    """Return the request, each text of it cut to the characters on which the prompt can depend.

    Raises PromptTooLong if the client forbids that its prompt is cut.
    """
    if len(request.prompt) + len(request.system) + len(request.suffix) <= most:
        return request
    if not (request.truncate and request.shift):
        raise PromptTooLong
    return replace(
        request,
        prompt=without_middle(request.prompt, most),
        system=without_middle(request.system, most),
        suffix=without_middle(request.suffix, most),
    )


def newest_messages(conversation: list[TemplateMessage], most: int, most_messages: int) -> list[TemplateMessage]:
    """Return a conversation without the oldest messages, which cannot fit beside the newer ones; system ones stay.

    Raises PromptTooLong if the system messages alone cannot fit.
    """
    if len(conversation) <= most_messages and characters(conversation) <= most:
        return conversation
    systems = [message for message in conversation[:-1] if message["role"] == "system"]
    if len(systems) > most_messages:
        raise PromptTooLong
    if characters(systems) > 2 * most:
        raise PromptTooLong
    kept: list[TemplateMessage] = []
    room, places = most, most_messages
    for message in reversed(conversation):
        is_system = message["role"] == "system"
        if kept and not is_system and (room < 0 or places <= 0):
            continue
        kept.append(_without_middle(message, most))
        if not is_system:
            room -= _characters(message)
            places -= 1
    return kept[::-1]


def _without_middle(message: TemplateMessage, most: int) -> TemplateMessage:
    content = message["content"]
    if isinstance(content, str):
        return message if len(content) <= 2 * most else {**message, "content": without_middle(content, most)}
    parts = [{**part, "text": without_middle(part["text"], most)} if "text" in part else part for part in content]
    return {**message, "content": parts}


def _characters(message: TemplateMessage) -> int:
    content = message["content"]
    if isinstance(content, str):
        return len(content)
    return sum(len(part.get("text", "")) for part in content)
