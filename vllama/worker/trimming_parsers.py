"""vLLM's parsers for its own routes, without the white space that Ollama's clients never see.

Written against vLLM 0.26 and 0.32, whose `Parser` has `parse` and `parse_delta` (`vllm/parser/abstract_parser.py`);
`tests/worker/test_trimming_parsers.py` says what of them is used.
"""

from __future__ import annotations

from typing import Any

from vllm.tool_parsers.llama_tool_parser import DeltaMessage

from vllama.worker.white_space import WhiteSpace


def trimming(parser_class: Any) -> Any:
    """Return a subclass of a vLLM `Parser` whose replies have no such white space."""

    class Trimming(parser_class):  # type: ignore[misc]
        _white_space: WhiteSpace | None = None

        def parse(self, model_output: str, request: Any, *rest: Any, **named: Any) -> Any:
            """Parse a whole reply."""
            thinking, text, calls = super().parse(model_output, request, *rest, **named)
            white_space = WhiteSpace(may_call=bool(request.tools))
            said_thinking, said_text = white_space.feed(thinking, text or "", called=bool(calls), finished=True)
            return said_thinking or None, None if text is None or (calls and not said_text) else said_text, calls

        def parse_delta(self, *arguments: Any, request: Any, finished: bool, **named: Any) -> Any:
            """Parse the next piece of a streamed reply; return None if nothing of it can be sent yet."""
            delta = super().parse_delta(*arguments, request=request, finished=finished, **named)
            if self._white_space is None:
                self._white_space = WhiteSpace(may_call=bool(request.tools))
            thinking, text, calls = (delta.reasoning, delta.content, delta.tool_calls) if delta else (None, None, ())
            said_thinking, said_text = self._white_space.feed(
                thinking, text or "", called=bool(calls), finished=finished
            )
            if not (said_thinking or said_text or calls):
                return None
            delta = delta or DeltaMessage()
            _say(delta, "reasoning", said_thinking)
            _say(delta, "content", said_text)
            return delta

    Trimming.__name__, Trimming.__qualname__ = parser_class.__name__, parser_class.__qualname__
    return Trimming


def _say(delta: Any, name: str, said: str) -> None:
    """Set a text of the delta; vLLM sends a field that is not set at all as absent, others as null."""
    if said:
        setattr(delta, name, said)
    elif name in delta.model_fields_set:
        setattr(delta, name, None)
        delta.model_fields_set.discard(name)
