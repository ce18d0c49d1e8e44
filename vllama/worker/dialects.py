"""Differences between `/api/generate` and `/api/chat`: decoding, checks, records, prompts."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from vllama.errors import PromptTooLong
from vllama.ollama import checks
from vllama.ollama.replies import ChatReplies, Clock, GenerateReplies, Replies
from vllama.ollama.requests import ChatRequest, GenerateRequest
from vllama.ollama.templates import in_jinja
from vllama.protocol import checked_record
from vllama.protocol.profile import Profile
from vllama.worker import conversation, prompt_length
from vllama.worker.conversation import TemplateMessage
from vllama.worker.engine import Engine, Prompt
from vllama.worker.parsing import ParsedPrompt
from vllama.worker.special_tokens import SpecialTokens
from vllama.worker.vision import images_in, prepend, text_ids
from vllama.worker.window import Window

Request = GenerateRequest | ChatRequest


@dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt for the engine; with `parsed` if the reply must be parsed."""

    prompt: Prompt
    parsed: ParsedPrompt | None = None

    @property
    def token_ids(self) -> list[int]:
        """The prompt's token ids."""
        ids: list[int] = self.prompt["prompt_token_ids"]
        return ids

    @property
    def is_text(self) -> bool:
        """Whether the prompt consists of token ids alone; token ids of a prompt with images belong to the images."""
        return bool(self.prompt.get("type", "token") == "token")

    def replace_ids(self, ids: list[int]) -> None:
        """Replace the prompt's token ids."""
        self.prompt["prompt_token_ids"] = ids
        self.prompt.pop("prompt", None)  # the text that they no longer are

    @property
    def text_ids(self) -> list[int]:
        """The prompt's token ids without those that stand for images."""
        return text_ids(self.prompt)

    @property
    def images(self) -> int:
        """How many images are in the prompt."""
        return images_in(self.prompt)


class Dialect(Protocol):
    """One route's part of the work."""

    def parse(self, body: bytes) -> Request:
        """Decode a body. Raises RequestError."""

    def decode(self, record: bytes) -> Request:
        """Read what vllama.protocol.checked_record wrote."""

    def check(self, request: Any, capabilities: Collection[str], full_name: str) -> None:
        """Raise an error if the model lacks a capability."""

    def replies(self, model: str, clock: Clock) -> Replies:
        """Return the encoder of this route's records."""

    async def render(self, request: Any, engine: Engine, profile: Profile, window: Window) -> Rendered:
        """Make the prompt."""

    def returns_context(self, request: Any) -> bool:
        """Return whether the final record has the token ids."""


class Generate:
    """The dialect of `/api/generate`."""

    def parse(self, body: bytes) -> GenerateRequest:
        """Decode a body. Raises RequestError."""
        return GenerateRequest.parse(body)

    def decode(self, record: bytes) -> GenerateRequest:
        """Read what vllama.protocol.checked_record wrote."""
        return checked_record.decode_generate(record)

    def check(self, request: GenerateRequest, capabilities: Collection[str], full_name: str) -> None:
        """Raise an error if the model lacks a capability."""
        checks.check_generate(request, capabilities, full_name)

    def replies(self, model: str, clock: Clock) -> Replies:
        """Return the encoder of this route's records."""
        return GenerateReplies(model, clock)

    async def render(self, request: GenerateRequest, engine: Engine, profile: Profile, window: Window) -> Rendered:
        """Make the prompt: raw text, a gap to fill, or a conversation of one turn with `context` verbatim before it."""
        request = prompt_length.shortened_request(request, window.limit * engine.longest_token)
        images = await engine.vision.decode(request.images)
        template = in_jinja(request.template) if request.template else profile.chat_template
        if request.raw or not (template or request.suffix or engine.has_chat_template):
            return Rendered(await engine.render_text(request.prompt, images))
        if request.suffix:
            return Rendered(await self._with_gap(request, engine, profile, template))
        messages = conversation.with_images(conversation.of_generate(request, profile), images)
        if engine.parsing.thinks:
            parsed = await engine.parsing.render(
                messages, tools=(), think=request.think, stream=request.stream, chat_template=template
            )
            rendered = Rendered(parsed.prompt, parsed)
        else:
            rendered = Rendered(await engine.render_conversation(messages, template))
        if request.context:
            _put_context_before(request.context, rendered, engine.special_tokens)
        return rendered

    @staticmethod
    async def _with_gap(request: GenerateRequest, engine: Engine, profile: Profile, template: str) -> Prompt:
        """Return the fill-in-the-middle prompt, from a template that supports suffixes or from tokens."""
        if profile.infill is None or "suffix" in template:
            messages = [{"role": "user", "content": request.prompt}]
            arguments = {"prompt": request.prompt, "suffix": request.suffix}
            return await engine.render_conversation(messages, template, arguments)
        return await engine.render_text(profile.infill.prompt(request.prompt, request.suffix))

    def returns_context(self, request: GenerateRequest) -> bool:
        """Return whether the final record has the token ids."""
        return not request.raw


def _put_context_before(context: Sequence[int], rendered: Rendered, special_tokens: SpecialTokens) -> None:
    """Put the ids of earlier turns before a prompt; the special tokens before a text then stand before them all."""
    opening = special_tokens.before if special_tokens.begin(rendered.token_ids) else ()
    before = () if special_tokens.begin(context) else opening
    prepend([*before, *context], rendered.prompt, dropped=len(opening))


class Chat:
    """The dialect of `/api/chat`."""

    def parse(self, body: bytes) -> ChatRequest:
        """Decode a body. Raises RequestError."""
        return ChatRequest.parse(body)

    def decode(self, record: bytes) -> ChatRequest:
        """Read what vllama.protocol.checked_record wrote."""
        return checked_record.decode_chat(record)

    def check(self, request: ChatRequest, capabilities: Collection[str], full_name: str) -> None:
        """Raise an error if the model lacks a capability."""
        checks.check_chat(request, capabilities, full_name)

    def replies(self, model: str, clock: Clock) -> Replies:
        """Return the encoder of this route's records."""
        return ChatReplies(model, clock)

    async def render(self, request: ChatRequest, engine: Engine, profile: Profile, window: Window) -> Rendered:
        """Make the prompt; where it is too long, without as many of the oldest messages as it takes (§2.7)."""
        messages = conversation.of_chat(request, profile)
        most = window.limit * engine.longest_token
        if request.truncate:
            messages = prompt_length.newest_messages(messages, most, window.limit)
        elif prompt_length.characters(messages) > most:
            raise PromptTooLong
        template = profile.chat_template
        images = await engine.vision.decode(conversation.images_of(messages))
        messages = conversation.with_images(messages, images)
        if not request.truncate:
            return await self._render_all(request, engine, messages, template)
        rendered = await self._fitting(request, engine, messages, template, window)
        too_few, enough = 0, len(messages) - 1  # how many to drop: more than the one, at most the other
        while rendered is None and enough - too_few > 1:
            middle = (too_few + enough) // 2
            if await self._fitting(request, engine, conversation.shortened(messages, middle), template, window):
                enough = middle
            else:
                too_few = middle
        return rendered or await self._render_all(request, engine, conversation.shortened(messages, enough), template)

    async def _fitting(
        self, request: ChatRequest, engine: Engine, messages: list[TemplateMessage], template: str, window: Window
    ) -> Rendered | None:
        """Return the prompt of these messages; None if it leaves no room for a reply."""
        try:
            rendered = await self._render_all(request, engine, messages, template)
        except PromptTooLong:
            return None
        return rendered if window.fits(len(rendered.token_ids)) else None

    @staticmethod
    async def _render_all(
        request: ChatRequest, engine: Engine, messages: list[TemplateMessage], template: str
    ) -> Rendered:
        """Render these messages; without a chat template they stand one after the other."""
        if not (template or engine.has_chat_template):
            text, images = conversation.plain_text(messages), conversation.images_of(messages)
            return Rendered(await engine.render_text(text, images))
        if engine.parsing.thinks or (request.tools and engine.parsing.calls_tools):
            parsed = await engine.parsing.render(
                messages,
                tools=request.tools,
                think=request.think,
                stream=request.stream,
                chat_template=template,
                has_format=request.format is not None,
            )
            return Rendered(parsed.prompt, parsed)
        return Rendered(await engine.render_conversation(messages, template))

    def returns_context(self, request: ChatRequest) -> bool:
        """Return whether the final record has the token ids."""
        del request
        return False
