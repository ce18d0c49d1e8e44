"""Checks that a model can serve a request, in Ollama's order (contract §1.2 "Order of checks")."""

from __future__ import annotations

from collections.abc import Collection

from vllama.durations import quote
from vllama.errors import RequestError, Unsupported
from vllama.ollama import options
from vllama.ollama.images import check_images
from vllama.ollama.requests import ChatRequest, Common, GenerateRequest, check_format
from vllama.ollama.templates import check_request_template


def check_generate(request: GenerateRequest, capabilities: Collection[str], full_name: str) -> None:
    """Raise an error if the request cannot be served; `full_name` is `host/ns/model:tag`.

    Raises RequestError or Unsupported.
    """
    if request.raw and (request.template or request.system or request.context):
        raise RequestError("raw mode does not support template, system, or context")
    _check_common(request, capabilities, "generate")
    if request.suffix and "insert" not in capabilities:
        raise Unsupported(f"{full_name} does not support insert")
    if request.images and "vision" not in capabilities:
        raise Unsupported(f"{full_name} does not support vision")
    if request.images and request.suffix:
        raise RequestError("images cannot be combined with a suffix")
    check_images(request.images, "images")
    check_request_template(request.template)


def check_chat(request: ChatRequest, capabilities: Collection[str], full_name: str) -> None:
    """Raise RequestError or Unsupported if the request cannot be served; `full_name` is `host/ns/model:tag`."""
    _check_common(request, capabilities, "chat")
    if request.tools and "tools" not in capabilities:
        raise Unsupported(f"{full_name} does not support tools")
    if "vision" not in capabilities and any(message.images for message in request.messages):
        raise Unsupported(f"{full_name} does not support vision")
    for index, message in enumerate(request.messages):
        check_images(message.images, f"messages[{index}].images")


def _check_common(request: Common, capabilities: Collection[str], verb: str) -> None:
    if request.think and "thinking" not in capabilities:
        raise Unsupported(f"{quote(request.model)} does not support thinking")
    if "completion" not in capabilities:
        raise Unsupported(f"{quote(request.model)} does not support {verb}")
    options.check(request.options)
    check_format(request.format)
