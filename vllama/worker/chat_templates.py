"""The place where the conversations of all routes meet the chat template: what it refuses is repaired and rendered.

vLLM renders the conversations of `/api/*` and `/v1/*` by its tokenizer's `apply_chat_template`, which is replaced here.
Public: that method of transformers, and the tokenizer of vLLM's renderer. `tests/worker/test_chat_templates.py` renders
by vLLM's `safe_apply_chat_template` (`vllm/renderers/hf.py`), which calls it, alike in 0.26 and 0.32.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from vllama.ollama.gotemplate import is_translated
from vllama.ollama.template_budget import TemplateTooCostly
from vllama.worker.special_tokens import SpecialTokens
from vllama.worker.template_repairs import (
    COMMON,
    LAST_RESORTS,
    Message,
    Rendering,
    Repair,
    applicable,
    repaired,
    text_of,
    texts_of,
)

log = logging.getLogger(__name__)

CANNOT_RENDER = "the chat template cannot render these messages"
"""How the message of a refusal begins that no repair helps against."""

_REMEMBERED = 256
"""For how many kinds of refusals the repairs are remembered."""

_COMPARED = 20
"""How many characters of a continued message are compared with the end of the prompt."""

_CONVERSATIONS = ("conversation", "messages")
"""Names of the first parameter, by which transformers' tokenizers and others are called."""


def is_continued(messages: list[Message], end_of_prompt: str) -> bool:
    """Return whether a prompt with this end lets the model continue the last message, which is an assistant's text."""
    text = _continued_text(messages)
    return bool(text) and end_of_prompt.rstrip().endswith(text[-_COMPARED:])


def _continued_text(messages: list[Message]) -> str:
    """Return the text that the reply is to continue: an assistant's as the last message. "" for none."""
    last = messages[-1] if messages else {}
    if last.get("role") != "assistant" or last.get("tool_calls"):
        return ""
    return text_of(last.get("content")).rstrip()


def repair_for(tokenizer: Any, model: str) -> None:
    """Let this tokenizer render what its templates refuse, and continue an assistant's last message.

    A text that a Go template rendered gets the tokenizer's special tokens, too.
    """
    tokenizer.apply_chat_template = RepairedTemplate(tokenizer.apply_chat_template, model, SpecialTokens(tokenizer))


class RepairedTemplate:
    """A tokenizer's `apply_chat_template`. Each kind of repair is logged once for the model and template."""

    def __init__(self, render: Callable[..., Any], model: str, special_tokens: SpecialTokens) -> None:
        functools.update_wrapper(self, render)  # vLLM reads its parameters
        self._render = render
        self._model = model
        self._special_tokens = special_tokens
        self._known: dict[tuple[Any, ...], tuple[Repair, ...]] = {}
        self._logged = set[tuple[str, str]]()

    def __call__(self, *positional: Any, **named: Any) -> Any:
        """Render a conversation. Raises TemplateError with the template's own reason if no repair helps."""
        name = next((name for name in _CONVERSATIONS if name in named), "")
        messages = named.pop(name) if name else next(iter(positional), None)
        if not isinstance(messages, list):
            return self._render(*positional, **named, **({name: messages} if name else {}))
        asked = Rendering(messages, named.pop("tools", None), named.pop("chat_template", None) or "")

        def render(rendering: Rendering, arguments: Mapping[str, Any]) -> Any:
            given = {**arguments, **rendering.variables, "tools": rendering.tools}
            if rendering.template:
                given["chat_template"] = rendering.template
            if name:
                prompt = self._render(**given, **{name: rendering.messages})
            else:
                prompt = self._render(rendering.messages, *positional[1:], **given)
            if not is_translated(rendering.template):
                return prompt
            if isinstance(prompt, str):
                return self._special_tokens.added_to(prompt)
            return self._special_tokens.added_to_ids(prompt)  # vLLM asks for token ids where it needs no text

        if _continued_text(messages) and named.get("add_generation_prompt"):
            try:
                continued = {**named, "add_generation_prompt": False, "continue_final_message": True}
                return self._repaired(asked, lambda rendering: render(rendering, continued))
            except TemplateTooCostly:
                raise
            except TemplateError:
                self._say(asked.template, "to let an assistant's last message be continued", "a new one was begun")
        return self._repaired(asked, lambda rendering: render(rendering, named))

    def _repaired(self, asked: Rendering, render: Callable[[Rendering], Any]) -> Any:
        """Render the conversation: as it is or, where the template refuses it, with as few repairs as help."""

        def attempt(repairs: Sequence[Repair]) -> Any:
            try:
                return render(repaired(asked, repairs))
            except TemplateTooCostly as error:
                raise _refused(error) from error
            except Exception:  # noqa: BLE001 - a template may raise anything
                return None

        try:
            return render(asked)
        except TemplateTooCostly as error:  # it would be as costly again
            raise _refused(error) from error
        except Exception as error:  # noqa: BLE001 - a template may raise anything
            refusal = error
        kind = (asked.template, *(repair.what for repair in applicable(asked, (*LAST_RESORTS, *COMMON))))
        repairs = self._known.get(kind, ())
        prompt = attempt(repairs) if repairs else None
        if prompt is None:
            repairs = _needed(asked, attempt)
            prompt = attempt(repairs)
        if prompt is None:
            raise _refused(refusal) from refusal
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        self._known[kind] = repairs
        for repair in repairs:
            self._say(asked.template, repair.what, repair.done)
        return prompt

    def _say(self, template: str, what: str, done: str) -> None:
        if (template, what) not in self._logged:
            self._logged.add((template, what))
            log.warning("the chat template of %s refuses %s: %s", self._model, what, done)


def _refused(cause: Exception) -> TemplateError:
    kind = TemplateTooCostly if isinstance(cause, TemplateTooCostly) else TemplateError
    return kind(f"{CANNOT_RENDER}: {cause}")


def _needed(asked: Rendering, attempt: Callable[[Sequence[Repair]], Any]) -> tuple[Repair, ...]:
    """Return the fewest repairs with which the template renders most of the conversation; none if it renders none."""
    texts = texts_of(asked)

    def kept_with(repairs: Sequence[Repair]) -> int:
        """Return how many texts are in the prompt; -1 if there is none. Token ids cannot be searched for texts."""
        prompt = attempt(repairs)
        if prompt is None:
            return -1
        return sum(text in prompt for text in texts) if isinstance(prompt, str) else len(texts)

    best: tuple[Repair, ...] = ()
    most = -1
    for last_resort in ((), *((repair,) for repair in LAST_RESORTS)):
        repairs = applicable(asked, (*last_resort, *COMMON))
        kept = kept_with(repairs)
        for repair in reversed(repairs) if kept >= 0 else ():  # leave out what is not needed, the most intrusive first
            fewer = tuple(other for other in repairs if other is not repair)
            if (without := kept_with(fewer)) >= kept:
                repairs, kept = fewer, without
        if kept > most:
            best, most = repairs, kept
        if most == len(texts):
            break
    return best
