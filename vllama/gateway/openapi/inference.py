"""Fields that `/api/generate` and `/api/chat` share."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from vllama.gateway.openapi.options import Options
from vllama.gateway.openapi.records import KeepAlive, Record, Timestamp

TAG = "Inference"
TIMINGS_EXAMPLE = {
    "total_duration": 568484393,
    "load_duration": 410198,
    "prompt_eval_count": 15,
    "prompt_eval_cached_count": 0,
    "prompt_eval_duration": 53694288,
    "eval_count": 8,
    "eval_duration": 498105921,
}


class InferenceRequest(Record):
    """Fields of both requests. Unknown fields are ignored, and `null` counts as absent."""

    model: str
    """Name of the model, as in `/api/tags`. Without a tag, `:latest` is meant."""
    stream: bool | None = True
    """Whether to send each piece of the answer as a record of its own (NDJSON), or one record with all of it."""
    format: (
        Literal["json", ""]
        | Annotated[
            dict[str, Any],
            Field(description="A JSON Schema. The reply header X-Vllama-Format-Relaxed lists what is not enforced."),
        ]
        | None
    ) = None
    """Format that the answer must have: `json`, or a JSON Schema object. Also accepted inside `options`."""
    keep_alive: KeepAlive = None
    options: Options | None = None
    """Sampling and context options."""
    think: bool | str | None = None
    """Whether a thinking model thinks first, or how much: `low`, `medium`, `high`, `max`, or any other level that the
    model's chat template knows. Also accepted inside `options`. Default: the model's own."""
    truncate: bool | None = True
    """Whether to truncate a prompt that exceeds the context, instead of refusing it."""
    shift: bool | None = True
    """Whether the answer may continue beyond `num_ctx`."""
    logprobs: bool | None = False
    """Whether to report the log probability of each token."""
    top_logprobs: Annotated[int | None, Field(ge=0, le=20)] = 0
    """Number of most likely alternatives to report for each token, with `logprobs`."""
    debug_render_only: Annotated[bool | None, Field(alias="_debug_render_only")] = False
    """Whether to return the rendered prompt instead of an answer. The model is loaded nevertheless."""


class TokenLogprob(Record):
    """A token and its log probability."""

    token: str
    """The token's text."""
    logprob: float
    """The natural logarithm of its probability."""
    bytes: list[int] | None = None
    """The token's bytes in UTF-8."""


class Logprob(TokenLogprob):
    """A generated token, its log probability and its alternatives."""

    top_logprobs: list[TokenLogprob] | None = None
    """The `top_logprobs` most likely tokens at this place, most likely first."""


class DebugInfo(Record):
    """The prompt that a request with `_debug_render_only` renders to."""

    rendered_template: str
    """The rendered prompt."""
    image_count: int | None = None
    """Number of images in the prompt; missing if there are none."""


class Timings(Record):
    """Timings of a reply. Only the last record has them; zeros are left out."""

    total_duration: int = 0
    """Time from the request's arrival to the last token, in nanoseconds."""
    load_duration: int = 0
    """Time that the request waited for its model, in nanoseconds."""
    prompt_eval_count: int = 0
    """Number of tokens of the prompt."""


class GenerationTimings(Timings):
    """Timings of a generated answer."""

    prompt_eval_cached_count: int | None = None
    """Number of tokens of the prompt that were read from the cache and not computed; missing if unknown."""
    prompt_eval_duration: int = 0
    """Time from the start of the prompt's evaluation to the first token, in nanoseconds."""
    eval_count: int = 0
    """Number of generated tokens."""
    eval_duration: int = 0
    """Time from the first to the last token, in nanoseconds."""


class InferenceReply(GenerationTimings):
    """Fields of both replies, with and without streaming."""

    model: str
    """The model's name in the request's spelling."""
    created_at: Timestamp
    """Time of this record in UTC."""
    done: bool
    """Whether this is the last record."""
    done_reason: Literal["stop", "length", "load", "unload"] | None = None
    """Why the answer ended, in the last record: the model stopped, a token limit was reached, or the request only
    loaded or unloaded the model."""
    logprobs: list[Logprob] | None = None
    """The tokens of this record, if the request has `logprobs`."""
    debug_info: Annotated[DebugInfo | None, Field(alias="_debug_info")] = None
    """The rendered prompt, if the request has `_debug_render_only`."""
