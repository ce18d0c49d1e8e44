"""The part of vLLM that makes vectors, in one small adapter.

Written against vLLM 0.26 and 0.32. Public: `EngineClient.encode`, `PoolingParams`, the renderer. Internal, and kept to
this file: `renderer.default_cmpl_tok_params` (`vllm/renderers/base.py`), `PoolingRequestOutput.error` (from 0.32 on).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from vllm.engine.protocol import EngineClient
from vllm.pooling_params import PoolingParams

from vllama.errors import EngineError
from vllama.worker.engine import Prompt
from vllama.worker.engine_errors import as_our_error
from vllama.worker.prompt_length import longest_token
from vllama.worker.special_tokens import SpecialTokens

_SPARE_CHARACTERS = 16
"""How many times the characters that fit are tokenised: BERT makes one token of a long word, none of white space."""

Vector = npt.NDArray[np.float32]


class PoolingEngine:
    """One embedding model on a running engine."""

    def __init__(self, client: EngineClient) -> None:
        self._client = client
        self._renderer = client.renderer
        tokenizer = client.renderer.get_tokenizer()
        self._special_tokens = int(tokenizer.num_special_tokens_to_add())
        self._around = SpecialTokens(tokenizer)
        self._most_characters = _SPARE_CHARACTERS * longest_token(tokenizer) * (self.context_length + 1)

    @property
    def context_length(self) -> int:
        """The context served, in tokens."""
        return int(self._client.model_config.max_model_len)

    @property
    def special_tokens(self) -> int:
        """The number of tokens that the tokenizer adds to every text."""
        return self._special_tokens

    async def tokenize(self, texts: Sequence[str], limit: int | None) -> list[Prompt]:
        """Make prompts, special tokens included, none of them twice.

        Texts of more than `limit` tokens lose their end, not the special tokens.
        """
        # As vLLM's default but for the length: the limit is the dialect's.
        params = replace(self._renderer.default_cmpl_tok_params, max_total_tokens=limit, truncate_prompt_tokens=limit)
        try:
            prompts = await self._renderer.render_cmpl_async(
                [{"prompt": self._around.removed_from(text[: self._most_characters])} for text in texts], params
            )
        except Exception as error:
            raise as_our_error(error) from error
        return list(prompts)

    async def encode(self, prompt: Prompt, request_id: str) -> Vector:
        """Return the vector of a prompt, not normalised. Cancelling aborts the request."""
        # vLLM's activation of an embedding is its normalisation, and nothing else.
        params = PoolingParams(task="embed", use_activation=False)
        try:
            # There is one output, and the generator has to end by itself.
            *_, output = [output async for output in self._client.encode(prompt, params, request_id)]
        except Exception as error:
            raise as_our_error(error) from error
        if failure := getattr(output, "error", None):
            raise EngineError(f"an error was encountered while running the model: {failure.message}")
        return _as_vector(output.outputs.data)


def _as_vector(tensor: Any) -> Vector:
    vector: Vector = np.ascontiguousarray(tensor.detach().float().cpu().numpy()).reshape(-1)
    return vector
