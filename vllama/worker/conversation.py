"""Requests to conversations: which messages the chat template sees (contract §2.3)."""

from __future__ import annotations

from typing import Any

from vllama.ollama.requests import ChatRequest, GenerateRequest, Message
from vllama.worker.profile import Profile

TemplateMessage = dict[str, Any]
"""A message in the shape of chat templates, which is OpenAI's."""


def of_generate(request: GenerateRequest, profile: Profile) -> list[TemplateMessage]:
    """System (the request's, else the model's), the model's own messages unless there is `context`, the prompt."""
    conversation: list[TemplateMessage] = []
    if system := request.system or profile.system:
        conversation.append({"role": "system", "content": system})
    if not request.context:
        conversation += _own_messages(profile)
    conversation.append({"role": "user", "content": request.prompt})
    return conversation


def of_chat(request: ChatRequest, profile: Profile) -> list[TemplateMessage]:
    """The model's system unless the client's first message is one, the model's own messages, the client's."""
    conversation: list[TemplateMessage] = []
    if profile.system and request.messages[0].role != "system":
        conversation.append({"role": "system", "content": profile.system})
    conversation += _own_messages(profile)
    conversation += [_template_message(message) for message in request.messages]
    return conversation


def shortened(conversation: list[TemplateMessage], dropped: int) -> list[TemplateMessage]:
    """The conversation without its oldest `dropped` messages; system messages stay, and so does the last (§2.7)."""
    dropped = min(dropped, len(conversation) - 1)
    kept = [message for message in conversation[:dropped] if message["role"] == "system"]
    return kept + conversation[dropped:]


def _own_messages(profile: Profile) -> list[TemplateMessage]:
    return [{"role": role, "content": content} for role, content in profile.messages]


def _template_message(message: Message) -> TemplateMessage:
    shaped: TemplateMessage = {"role": message.role, "content": message.content}
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
