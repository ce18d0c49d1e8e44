"""What differs between `/api/generate` and `/api/chat`: decoding, checks, records, prompts."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Protocol

from vllama.ollama import checks
from vllama.ollama.replies import ChatReplies, Clock, GenerateReplies, Replies
from vllama.ollama.requests import ChatRequest, GenerateRequest
from vllama.worker import conversation
from vllama.worker.engine import Engine, Prompt
from vllama.worker.parsing import ParsedPrompt
from vllama.worker.profile import Profile

Request = GenerateRequest | ChatRequest


@dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt for the engine; with `parsed` where the reply has to be taken apart."""

    prompt: Prompt
    parsed: ParsedPrompt | None = None

    @property
    def token_ids(self) -> list[int]:
        """The prompt's token ids."""
        ids: list[int] = self.prompt["prompt_token_ids"]
        return ids


class Dialect(Protocol):
    """One route's part of the work."""

    def parse(self, body: bytes) -> Request:
        """Decode a body. Raises RequestError."""

    def check(self, request: Any, capabilities: Collection[str], full_name: str) -> None:
        """Raise where the model cannot do it."""

    def replies(self, model: str, clock: Clock) -> Replies:
        """The writer of this route's records."""

    async def render(self, request: Any, engine: Engine, profile: Profile) -> Rendered:
        """Make the prompt."""

    def returns_context(self, request: Any) -> bool:
        """Whether the final record carries the token ids."""


class Generate:
    """`/api/generate`."""

    def parse(self, body: bytes) -> GenerateRequest:
        """Decode a body. Raises RequestError."""
        return GenerateRequest.parse(body)

    def check(self, request: GenerateRequest, capabilities: Collection[str], full_name: str) -> None:
        """Raise where the model cannot do it."""
        checks.check_generate(request, capabilities, full_name)

    def replies(self, model: str, clock: Clock) -> Replies:
        """The writer of this route's records."""
        return GenerateReplies(model, clock)

    async def render(self, request: GenerateRequest, engine: Engine, profile: Profile) -> Rendered:
        """Make the prompt: raw text, or a conversation of one turn; `context` stands before it verbatim."""
        if request.raw or not engine.has_chat_template:
            return Rendered(await engine.render_text(request.prompt))
        messages = conversation.of_generate(request, profile)
        if engine.parsing.thinks:
            parsed = await engine.parsing.render(messages, tools=(), think=request.think, stream=request.stream)
            rendered = Rendered(parsed.prompt, parsed)
        else:
            rendered = Rendered(await engine.render_conversation(messages))
        if request.context:
            rendered.prompt["prompt_token_ids"] = [*request.context, *rendered.token_ids]
            rendered.prompt.pop("prompt", None)
        return rendered

    def returns_context(self, request: GenerateRequest) -> bool:
        """Whether the final record carries the token ids."""
        return not request.raw


class Chat:
    """`/api/chat`."""

    def parse(self, body: bytes) -> ChatRequest:
        """Decode a body. Raises RequestError."""
        return ChatRequest.parse(body)

    def check(self, request: ChatRequest, capabilities: Collection[str], full_name: str) -> None:
        """Raise where the model cannot do it."""
        checks.check_chat(request, capabilities, full_name)

    def replies(self, model: str, clock: Clock) -> Replies:
        """The writer of this route's records."""
        return ChatReplies(model, clock)

    async def render(self, request: ChatRequest, engine: Engine, profile: Profile) -> Rendered:
        """Make the prompt; without a chat template the messages stand one after the other."""
        if not engine.has_chat_template:
            return Rendered(await engine.render_text("\n".join(message.content for message in request.messages)))
        messages = conversation.of_chat(request, profile)
        if engine.parsing.thinks or (request.tools and engine.parsing.calls_tools):
            parsed = await engine.parsing.render(
                messages, tools=request.tools, think=request.think, stream=request.stream
            )
            return Rendered(parsed.prompt, parsed)
        return Rendered(await engine.render_conversation(messages))

    def returns_context(self, request: ChatRequest) -> bool:
        """Whether the final record carries the token ids."""
        del request
        return False
