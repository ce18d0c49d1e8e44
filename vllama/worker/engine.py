"""The part of vLLM that the dialect uses, in one small adapter.

Written against vLLM 0.26 and 0.32 (`tests/worker/test_engine_adapter.py` names them). Public: `EngineClient`,
`SamplingParams`, the renderer. Internal, and kept to this file: `state.online_renderer`'s template settings
(`vllm/renderers/online_renderer.py`), `RequestOutput.metrics` (`vllm/v1/metrics/stats.py: RequestStateStats`) and
`RequestOutput.num_cached_tokens`,
`ModelConfig.get_diff_sampling_param` (`vllm/config/model.py`), `resolve_chat_template` (`vllm/renderers/hf.py`),
`ParallelConfig._api_process_rank`, `_count` and `data_parallel_size` (`vllm/config/parallel.py`),
`SchedulerConfig.max_num_seqs`, `VllmConfig.structured_outputs_config`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from functools import cached_property
from typing import Any

from vllm.engine.protocol import EngineClient
from vllm.lora.request import LoRARequest
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.renderers import ChatParams, TokenizeParams
from vllm.renderers.hf import resolve_chat_template
from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

from vllama.errors import Overloaded, RequestError
from vllama.ollama.formats import enforced
from vllama.ollama.infill import Infill, infill_of
from vllama.ollama.options import Sampling
from vllama.ollama.replies import TokenLogprob
from vllama.worker.conversation import TemplateMessage
from vllama.worker.engine_errors import as_our_error, as_request_error
from vllama.worker.grammar_trials import GrammarTrials
from vllama.worker.parsing import ParsedPrompt, Parsing
from vllama.worker.prompt_length import longest_token
from vllama.worker.special_tokens import SpecialTokens
from vllama.worker.vision import NO_SHARED_CACHE, Picture, Vision

Prompt = dict[str, Any]
"""vLLM's rendered prompt (`vllm.inputs.EngineInput`): token ids and prepared images."""

_GENERATION_DEFAULTS = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
}

# As they were typed: no truncation and no limit here, because the dialect has its own (contract §2.7).
_RAW_TEXT = TokenizeParams(max_total_tokens=None, add_special_tokens=True)
_TEMPLATED_TEXT = TokenizeParams(max_total_tokens=None, add_special_tokens=False)


class Engine:
    """One model on a running engine."""

    def __init__(self, client: EngineClient, state: Any, trials: GrammarTrials | None = None) -> None:
        """Take the client, and vLLM's `app.state`, which holds the template settings of its command line.

        `trials` compile grammars before the engine does; None where the engine uses other grammars than xgrammar's.
        """
        self._client = client
        self._trials = trials
        self._renderer = client.renderer
        self._tokenizer = client.renderer.get_tokenizer()
        online_renderer = state.online_renderer
        self._chat_template = online_renderer.chat_template
        self._content_format = online_renderer.chat_template_content_format
        self._template_arguments = dict(online_renderer.default_chat_template_kwargs or {})
        self._special_ids = frozenset(self._tokenizer.all_special_ids)
        self.parsing = Parsing(online_renderer, client.model_config)
        self.vision = Vision(client.renderer, client.model_config)

    @property
    def context_length(self) -> int:
        """The context served, in tokens."""
        return int(self._client.model_config.max_model_len)

    @cached_property
    def longest_token(self) -> int:
        """The maximum number of characters of a token."""
        return longest_token(self._tokenizer)

    @property
    def capabilities(self) -> tuple[str, ...]:
        """The model's capabilities with the parsers and limits that vLLM was given (contract §4.5)."""
        gained = (
            ("vision", self.vision.most_images > 0),
            ("tools", self.parsing.calls_tools),
            ("thinking", self.parsing.thinks),
        )
        return ("completion", *(name for name, is_gained in gained if is_gained))

    @cached_property
    def special_tokens(self) -> SpecialTokens:
        """The tokens that stand around every text."""
        return SpecialTokens(self._tokenizer)

    @cached_property
    def has_chat_template(self) -> bool:
        """Whether conversations can be rendered; base models have no template."""
        if self._chat_template or getattr(self._tokenizer, "chat_template", True):
            return True
        # Some models that see have it with their processor, and for some vLLM has one.
        return bool(resolve_chat_template(self._tokenizer, None, None, model_config=self._client.model_config))

    def generation_defaults(self) -> dict[str, Any]:
        """Return the sampling values of the model's generation_config.json, with Ollama's names.

        `max_new_tokens` is left out on purpose: it is no default of `num_predict` (contract §2.10).
        """
        stated = self._client.model_config.get_diff_sampling_param()
        return {ours: stated[theirs] for theirs, ours in _GENERATION_DEFAULTS.items() if theirs in stated}

    async def render_conversation(
        self, conversation: list[TemplateMessage], template: str = "", arguments: Mapping[str, Any] | None = None
    ) -> Prompt:
        """Apply the chat template, or another one. Raises RequestError with the template's own text."""
        arguments = {
            "add_generation_prompt": True,
            "continue_final_message": False,
            **self._template_arguments,
            **(arguments or {}),
        }
        parameters = ChatParams(
            chat_template=template or self._chat_template,
            chat_template_content_format=self._content_format,
            chat_template_kwargs=arguments,
        )
        try:
            _, prompts = await self._renderer.render_chat_async(
                [conversation], parameters, _TEMPLATED_TEXT, skip_mm_cache=NO_SHARED_CACHE
            )
        except TimeoutError as error:
            raise Overloaded from error  # it has waited for others, and vLLM does not let it go on
        except Exception as error:
            raise as_request_error(error) from error
        prompt: Prompt = prompts[0]
        return prompt

    def infill(self, origin: str) -> Infill | None:
        """Return the fill-in-the-middle markers, None if unsupported. `origin` names repository or directory."""
        tokens = self._tokenizer.get_added_vocab()
        return infill_of(tokens, str(self._client.model_config.hf_text_config.model_type), origin)

    async def render_text(self, text: str, images: Sequence[Picture] = ()) -> Prompt:
        """Tokenise a raw prompt, with the special tokens that the tokenizer adds, none of them twice.

        Raises RequestError where vLLM cannot put the images into it.
        """
        text = self.special_tokens.removed_from(text)
        if not images:
            prompts = await self._renderer.render_cmpl_async([{"prompt": text}], _RAW_TEXT)
        else:
            placed = {"prompt": self.vision.placed(text, len(images)), "multi_modal_data": {"image": list(images)}}
            try:
                prompts = await self._renderer.render_cmpl_async([placed], _RAW_TEXT, skip_mm_cache=NO_SHARED_CACHE)
            except Exception as error:
                raise as_our_error(error) from error
        prompt: Prompt = prompts[0]
        return prompt

    def tokenize(self, text: str) -> list[int]:
        """Return the token ids of a text without added special tokens."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids

    def detokenize(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids, including special tokens."""
        text: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=False)
        return text

    def continuation(self, prompt_ids: Sequence[int], ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """Return the text of token ids after a prompt: some tokenizers drop a space at the beginning of a text."""
        last = list(prompt_ids[-4:])
        before, after = (
            str(self._tokenizer.decode(part, skip_special_tokens=skip_special_tokens)) for part in (last, [*last, *ids])
        )
        return after[len(before) :]

    def special_token(self, text: str) -> int | None:
        """Return the id of a text that is one special token; None for other texts."""
        token_id = self._tokenizer.convert_tokens_to_ids(text)
        if not isinstance(token_id, int) or token_id not in self._special_ids:
            return None
        # For a text that is no token the tokenizer answers with the unknown token, which is special too.
        return token_id if self._tokenizer.convert_ids_to_tokens(token_id) == text else None

    def sampling_params(
        self,
        sampling: Sampling,
        *,
        max_tokens: int,
        stream: bool,
        logprobs: int | None,
        constraint: Any,
        parsed: ParsedPrompt | None = None,
    ) -> SamplingParams:
        """Map Ollama's values to vLLM's (contract §2.10).

        `constraint` is None, "json" or a JSON Schema; `parsed` adds what its parser wants. Raises RequestError
        where vLLM refuses a value, SchemaError where no grammar can be made of the schema.
        """
        penalised = sampling.repeat_last_n != 0
        stop_ids = {text: self.special_token(text) for text in sampling.stop}
        try:
            return SamplingParams(
                temperature=min(max(sampling.temperature, 0.0), 2.0),
                top_k=max(sampling.top_k, 0),
                top_p=min(max(sampling.top_p, 1e-6), 1.0),
                min_p=min(max(sampling.min_p, 0.0), 1.0),
                repetition_penalty=sampling.repeat_penalty if penalised and sampling.repeat_penalty > 0 else 1.0,
                presence_penalty=min(max(sampling.presence_penalty, -2.0), 2.0) if penalised else 0.0,
                frequency_penalty=min(max(sampling.frequency_penalty, -2.0), 2.0) if penalised else 0.0,
                seed=sampling.seed % 2**63 if sampling.seed >= 0 else None,
                # A stop string holds text back as long as it is; a special token need not: it never is text.
                stop=[text for text, token_id in stop_ids.items() if token_id is None],
                stop_token_ids=[token_id for token_id in stop_ids.values() if token_id is not None],
                max_tokens=max_tokens,
                logprobs=logprobs,
                output_kind=RequestOutputKind.DELTA if stream else RequestOutputKind.FINAL_ONLY,
                structured_outputs=self._structured(constraint) or (parsed.constraint if parsed else None),
                skip_special_tokens=parsed.skip_special_tokens if parsed else True,
                skip_clone=True,
            )
        except ValueError as error:
            raise RequestError(str(error)) from error

    async def prepare(self, constraint: Any) -> None:
        """Read and try a constraint beside the event loop, so that `sampling_params` finds what it needs.

        Raises SchemaError where no grammar can be made of the schema.
        """
        if constraint is None:
            return
        structured = await asyncio.to_thread(self._structured, constraint)
        if self._trials is not None:
            await self._trials.check_schema(structured)

    def _structured(self, constraint: Any) -> StructuredOutputsParams | None:
        """Return vLLM's form of a constraint, with the schema in the forms that its grammars enforce."""
        if constraint is None:
            return None
        schema = {"type": "object"} if constraint == "json" else enforced(constraint).schema
        return StructuredOutputsParams(json=json.dumps(schema))

    def generate(
        self,
        prompt: Prompt,
        params: SamplingParams,
        request_id: str,
        parsed: ParsedPrompt | None = None,
        *,
        bound: bool = False,
        adapter: LoRARequest | None = None,
    ) -> AsyncGenerator[RequestOutput, None]:
        """Start a request. Closing or cancelling the generator aborts it in the engine.

        `bound`: a constraint holds from the first token on, whatever vLLM's reasoning parser takes the prompt for.
        `adapter` is one of `vllama.worker.adapters`.
        """
        if parsed is None or parsed.reasoning_ended is None:
            return self._client.generate(prompt, params, request_id, lora_request=adapter)  # type: ignore[no-any-return]
        return self._client.generate(  # type: ignore[no-any-return]
            prompt,
            params,
            request_id,
            lora_request=adapter,
            reasoning_ended=bound or parsed.reasoning_ended,
            reasoning_parser_kwargs=parsed.reasoning_arguments,
        )


def api_process(client: EngineClient) -> tuple[int, int]:
    """Return the rank of this API server process and their number."""
    parallel = client.vllm_config.parallel_config
    return max(int(parallel._api_process_rank), 0), int(parallel._api_process_count)  # noqa: SLF001


def slots(client: EngineClient) -> int:
    """Return how many requests all engines behind a client run at once."""
    config = client.vllm_config
    return int(config.scheduler_config.max_num_seqs) * int(config.parallel_config.data_parallel_size)


def cached_tokens(output: RequestOutput) -> int | None:
    """Return how many prompt tokens of a request were read from the prefix cache; None if the engine did not say."""
    count = output.num_cached_tokens
    return int(count) if count is not None and count >= 0 else None


def token_logprobs(output: CompletionOutput, count: int, top: int) -> tuple[TokenLogprob, ...]:
    """Return the log probabilities of an output's first `count` tokens, each with `top` alternatives."""
    if not output.logprobs:
        return ()
    rows = zip(list(output.token_ids)[:count], output.logprobs, strict=False)
    return tuple(_token_logprob(row, token_id, top) for token_id, row in rows)


def _token_logprob(row: Mapping[int, Any], token_id: int, top: int) -> TokenLogprob:
    ranked = sorted((entry for entry in row.values() if entry.rank <= top), key=lambda entry: entry.rank)
    return _one(row[token_id], tuple(_one(entry) for entry in ranked))


def _one(entry: Any, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
    token = entry.decoded_token or ""
    return TokenLogprob(token, entry.logprob, token.encode(), top)
