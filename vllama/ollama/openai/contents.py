"""The content of chat messages: texts, images and other parts, in the form that vLLM takes (contract §5.1).

Agents send a reply back as they got it or as another API has it: without text after thinking alone, with thinking or a
refusal as a part, or with DeepSeek's `reasoning_content`. Ollama refuses the first three, with each further message.
"""

from __future__ import annotations

from typing import Any

from vllama.errors import RequestError
from vllama.ollama.gojson import decode_base64

NO_URLS = "image URLs are not currently supported, please use base64 encoded data instead"

# Content types that only vLLM has, and the field of their URL.
_MEDIA = ("audio_url", "video_url")
_DETAILS = ("auto", "low", "high")
_TEXTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
"""Types of parts that are text, and the field in which it stands."""

_THOUGHTS = {"thinking": "thinking", "reasoning": "text"}
_MAY_SAY_NOTHING = ("assistant", "tool", "function")


def settle_content(message: dict[str, Any]) -> bool:
    """Write the content and thinking of a message as vLLM takes them, and return whether there are images.

    Raises RequestError with Ollama's message if the content is invalid.
    """
    content = message.get("content")
    thoughts = [message.pop("reasoning_content", None)]
    shows = False
    if content is None and message["role"] in _MAY_SAY_NOTHING:
        if not message.get("tool_calls"):
            message["content"] = ""
    elif isinstance(content, list):
        parts = [_as_a_part(part) for part in content]
        shows = any(part["type"] == "image_url" for part in parts)
        thoughts += [part[_THOUGHTS[part["type"]]] for part in parts if part["type"] in _THOUGHTS]
        message["content"] = [_as_vllm_has_it(part) for part in parts if part["type"] not in _THOUGHTS] or ""
    elif not isinstance(content, str):
        raise RequestError(f"invalid message content type: {_go_type(content)}")
    if not message.get("reasoning") and (said := "\n".join(text for text in thoughts if isinstance(text, str))):
        message["reasoning"] = said
    return shows


def _as_a_part(part: Any) -> dict[str, Any]:
    """Return a part that is understood. Raises RequestError for others."""
    if isinstance(part, str):
        return {"type": "text", "text": part}
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str):
        raise RequestError("invalid message format")
    if kind in _TEXTS and isinstance(text := part.get(_TEXTS[kind]), str):
        return dict(part) if kind == "text" else {"type": "text", "text": text}
    if kind in _THOUGHTS and isinstance(part.get(_THOUGHTS[kind]), str):
        return dict(part)
    if kind == "image_url":
        check_image(_url(part["image_url"]) if "image_url" in part else None)
        return dict(part)
    if kind == "input_audio" and isinstance(part.get("input_audio"), dict):
        return dict(part)
    if kind in _MEDIA and (_url(part.get(kind)) or "").startswith("data:"):
        return dict(part)
    raise RequestError("invalid message format")


def _as_vllm_has_it(part: dict[str, Any]) -> dict[str, Any]:
    """Return a checked part without nulls, and its URL as an object of known fields."""
    settled = {name: value for name, value in part.items() if value is not None}
    kind = part["type"]
    if kind in {"image_url", *_MEDIA}:
        detail = part[kind].get("detail") if isinstance(part[kind], dict) else None
        settled[kind] = {"url": _url(part[kind]), **({"detail": detail} if detail in _DETAILS else {})}
    return settled


def _url(value: Any) -> str | None:
    """Return the URL of a part, which is a string or an object with a URL."""
    url = value.get("url") if isinstance(value, dict) else value
    return url if isinstance(url, str) else None


def check_image(url: str | None) -> None:
    """Raise RequestError unless the URL is a base64 image: the server never fetches URLs of clients."""
    if url is None:
        raise RequestError("invalid message format")
    if url.lower().startswith(("http://", "https://")):
        raise RequestError(NO_URLS)
    if not url.startswith(("data:image/", "data:;base64,")) or ";base64," not in url:
        raise RequestError("invalid image input")
    try:
        decode_base64(url)
    except RequestError:
        raise RequestError("invalid image input") from None


def _go_type(value: object) -> str:
    """Return Go's type name (`%T`) of a decoded JSON value."""
    if value is None:
        return "<nil>"
    if isinstance(value, bool):
        return "bool"
    return "float64" if isinstance(value, int | float) else "map[string]interface {}"
