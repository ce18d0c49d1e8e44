"""A model's output without the model: text becomes tokens, and comes back as vLLM's detokenizer would hand it over.

vLLM is imported by the tests that run, not by those that are only collected: `-m "not engine"` needs none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllama.worker.closed_calls import Piece
    from vllama.worker.parsing import OutputParser

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}


@dataclass(frozen=True, slots=True)
class Said:
    """What came of a whole reply: its text, its thinking, and the calls by name and arguments."""

    content: str
    thinking: str = ""
    calls: tuple[tuple[str, dict[str, Any]], ...] = ()


@dataclass(frozen=True, slots=True)
class Speaker:
    """A model of which only tokenizer and parsers exist.

    `special` are its special tokens, which vLLM leaves out of text unless asked; `plain` are tokens of their own that
    are always text.
    """

    tool: str | None = None
    reasoning: str | None = None
    special: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()
    harmony: bool = False

    def whole(self, output: str, *, prompt: str = "", tools: bool = True, think: bool = True) -> Said:
        """Parse the output in one go."""
        parser, request = self._parser(prompt, tools=tools, think=think)
        ids = self.encode(output)
        return _said([parser.whole(self._decode(ids, request), ids)])

    def streamed(
        self, output: str, *, prompt: str = "", tools: bool = True, think: bool = True, cuts: Iterable[int] = ()
    ) -> Said:
        """Parse the output token by token or, where `cuts` are given, in runs that end there."""
        parser, request = self._parser(prompt, tools=tools, think=think)
        return _said(list(self._pieces(parser, request, self.encode(output), sorted(cuts))))

    def step_by_step(self, output: str, *, prompt: str = "", think: bool = True) -> list[tuple[str, Piece]]:
        """Parse the output token by token; return what came with each, and the text up to there."""
        parser, request = self._parser(prompt, tools=True, think=think)
        ids = self.encode(output)
        texts = (self._decode(ids[:end], request) for end in range(1, len(ids) + 1))
        return list(zip(texts, self._pieces(parser, request, ids, ()), strict=True))

    def encode(self, text: str) -> list[int]:
        """The token ids of a text; special tokens in it count as such."""
        if self.harmony:
            return list(harmony_encoding().encode(text, allowed_special="all"))
        return list(self._tokenizer().encode(text, add_special_tokens=False))

    def _pieces(self, parser: OutputParser, request: Any, ids: Sequence[int], cuts: Sequence[int]) -> Iterator[Piece]:
        ends = [*cuts, len(ids)] if cuts else range(1, len(ids) + 1)
        start, sent = 0, ""
        for end in dict.fromkeys(ends):
            text = self._decode(ids[:end], request)
            if end < len(ids):
                text = text.rstrip("\ufffd")  # vLLM waits for the rest of a character
            yield parser.delta(text[len(sent) :], ids[start:end], finished=end == len(ids))
            start, sent = end, text

    def _parser(self, prompt: str, *, tools: bool, think: bool) -> tuple[OutputParser, Any]:
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
        from vllm.parser import ParserManager

        from vllama.worker import plain_parsers  # noqa: F401 - registers them
        from vllama.worker.parsing import OutputParser, ParserMaker
        from vllama.worker.untagged_calls import UntaggedCalls

        parsers = ParserManager.get_parser(
            tool_parser_name=self.tool,
            reasoning_parser_name=self.reasoning,
            enable_auto_tools=self.tool is not None,
            model_name="model",
            is_harmony=self.harmony,
        )
        arguments = {"enable_thinking": think, "thinking": think}
        request = ChatCompletionRequest(
            messages=[{"role": "user", "content": "Hello"}],
            chat_template_kwargs=arguments,
            **({"tools": [WEATHER], "tool_choice": "auto"} if tools else {}),
        )
        make_parser = ParserMaker(parsers, self._tokenizer(), request.tools, arguments, None)
        request = make_parser().adjust_request(request)
        untagged_calls = UntaggedCalls.for_request(request)
        return OutputParser(make_parser, request, self.encode(prompt), untagged_calls), request

    def _decode(self, ids: Sequence[int], request: Any) -> str:
        if self.harmony:
            return str(harmony_encoding().decode(ids))
        return str(self._tokenizer().decode(list(ids), skip_special_tokens=request.skip_special_tokens is not False))

    def _tokenizer(self) -> Any:
        return _tokenizer(self.special, self.plain)


@cache
def _tokenizer(special: tuple[str, ...], plain: tuple[str, ...]) -> Any:
    """Bytes, and the tokens that the family has beyond them."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={byte: number for number, byte in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in plain])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


@cache
def harmony_encoding() -> Any:
    """The tokens of gpt-oss."""
    from openai_harmony import HarmonyEncodingName, load_harmony_encoding

    return load_harmony_encoding(HarmonyEncodingName.HARMONY_GPT_OSS)


def _said(pieces: Sequence[Piece]) -> Said:
    return Said(
        "".join(piece.content for piece in pieces),
        "".join(piece.thinking for piece in pieces),
        tuple((call.name, dict(call.arguments)) for piece in pieces for call in piece.calls),
    )
