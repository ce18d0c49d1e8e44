"""`options` of the native inference routes."""

from __future__ import annotations

from pydantic import ConfigDict

from vllama.gateway.openapi.records import Record
from vllama.ollama.options import DEFAULTS


class Options(Record):
    """Sampling and context options of one request.

    A missing option, or `null`, is taken from the model's parameters, then from its `generation_config.json`, then
    from the default stated here. Unknown names are accepted without effect. A wrong type is refused with status 400.
    Fractions of integers are cut off.
    """

    model_config = ConfigDict(extra="allow")

    temperature: float | None = DEFAULTS["temperature"]
    """Randomness, from 0 (always the most likely token) to 2; other values are clamped."""
    top_k: int | None = DEFAULTS["top_k"]
    """Number of most likely tokens to choose from; 0 or less turns this filter off."""
    top_p: float | None = DEFAULTS["top_p"]
    """Total probability of the most likely tokens to choose from, up to 1; other values are clamped."""
    min_p: float | None = DEFAULTS["min_p"]
    """Minimum probability of a token relative to the most likely one, from 0 to 1; other values are clamped."""
    repeat_penalty: float | None = DEFAULTS["repeat_penalty"]
    """Penalty for tokens that occur in the prompt or the answer; 1 is none."""
    repeat_last_n: int | None = DEFAULTS["repeat_last_n"]
    """0 turns all three penalties off. Other values have no effect, because penalties count all tokens."""
    presence_penalty: float | None = DEFAULTS["presence_penalty"]
    """Penalty for tokens that occur in the answer, from -2 to 2; other values are clamped."""
    frequency_penalty: float | None = DEFAULTS["frequency_penalty"]
    """Penalty for each occurrence of a token in the answer, from -2 to 2; other values are clamped."""
    seed: int | None = DEFAULTS["seed"]
    """Random seed; negative values mean a new one for each request."""
    num_predict: int | None = DEFAULTS["num_predict"]
    """Maximum number of tokens to generate; 0 or less means until the model stops or the context is full."""
    num_ctx: int | None = DEFAULTS["num_ctx"]
    """Context limit of this request in tokens; 0 means the context that is served, which it cannot exceed."""
    num_keep: int | None = DEFAULTS["num_keep"]
    """Number of first tokens to keep if the prompt must be truncated; negative values keep the whole beginning."""
    stop: list[str] | str | None = None
    """Texts that end the answer, and are not part of it. They replace the model's own list."""
    typical_p: float | None = None
    """Accepted without effect."""
    num_batch: int | None = None
    """Accepted without effect: vLLM decides it at startup."""
    num_gpu: int | None = None
    """Accepted without effect: vLLM decides it at startup."""
    main_gpu: int | None = None
    """Accepted without effect: vLLM decides it at startup."""
    use_mmap: bool | None = None
    """Accepted without effect: vLLM decides it at startup."""
    num_thread: int | None = None
    """Accepted without effect: vLLM decides it at startup."""
    draft_num_predict: int | None = None
    """Accepted without effect: vLLM's flags configure speculative decoding."""
