"""What differs between `/api/generate` and `/api/chat`: decoding, checks, records, prompts."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Protocol

from vllama.errors import PromptTooLong
from vllama.ollama import checks
from vllama.ollama.replies import ChatReplies, Clock, GenerateReplies, Replies
from vllama.ollama.requests import ChatRequest, GenerateRequest
from vllama.worker import conversation
from vllama.worker.conversation import TemplateMessage
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

    async def render(self, request: Any, engine: Engine, profile: Profile, context: int) -> Rendered:
        """Make the prompt, for a context of so many tokens."""

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

    async def render(self, request: GenerateRequest, engine: Engine, profile: Profile, context: int) -> Rendered:
        """Make the prompt: raw text, or a conversation of one turn; `context` stands before it verbatim."""
        del context  # a single message is not shortened: what is too long is refused
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

    async def render(self, request: ChatRequest, engine: Engine, profile: Profile, context: int) -> Rendered:
        """Make the prompt; where it is too long, without as many of the oldest messages as it takes (§2.7)."""
        messages = conversation.of_chat(request, profile)
        if not request.truncate:
            return await self._render_all(request, engine, messages)
        rendered = await self._fitting(request, engine, messages, context)
        too_few, enough = 0, len(messages) - 1  # how many to drop: more than the one, at most the other
        while rendered is None and enough - too_few > 1:
            middle = (too_few + enough) // 2
            if await self._fitting(request, engine, conversation.shortened(messages, middle), context):
                enough = middle
            else:
                too_few = middle
        return rendered or await self._render_all(request, engine, conversation.shortened(messages, enough))

    async def _fitting(
        self, request: ChatRequest, engine: Engine, messages: list[TemplateMessage], context: int
    ) -> Rendered | None:
        """The prompt of these messages; None where it leaves no room for a reply."""
        try:
            rendered = await self._render_all(request, engine, messages)
        except PromptTooLong:
            return None
        return rendered if len(rendered.token_ids) < context else None

    @staticmethod
    async def _render_all(request: ChatRequest, engine: Engine, messages: list[TemplateMessage]) -> Rendered:
        """Render these messages; without a chat template they stand one after the other."""
        if not engine.has_chat_template:
            return Rendered(await engine.render_text("\n".join(message["content"] for message in messages)))
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
