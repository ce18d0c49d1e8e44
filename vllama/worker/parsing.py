"""vLLM's tool and reasoning parsers, in one small adapter.

A model that thinks or calls tools writes both into one text. vLLM's `Parser` (`vllm/parser/abstract_parser.py`, alike
in 0.26 and 0.32) takes that text apart; it speaks of requests in OpenAI's terms, so one of those is made here for each
request, and rendered by vLLM's `OnlineRenderer` (`vllm/renderers/online_renderer.py`), which knows the families that
have no Jinja template.
"""

from __future__ import annotations

import copy
import logging
import secrets
import string
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import orjson
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.reasoning.deepseek_r1_reasoning_parser import DeepSeekR1ReasoningParser

from vllama.errors import RequestError
from vllama.ollama.replies import MadeCall
from vllama.worker.after_thinking import Marks, marks_of_thinking
from vllama.worker.conversation import TemplateMessage
from vllama.worker.engine_errors import as_request_error
from vllama.worker.phrases import PhraseStream, marks_of
from vllama.worker.vision import NO_SHARED_CACHE

log = logging.getLogger(__name__)

_LONGEST_OPENING = 64
"""Tokens, at least, that a template writes after the last message."""

_ID_ALPHABET = string.ascii_lowercase + string.digits


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a reply: text, thinking, and the tool calls that became whole with it."""

    content: str = ""
    thinking: str = ""
    calls: tuple[MadeCall, ...] = ()


class ParserMaker:
    """Makes vLLM's parsers for one request; each reads one reply, once."""

    def __init__(
        self, parser_class: Any, tokenizer: Any, tools: Any, template_arguments: dict[str, Any], model_config: Any
    ) -> None:
        self.parser_class = parser_class
        self._tokenizer = tokenizer
        self._tools = tools
        self._template_arguments = template_arguments
        self._model_config = model_config

    def __call__(self, *, thinks: bool = True) -> Any:
        """Make a parser; one that takes all for content and calls where the model does not think."""
        made = (
            self.parser_class if thinks else type("Thoughtless", (self.parser_class,), {"reasoning_parser_cls": None})
        )
        return made(
            self._tokenizer,
            self._tools,
            chat_template_kwargs=self._template_arguments,
            model_config=self._model_config,
        )

    @cached_property
    def tagged_reasoning(self) -> Any:
        """The reasoning parser where it is `deepseek_r1`, else None."""
        found = self.parser_class.reasoning_parser_cls
        if found is None or not issubclass(found, DeepSeekR1ReasoningParser):
            return None
        return self().reasoning_parser


class OutputParser:
    """Takes one reply apart: either `delta` until the end, or `whole` once.

    Never raises for what a model wrote, and never loses its text: what no parser understands is content.
    """

    def __init__(self, make_parser: ParserMaker, request: Any, prompt_ids: list[int]) -> None:
        """Take what makes vLLM's parsers for the (adjusted) request, and the rendered prompt."""
        self._make_parser = make_parser
        self._request = request
        self._prompt_ids = prompt_ids
        marks = marks_of(make_parser.parser_class)
        opened = marks is not None and marks.prompt_opens and not make_parser().is_reasoning_end(prompt_ids)
        self._phrases = PhraseStream(marks, calls=bool(request.tools), opened=opened) if marks else None
        self._parser: Any = None
        self._broken = False
        self._text, self._ids = "", list[int]()
        self._fed = self._fed_ids = 0  # how much of both vLLM's streaming parser has seen
        self._content = self._thinking = ""  # as parsed so far, before trimming

    def delta(self, text: str, token_ids: Sequence[int], *, finished: bool) -> Piece:
        """What the next output says.

        Tool calls come at the end: vLLM's parsers lose calls and arguments where many tokens come at once, as they do
        under load, and read whole replies well.
        """
        self._text += text
        self._ids += token_ids
        if self._phrases is not None:
            thinking, content = self._phrases.feed(text)
            rest = self._after_phrases(self._phrases) if finished else Piece()
            return self._trimmed(content + rest.content, thinking + rest.thinking, rest.calls)
        content, thinking = self._streamed(finished=finished)
        return self._completed(content, thinking) if finished else self._trimmed(content, thinking)

    def whole(self, text: str, token_ids: Sequence[int]) -> Piece:
        """What a whole reply says."""
        self._text, self._ids = text, list(token_ids)
        if self._phrases is not None:
            thinking, content = self._phrases.feed(text)
            rest = self._after_phrases(self._phrases)
            return self._trimmed(content + rest.content, thinking + rest.thinking, rest.calls)
        said = self._read()
        return self._trimmed(said.content, said.thinking, said.calls)

    def _after_phrases(self, phrases: PhraseStream) -> Piece:
        thinking, held = phrases.finish()
        if not held or not self._request.tools:
            return Piece(held, thinking)
        said = self._parse(self._make_parser(thinks=False), held)
        return Piece(said.content, thinking, said.calls)

    def _streamed(self, *, finished: bool) -> tuple[str, str]:
        """Content and thinking of what came since last time."""
        if self._parser is None:
            thinks = self._thinks_from_start()
            if thinks is None and not finished:
                return "", ""
            self._parser = self._make_parser(thinks=thinks is not False)
            self._skip_opening_tag()
        text, ids = self._text[self._fed :], self._ids[self._fed_ids :]
        self._fed, self._fed_ids = len(self._text), len(self._ids)
        if self._broken or not (text or ids or finished):
            return "", ""
        try:
            message = self._parser.parse_delta(
                text, ids, self._request, prompt_token_ids=self._prompt_ids, finished=finished
            )
        except Exception:  # vLLM's parsers raise many things for what a model may write
            log.warning("vLLM's parser failed in a stream; the rest of the reply is read at its end", exc_info=True)
            self._broken = True
            return "", ""
        return (message.content or "", message.reasoning or "") if message else ("", "")

    def _skip_opening_tag(self) -> None:
        """Keep the tag from `deepseek_r1`, which takes it for thinking where text comes with it."""
        reasoning = self._make_parser.tagged_reasoning
        if reasoning is not None and self._text.lstrip().startswith(reasoning.start_token):
            self._fed = self._text.index(reasoning.start_token) + len(reasoning.start_token)
            self._fed_ids = self._ids.index(reasoning.start_token_id) + 1

    def _completed(self, content: str, thinking: str) -> Piece:
        """The end of a stream: its calls, and text that only reading the whole reply brings to light."""
        final = self._read()
        sent_content, sent_thinking = self._content + content, self._thinking + thinking
        if final.thinking.startswith(sent_thinking):
            if not sent_content:
                thinking += _unless_blank(final.thinking[len(sent_thinking) :])
            if not final.content.startswith(sent_content):
                sent_content = sent_content.rstrip()  # as some parsers do before calls
            if final.content.startswith(sent_content):
                content += _unless_blank(final.content[len(sent_content) :])
        return self._trimmed(content, thinking, final.calls)

    def _read(self) -> Piece:
        """Parse the whole text."""
        thinks = self._thinks_from_start()
        if thinks is False:
            # A closing tag without an opening one: some models leave the first out.
            thinks = self._make_parser.tagged_reasoning.end_token in self._text
        return self._parse(self._make_parser(thinks=thinks is not False), self._text)

    def _parse(self, parser: Any, text: str) -> Piece:
        if hasattr(parser, "set_prompt_token_ids"):  # since 0.30
            parser.set_prompt_token_ids(self._prompt_ids)
        try:
            reasoning, content, calls = parser.parse(
                text, self._request, enable_auto_tools=True, model_output_token_ids=self._ids
            )
        except Exception:
            log.warning("vLLM's parser failed; the reply is given as it is", exc_info=True)
            return Piece(text)
        made, spilt = _made_of(calls or ())
        if not made:
            # DeepSeek's parsers drop a call that was cut off.
            mark = getattr(parser.tool_parser, "tool_calls_start_token", None)
            if mark and self._request.tools and mark in text and mark not in (content or ""):
                spilt = text[text.index(mark) :]
        return Piece((content or "") + spilt, reasoning or "", made)

    def _thinks_from_start(self) -> bool | None:
        """Whether the reply begins with thinking, where vLLM's parser would take that for granted; None: not known yet.

        `deepseek_r1` serves all families that write `<think>`, also those that need not think.
        """
        reasoning = self._make_parser.tagged_reasoning
        if reasoning is None:
            return True
        for token_id in reversed(self._prompt_ids):
            if token_id in {reasoning.start_token_id, reasoning.end_token_id}:
                if token_id == reasoning.start_token_id:
                    return True
                break
        begun = self._text.lstrip()
        return begun.startswith(reasoning.start_token) if begun else None

    def _trimmed(self, content: str, thinking: str, calls: tuple[MadeCall, ...] = ()) -> Piece:
        """Drop the blanks that the tags leave before thinking and before the answer, as Ollama does."""
        said_thinking, said_content = self._thinking, self._content
        self._thinking += thinking
        self._content += content
        if not said_thinking.strip():
            thinking = thinking.lstrip()
        if self._thinking and not said_content.strip():
            content = content.lstrip()
        return Piece(content, thinking, calls)


@dataclass(frozen=True, slots=True)
class ParsedPrompt:
    """A rendered prompt, and what the engine and the reply need to know of it.

    `constraint` is vLLM's StructuredOutputsParams where the parser wants the output constrained; `reasoning_ended`
    tells the engine whether that holds from the first token on. `thinking` is how thinking that is to come begins and
    ends.
    """

    prompt: dict[str, Any]
    output: OutputParser
    skip_special_tokens: bool
    constraint: Any
    reasoning_ended: bool | None
    reasoning_arguments: dict[str, Any] | None
    thinking: Marks | None


class Parsing:
    """The parsers of one model."""

    def __init__(self, online_renderer: Any, model_config: Any) -> None:
        # The template is that of the model's manifest, or a translation: no Jinja of a client comes this far.
        self._renderer = copy.copy(online_renderer)
        self._renderer.trust_request_chat_template = True
        self._model_config = model_config
        self._tokenizer = online_renderer.renderer.get_tokenizer()
        self._parser_class = online_renderer.parser

    @property
    def thinks(self) -> bool:
        """Whether replies may hold thinking that is to be separated."""
        return self._parser_class is not None and self._parser_class.reasoning_parser_cls is not None

    @property
    def calls_tools(self) -> bool:
        """Whether tool calls are understood."""
        return self._parser_class is not None and self._parser_class.tool_parser_cls is not None

    async def render(
        self,
        conversation: list[TemplateMessage],
        *,
        tools: Sequence[dict[str, Any]],
        think: bool | str | None,
        stream: bool,
        chat_template: str = "",
    ) -> ParsedPrompt:
        """Apply the chat template, or another one. Raises RequestError where vLLM refuses messages or tools."""
        # The two names that templates use for the same switch; those that know neither ignore both.
        switch = think is not False
        arguments = {"enable_thinking": switch, "thinking": switch} if self.thinks else {}
        level = {"max": "high"}.get(think, think) if isinstance(think, str) else None
        try:
            request = ChatCompletionRequest(
                messages=[_as_openai_has_it(message) for message in conversation],
                stream=stream,
                chat_template=chat_template or None,
                chat_template_kwargs=arguments,
                **({"tools": list(tools), "tool_choice": "auto"} if tools else {}),
                **({"reasoning_effort": level} if level else {}),
            )
            rendered = await self._renderer.render_chat(request, skip_mm_cache=NO_SHARED_CACHE)
        except Exception as error:
            raise as_request_error(error) from error
        if not isinstance(rendered, tuple):
            raise RequestError(rendered.error.message)
        prompt = rendered[1][0]
        own = self._of_reply(prompt["prompt_token_ids"])
        make_parser = ParserMaker(self._parser_class, self._tokenizer, request.tools, arguments, self._model_config)
        return ParsedPrompt(
            prompt=prompt,
            output=OutputParser(make_parser, request, own),
            skip_special_tokens=request.skip_special_tokens,
            constraint=request.structured_outputs,
            # `granite` says None where it does not know.
            reasoning_ended=bool(make_parser().is_reasoning_end(own)) if self.thinks else None,
            reasoning_arguments={"chat_template_kwargs": arguments} if self.thinks else None,
            thinking=self._thinking(make_parser, own, wanted=switch) if self.thinks else None,
        )

    def _of_reply(self, prompt_ids: list[int]) -> list[int]:
        """The end of a prompt that belongs to the reply: what the template puts after the last turn, and that turn.

        vLLM's parsers look for marks of thinking in what they are given, also in the answers of earlier turns.
        """
        end = self._tokenizer.eos_token_id
        for index in range(len(prompt_ids) - 1, -1, -1):
            if prompt_ids[index] == end:
                return prompt_ids[index + 1 :]
        return prompt_ids

    def _thinking(self, make_parser: ParserMaker, own: list[int], *, wanted: bool) -> Marks | None:
        parser = make_parser().reasoning_parser
        return marks_of_thinking(parser, self._tokenizer.decode(own[-_LONGEST_OPENING:]), wanted=wanted)


def _as_openai_has_it(message: TemplateMessage) -> TemplateMessage:
    """The message with the arguments of its calls as text; vLLM makes objects of them for the template."""
    if "tool_calls" not in message:
        return message
    calls = [
        {**call, "function": {**call["function"], "arguments": orjson.dumps(call["function"]["arguments"]).decode()}}
        for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}


def _made_of(calls: Sequence[Any]) -> tuple[tuple[MadeCall, ...], str]:
    """The calls, and the text of those whose arguments are no JSON object."""
    made: list[MadeCall] = []
    spilt = ""
    for call in calls:
        try:
            arguments = orjson.loads(call.arguments or "{}")
        except orjson.JSONDecodeError:
            arguments = None
        if isinstance(arguments, dict):
            made.append(MadeCall(_call_id(), len(made), call.name, arguments))
        else:
            spilt += call.arguments  # cut off by num_predict, say: the model's text is not lost (contract §2.8)
    return tuple(made), spilt


def _unless_blank(text: str) -> str:
    return text if text.strip() else ""


def _call_id() -> str:
    """An id in Ollama's form: `call_` and eight letters or digits (contract §2.8)."""
    return "call_" + "".join(secrets.choice(_ID_ALPHABET) for _ in range(8))
