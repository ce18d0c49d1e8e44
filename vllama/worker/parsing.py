"""vLLM's tool and reasoning parsers, in one small adapter.

A model that thinks or calls tools writes both into one text. vLLM's `Parser` (`vllm/parser/abstract_parser.py`, alike
in 0.26 and 0.32) takes that text apart; it speaks of requests in OpenAI's terms, so one of those is made here for each
request, and rendered by vLLM's `OnlineRenderer` (`vllm/renderers/online_renderer.py`), which knows the families that
have no Jinja template.
"""

from __future__ import annotations

import secrets
import string
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

from vllama.errors import RequestError
from vllama.ollama.replies import MadeCall
from vllama.worker.conversation import TemplateMessage
from vllama.worker.engine_errors import as_request_error

_ID_ALPHABET = string.ascii_lowercase + string.digits


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a reply: text, thinking, and the tool calls that became whole with it."""

    content: str = ""
    thinking: str = ""
    calls: tuple[MadeCall, ...] = ()


@dataclass(slots=True)
class _OpenCall:
    """A tool call whose arguments are still coming."""

    name: str = ""
    arguments: str = ""


@dataclass(slots=True)
class OutputParser:
    """Takes one reply apart: either `delta` until the end, or `whole` once."""

    parser: Any
    request: Any
    prompt_ids: list[int]
    _calls: dict[int, _OpenCall] = field(default_factory=dict)
    _made: int = 0

    def delta(self, text: str, token_ids: Sequence[int], *, finished: bool) -> Piece:
        """What the next output says. Tool calls come whole: each when the next begins, the last at the end."""
        message = self.parser.parse_delta(
            text, list(token_ids), self.request, prompt_token_ids=self.prompt_ids, finished=finished
        )
        calls: list[MadeCall] = []
        spilt = ""
        for part in (message.tool_calls or []) if message else []:
            if part.index not in self._calls:
                more, junk = self._close()
                calls, spilt = calls + more, spilt + junk
            call = self._calls.setdefault(part.index, _OpenCall())
            if part.function is not None:
                call.name += part.function.name or ""
                call.arguments += part.function.arguments or ""
        if finished:
            more, junk = self._close()
            calls, spilt = calls + more, spilt + junk
        content = (message.content or "") if message else ""
        thinking = (message.reasoning or "") if message else ""
        return Piece(content + spilt, thinking, tuple(calls))

    def whole(self, text: str, token_ids: Sequence[int]) -> Piece:
        """What a whole reply says."""
        if hasattr(self.parser, "set_prompt_token_ids"):  # since 0.30
            self.parser.set_prompt_token_ids(self.prompt_ids)
        reasoning, content, calls = self.parser.parse(
            text, self.request, enable_auto_tools=True, model_output_token_ids=token_ids
        )
        for index, call in enumerate(calls or []):
            self._calls[index] = _OpenCall(call.name, call.arguments)
        made, spilt = self._close()
        return Piece((content or "") + spilt, reasoning or "", tuple(made))

    def _close(self) -> tuple[list[MadeCall], str]:
        """The calls that are complete now, and the text of those whose arguments are no JSON object."""
        made: list[MadeCall] = []
        spilt = ""
        for call in self._calls.values():
            if not call.name:
                continue
            try:
                arguments = orjson.loads(call.arguments or "{}")
            except orjson.JSONDecodeError:
                spilt += call.arguments  # cut off by num_predict, say: the model's text is not lost (contract §2.8)
                continue
            if not isinstance(arguments, dict):
                spilt += call.arguments
                continue
            made.append(MadeCall(_call_id(), self._made, call.name, arguments))
            self._made += 1
        self._calls = {index: _OpenCall() for index in self._calls}
        return made, spilt


@dataclass(frozen=True, slots=True)
class ParsedPrompt:
    """A rendered prompt, and what the engine and the reply need to know of it.

    `constraint` is vLLM's StructuredOutputsParams where the parser wants the output constrained. `reasoning_ended`
    tells the engine whether a constraint holds from the first token on.
    """

    prompt: dict[str, Any]
    output: OutputParser
    skip_special_tokens: bool
    constraint: Any
    reasoning_ended: bool | None
    reasoning_arguments: dict[str, Any] | None


class Parsing:
    """The parsers of one model."""

    def __init__(self, online_renderer: Any, model_config: Any) -> None:
        self._renderer = online_renderer
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
    ) -> ParsedPrompt:
        """Apply the chat template. Raises RequestError where vLLM refuses messages or tools."""
        # The two names that templates use for the same switch; those that know neither ignore both.
        switch = think is not False
        arguments = {"enable_thinking": switch, "thinking": switch} if self.thinks else {}
        level = {"max": "high"}.get(think, think) if isinstance(think, str) else None
        try:
            request = ChatCompletionRequest(
                messages=conversation,
                stream=stream,
                chat_template_kwargs=arguments,
                **({"tools": list(tools), "tool_choice": "auto"} if tools else {}),
                **({"reasoning_effort": level} if level else {}),
            )
            rendered = await self._renderer.render_chat(request)
        except Exception as error:
            raise as_request_error(error) from error
        if not isinstance(rendered, tuple):
            raise RequestError(rendered.error.message)
        prompt = rendered[1][0]
        parser = self._parser_class(
            self._tokenizer, request.tools, chat_template_kwargs=arguments, model_config=self._model_config
        )
        return ParsedPrompt(
            prompt=prompt,
            output=OutputParser(parser, request, prompt["prompt_token_ids"]),
            skip_special_tokens=request.skip_special_tokens,
            constraint=request.structured_outputs,
            reasoning_ended=parser.is_reasoning_end(prompt["prompt_token_ids"]) if self.thinks else None,
            reasoning_arguments={"chat_template_kwargs": arguments} if self.thinks else None,
        )


def _call_id() -> str:
    """An id in Ollama's form: `call_` and eight letters or digits (contract §2.8)."""
    return "call_" + "".join(secrets.choice(_ID_ALPHABET) for _ in range(8))
