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
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import orjson
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.reasoning.deepseek_r1_reasoning_parser import DeepSeekR1ReasoningParser

from vllama.errors import RequestError
from vllama.ollama.replies import MadeCall
from vllama.worker.after_thinking import ThinkingMarkers, thinking_markers
from vllama.worker.call_formats import call_format
from vllama.worker.chat_templates import is_continued
from vllama.worker.closed_calls import ClosedCalls, Piece
from vllama.worker.conversation import TemplateMessage
from vllama.worker.engine_errors import as_request_error
from vllama.worker.text_markers import MarkerStream, text_markers
from vllama.worker.untagged_calls import UntaggedCalls
from vllama.worker.vision import NO_SHARED_CACHE

log = logging.getLogger(__name__)

_LONGEST_OPENING = 64
"""Tokens, at least, that a template writes after the last message."""

_LEVELS = {"low": "low", "medium": "medium", "high": "high", "max": "high"}
"""Levels of thinking under names that all model families of vLLM accept."""

_ID_ALPHABET = string.ascii_lowercase + string.digits


class ParsedText:
    """Text as parsed so far, before trimming. Each piece is read once."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._is_blank = True
        self.is_blank_before_last = True
        """Whether everything before the last piece is blank."""

    def append(self, piece: str) -> None:
        """Add a piece, which may be empty."""
        self.is_blank_before_last = self._is_blank
        if piece:
            self._pieces.append(piece)
            self._is_blank = self._is_blank and not piece.strip()

    def __str__(self) -> str:
        return "".join(self._pieces)

    def __bool__(self) -> bool:
        return bool(self._pieces)


class ParserMaker:
    """Factory of vLLM's parsers for one request; each parses one reply once."""

    def __init__(
        self, parser_class: Any, tokenizer: Any, tools: Any, template_arguments: dict[str, Any], model_config: Any
    ) -> None:
        self.parser_class = parser_class
        self._tokenizer = tokenizer
        self._tools = tools
        self._template_arguments = template_arguments
        self._model_config = model_config

    def __call__(self, *, thinks: bool = True) -> Any:
        """Create a parser; without thinking it treats everything as content and calls."""
        made = self.parser_class if thinks else without_thinking(self.parser_class)
        return made(
            self._tokenizer,
            self._tools,
            chat_template_kwargs=self._template_arguments,
            model_config=self._model_config,
        )

    @cached_property
    def tagged_reasoning(self) -> Any:
        """The reasoning parser if it is `deepseek_r1`, else None."""
        found = self.parser_class.reasoning_parser_cls
        if found is None or not issubclass(found, DeepSeekR1ReasoningParser):
            return None
        return self().reasoning_parser


def without_thinking(parser_class: Any) -> Any:
    """Return a parser class that takes everything except calls for the answer."""
    return type("Thoughtless", (parser_class,), {"reasoning_parser_cls": None})


class OutputParser:
    """Parser of one reply: call either `delta` until the end, or `whole` once.

    Never raises for what a model wrote, and never loses its text: what no parser understands is content.
    """

    def __init__(
        self,
        make_parser: ParserMaker,
        request: Any,
        prompt_ids: list[int],
        untagged_calls: UntaggedCalls | None = None,
    ) -> None:
        """Take what makes vLLM's parsers for the (adjusted) request, and the rendered prompt.

        `untagged_calls` reads calls as plain JSON; None if those are text.
        """
        self._make_parser = make_parser
        self._request = request
        self._prompt_ids = prompt_ids
        marks = text_markers(make_parser.parser_class)
        opened = marks is not None and marks.prompt_opens and not make_parser().is_reasoning_end(prompt_ids)
        self._markers = MarkerStream(marks, calls=bool(request.tools), opened=opened) if marks else None
        calls = call_format(make_parser.parser_class.tool_parser_cls) if request.tools else None
        self._closed_calls = ClosedCalls(calls, self._read_so_far) if calls else None
        self._untagged_calls = untagged_calls
        self._parser: Any = None
        self._broken = False
        self._texts, self._ids = list[str](), list[int]()
        self._fed_ids = 0  # how many of them vLLM's streaming parser has seen
        self._content, self._thinking = ParsedText(), ParsedText()

    def delta(self, text: str, token_ids: Sequence[int], *, finished: bool) -> Piece:
        """Parse the next output. A tool call comes when it is closed, and is read from the text up to there."""
        return self._with_untagged_calls(self._delta(text, token_ids, finished=finished), finished=finished)

    def whole(self, text: str, token_ids: Sequence[int]) -> Piece:
        """Parse a complete reply."""
        return self._with_untagged_calls(self._whole(text, token_ids), finished=True)

    def _with_untagged_calls(self, piece: Piece, *, finished: bool) -> Piece:
        """Return the piece without text that may become calls, and with the calls that its text has become."""
        if self._untagged_calls is None:
            return piece
        content, calls = self._untagged_calls.feed(piece.content, called=bool(piece.calls), finished=finished)
        made = tuple(MadeCall(_call_id(), index, *call) for index, call in enumerate(calls))
        return replace(piece, content=content, calls=piece.calls or made)

    def _delta(self, text: str, token_ids: Sequence[int], *, finished: bool) -> Piece:
        self._texts.append(text)
        self._ids += token_ids
        if self._markers is not None:
            thinking, content = self._markers.feed(text)
            if finished:
                rest = self._after_phrases(self._markers)
                return self._trimmed(content + rest.content, thinking + rest.thinking, rest.calls)
            said = self._closed_calls and self._closed_calls.feed(self._markers.take_calls())
            return self._trimmed(content, thinking, said.calls if said else ())
        content, thinking = self._streamed(text, finished=finished)
        if finished:
            return self._completed(content, thinking)
        said = self._closed_calls and self._closed_calls.feed(text)
        return self._caught_up(said, content, thinking) if said else self._trimmed(content, thinking)

    def _whole(self, text: str, token_ids: Sequence[int]) -> Piece:
        self._texts, self._ids = [text], list(token_ids)
        if self._markers is not None:
            thinking, content = self._markers.feed(text)
            rest = self._after_phrases(self._markers)
            return self._trimmed(content + rest.content, thinking + rest.thinking, rest.calls)
        said = self._read(text)
        return self._trimmed(said.content, said.thinking, said.calls)

    def _after_phrases(self, phrases: MarkerStream) -> Piece:
        thinking, held = phrases.finish()
        if not held or not self._request.tools:
            return Piece(held, thinking)
        said = self._read_calls(held)
        if self._closed_calls is not None:
            said = self._closed_calls.rest(held, said, Piece(), self._read_calls)
        return Piece(said.content, thinking, said.calls)

    def _read_so_far(self, text: str) -> Piece:
        """Parse a text that ends with a call, of a reply that goes on."""
        if self._markers is not None:
            return self._read_calls(text)
        thinks = self._parser is None or self._parser.reasoning_parser is not None
        if thinks and not self._make_parser().is_reasoning_end([*self._prompt_ids, *self._ids]):
            return Piece()  # of a call that is only thought of
        return self._read(text)

    def _read_calls(self, text: str) -> Piece:
        """Parse a text that comes after the thinking."""
        return self._parse(self._make_parser(thinks=False), text)

    def _streamed(self, text: str, *, finished: bool) -> tuple[str, str]:
        """Return the content and thinking since the last call."""
        if self._parser is None:
            thinks = self._thinks_from_start(text)  # all before it was blank
            if thinks is None and not finished:
                return "", ""
            self._parser = self._make_parser(thinks=thinks is not False)
            text = self._without_opening_tag("".join(self._texts))
        ids = self._ids[self._fed_ids :]
        self._fed_ids = len(self._ids)
        if self._broken or not (text or ids or finished):
            return "", ""
        try:
            message = self._parser.parse_delta(
                text, ids, self._request, prompt_token_ids=self._prompt_ids, finished=finished
            )
        except Exception:  # vLLM's parsers raise many things for what a model may write
            log.warning(
                "vLLM's parser failed in a stream; the rest of the reply is parsed when it is complete", exc_info=True
            )
            self._broken = True
            return "", ""
        return (message.content or "", message.reasoning or "") if message else ("", "")

    def _without_opening_tag(self, text: str) -> str:
        """Keep the tag from `deepseek_r1`, which takes it for thinking where text comes with it."""
        reasoning = self._make_parser.tagged_reasoning
        if reasoning is None or not text.lstrip().startswith(reasoning.start_token):
            return text
        self._fed_ids = self._ids.index(reasoning.start_token_id) + 1
        return text[text.index(reasoning.start_token) + len(reasoning.start_token) :]

    def _completed(self, content: str, thinking: str) -> Piece:
        """Return the end of a stream: its last calls, and text found only by parsing the whole reply."""
        text = "".join(self._texts)
        final = self._read(text)
        if self._closed_calls is not None:
            sent = Piece(str(self._content) + content, str(self._thinking) + thinking)
            final = self._closed_calls.rest(text, final, sent, self._read_calls)
        return self._caught_up(final, content, thinking)

    def _caught_up(self, said: Piece, content: str, thinking: str) -> Piece:
        """Return the new content and thinking, what the text so far says beyond those, and its calls."""
        sent_content, sent_thinking = str(self._content) + content, str(self._thinking) + thinking
        if said.thinking.startswith(sent_thinking):
            if not sent_content:
                thinking += _unless_blank(said.thinking[len(sent_thinking) :])
            if not said.content.startswith(sent_content):
                sent_content = sent_content.rstrip()  # as some parsers do before calls
            if said.content.startswith(sent_content):
                content += _unless_blank(said.content[len(sent_content) :])
        return self._trimmed(content, thinking, said.calls)

    def _read(self, text: str) -> Piece:
        """Parse a text from the beginning of the reply on."""
        thinks = self._thinks_from_start(text)
        if thinks is False:
            # A closing tag without an opening one: some models leave the first out.
            thinks = self._make_parser.tagged_reasoning.end_token in text
        return self._parse(self._make_parser(thinks=thinks is not False), text)

    def _parse(self, parser: Any, text: str) -> Piece:
        if hasattr(parser, "set_prompt_token_ids"):  # since 0.30
            parser.set_prompt_token_ids(self._prompt_ids)
        try:
            reasoning, content, calls = parser.parse(
                text, self._request, enable_auto_tools=True, model_output_token_ids=self._ids
            )
        except Exception:
            log.warning("vLLM's parser failed; the reply is passed on unparsed", exc_info=True)
            return Piece(text)
        made, spilt = _made_of(calls or ())
        if not made:
            # DeepSeek's parsers drop a call that was cut off.
            mark = getattr(parser.tool_parser, "tool_calls_start_token", None)
            if mark and self._request.tools and mark in text and mark not in (content or ""):
                spilt = text[text.index(mark) :]
        return Piece((content or "") + spilt, reasoning or "", made)

    def _thinks_from_start(self, text: str) -> bool | None:
        """Whether the reply that begins with this text thinks, where vLLM's parser would take that for granted.

        None: not known yet. `deepseek_r1` serves all families that write `<think>`, also those that need not think.
        """
        reasoning = self._make_parser.tagged_reasoning
        if reasoning is None or self._prompt_opens_thinking:
            return True
        begun = text.lstrip()
        return begun.startswith(reasoning.start_token) if begun else None

    @cached_property
    def _prompt_opens_thinking(self) -> bool:
        """Whether the last tag of the prompt opens thinking."""
        reasoning = self._make_parser.tagged_reasoning
        tags = {reasoning.start_token_id, reasoning.end_token_id}
        last = next((token_id for token_id in reversed(self._prompt_ids) if token_id in tags), None)
        return last is not None and last == reasoning.start_token_id

    def _trimmed(self, content: str, thinking: str, calls: tuple[MadeCall, ...] = ()) -> Piece:
        """Drop the blanks that the tags leave before thinking and before the answer, as Ollama does."""
        self._thinking.append(thinking)
        self._content.append(content)
        if self._thinking.is_blank_before_last:
            thinking = thinking.lstrip()
        if self._thinking and self._content.is_blank_before_last:
            content = content.lstrip()
        return Piece(content, thinking, calls)


@dataclass(frozen=True, slots=True)
class ParsedPrompt:
    """A rendered prompt, with settings for the engine and for parsing the reply.

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
    thinking: ThinkingMarkers | None


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
        """Whether replies may contain thinking to separate."""
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
        has_format: bool = False,
    ) -> ParsedPrompt:
        """Apply the chat template, or another one. Raises RequestError where vLLM refuses messages or tools.

        `has_format` tells that the client wants the answer in a format, which is then no call.
        """
        # The two names that templates use for the same switch; those that know neither ignore both.
        switch = think is not False
        arguments: dict[str, Any] = {"enable_thinking": switch, "thinking": switch} if self.thinks else {}
        level = _LEVELS.get(think) if isinstance(think, str) else None
        if isinstance(think, str) and level is None:
            arguments["reasoning_effort"] = think  # vLLM would refuse it in the request; the template may know it
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
        opening = self._tokenizer.decode(own[-_LONGEST_OPENING:])
        thinks = self.thinks and not is_continued(conversation, opening)
        make_parser = ParserMaker(
            self._parser_class if thinks or not self.thinks else without_thinking(self._parser_class),
            self._tokenizer,
            request.tools,
            arguments,
            self._model_config,
        )
        return ParsedPrompt(
            prompt=prompt,
            output=OutputParser(make_parser, request, own, None if has_format else UntaggedCalls.for_request(request)),
            skip_special_tokens=request.skip_special_tokens is not False,  # since vLLM 0.33 the default is None
            constraint=request.structured_outputs,
            # `granite` says None where it does not know.
            reasoning_ended=(not thinks or bool(make_parser().is_reasoning_end(own))) if self.thinks else None,
            reasoning_arguments={"chat_template_kwargs": arguments} if self.thinks else None,
            thinking=thinking_markers(make_parser().reasoning_parser, opening, wanted=switch) if thinks else None,
        )

    def _of_reply(self, prompt_ids: list[int]) -> list[int]:
        """Return the end of a prompt that belongs to the reply: the last turn and the template's text after it.

        vLLM's parsers look for marks of thinking in what they are given, also in the answers of earlier turns.
        """
        end = self._tokenizer.eos_token_id
        for index in range(len(prompt_ids) - 1, -1, -1):
            if prompt_ids[index] == end:
                return prompt_ids[index + 1 :]
        return prompt_ids


def _as_openai_has_it(message: TemplateMessage) -> TemplateMessage:
    """Return the message with its calls' arguments as text, which vLLM parses for the template."""
    if "tool_calls" not in message:
        return message
    calls = [
        {**call, "function": {**call["function"], "arguments": orjson.dumps(call["function"]["arguments"]).decode()}}
        for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}


def _made_of(calls: Sequence[Any]) -> tuple[tuple[MadeCall, ...], str]:
    """Return the calls, and the text of those whose arguments are not a JSON object."""
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
    """Return an id in Ollama's format: `call_` and eight letters or digits (contract §2.8)."""
    return "call_" + "".join(secrets.choice(_ID_ALPHABET) for _ in range(8))
