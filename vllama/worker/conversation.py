"""Requests to conversations: which messages the chat template sees (contract §2.3)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from vllama.ollama.requests import ChatRequest, GenerateRequest, Message
from vllama.protocol.profile import Profile

TemplateMessage = dict[str, Any]
"""A message in the shape of chat templates, which is OpenAI's.

`content` is a text or, where there are images, a list of parts; an image is `{"type": "image_pil", "image_pil": …}`,
the form in which vLLM takes one that is decoded.
"""

IMAGE_MARKER = "[img]"
"""Where in its text a message wants an image (contract §2.6)."""


def of_generate(request: GenerateRequest, profile: Profile) -> list[TemplateMessage]:
    """System (the request's, else the model's), the model's own messages unless there is `context`, the prompt."""
    conversation: list[TemplateMessage] = []
    if system := request.system or profile.system:
        conversation.append({"role": "system", "content": system})
    if not request.context:
        conversation += _own_messages(profile)
    conversation.append({"role": "user", "content": _content(request.prompt, request.images)})
    return conversation


def of_chat(request: ChatRequest, profile: Profile) -> list[TemplateMessage]:
    """Return the model's system message unless the client's comes first, the model's messages, and the client's."""
    conversation: list[TemplateMessage] = []
    if profile.system and request.messages[0].role != "system":
        conversation.append({"role": "system", "content": profile.system})
    conversation += _own_messages(profile)
    conversation += [_template_message(message) for message in request.messages]
    return conversation


def shortened(conversation: list[TemplateMessage], dropped: int) -> list[TemplateMessage]:
    """Return the conversation without its oldest `dropped` messages; system messages and the last are kept (§2.7)."""
    dropped = min(dropped, len(conversation) - 1)
    kept = [message for message in conversation[:dropped] if message["role"] == "system"]
    return kept + conversation[dropped:]


def images_of(conversation: Iterable[TemplateMessage]) -> list[Any]:
    """Return all images in order."""
    return [part["image_pil"] for message in conversation for part in _parts(message) if "image_pil" in part]


def with_images(conversation: list[TemplateMessage], images: Sequence[Any]) -> list[TemplateMessage]:
    """Return the conversation with its images replaced by these, in order."""
    waiting = iter(images)

    def replaced(part: dict[str, Any]) -> dict[str, Any]:
        return _image(next(waiting)) if "image_pil" in part else part

    return [
        {**message, "content": [replaced(part) for part in _parts(message)]}
        if isinstance(message["content"], list)
        else message
        for message in conversation
    ]


def plain_text(conversation: Iterable[TemplateMessage]) -> str:
    """Return the joined messages, for models without a chat template, with a marker for each image."""
    return "\n".join("".join(part.get("text", IMAGE_MARKER) for part in _parts(message)) for message in conversation)


def _parts(message: TemplateMessage) -> Iterator[dict[str, Any]]:
    content = message["content"]
    yield from content if isinstance(content, list) else [_text(content)]


def _content(text: str, images: Sequence[Any]) -> str | list[dict[str, Any]]:
    """Return a message's content, with images at their markers in the text and the others after it."""
    if not images:
        return text
    waiting = list(images)
    *before_images, rest = text.split(IMAGE_MARKER, len(images))
    parts = []
    for piece in before_images:
        parts += [_text(piece), _image(waiting.pop(0))]
    parts += [_text(rest), *map(_image, waiting)]
    return [part for part in parts if part.get("text") != ""]


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _image(image: Any) -> dict[str, Any]:
    return {"type": "image_pil", "image_pil": image}


def _own_messages(profile: Profile) -> list[TemplateMessage]:
    return [{"role": role, "content": content} for role, content in profile.messages]


def _template_message(message: Message) -> TemplateMessage:
    shaped: TemplateMessage = {"role": message.role, "content": _content(message.content, message.images)}
    if message.thinking:
        shaped["reasoning"] = message.thinking
    if message.tool_calls:
        shaped["tool_calls"] = [
            {
                "id": call.id or f"call_{index}",
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for index, call in enumerate(message.tool_calls)
        ]
    if message.tool_call_id:
        shaped["tool_call_id"] = message.tool_call_id
    if message.tool_name:
        shaped["name"] = message.tool_name
    return shaped
