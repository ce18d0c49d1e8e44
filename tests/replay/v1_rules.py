"""What is otherwise on `/v1`: vLLM's own servers of OpenAI's and Anthropic's APIs answer there."""

from __future__ import annotations

import re

from replay.comparison import Difference
from replay.recording import Exchange, Response
from replay.rules import Deviation, Predicate, any_of, at, on

# vLLM's own keys, of all versions that were tried: those of its engine, and those that OpenAI has and Ollama has not.
OWN_KEYS = [
    "annotations",
    "audio",
    "cache_creation_input_tokens",
    "cache_read_input_tokens",
    "cache_write_tokens",
    "cached_tokens_per_turn",
    "completion_tokens_details",
    "ec_transfer_params",
    "function_call",
    "input_messages",
    "input_tokens_per_turn",
    "kv_transfer_params",
    "logprobs",
    "metrics",
    "output_messages",
    "output_tokens_per_turn",
    "phase",
    "prompt",
    "prompt_logprobs",
    "prompt_text",
    "prompt_token_ids",
    "prompt_tokens_details",
    "reasoning",
    "refusal",
    "routed_experts",
    "service_tier",
    "stop_reason",
    "stop_sequence",
    "token_ids",
    "tool_output_tokens",
    "tool_output_tokens_per_turn",
    "user",
]

_ALL = "/v1/.*"
_RESPONSES = "/v1/responses"


def _own_key(exchange: Exchange, actual: Response, difference: Difference) -> bool:
    key = difference.where.rpartition(".")[2]
    return difference.recorded is None and key in OWN_KEYS and not difference.where.startswith("header ")


def _in_other_chunks(exchange: Exchange, actual: Response, difference: Difference) -> bool:
    """The role comes once and first, and the last text with the reason for the end."""
    place = r"choices\[\]\.(delta\.(content|role|reasoning|tool_calls)|text|logprobs)"
    chunk = at(rf"chunk\.{place}", recorded=".+", actual='""|null|')
    finish = at(rf"finish\.{place}", recorded='""|"assistant"|')
    return chunk(exchange, actual, difference) or finish(exchange, actual, difference)


def _developer(exchange: Exchange, actual: Response, difference: Difference) -> bool:
    """The prompt is one token shorter for each such message: the tokenizer has a token for the other word."""
    if difference.where != "body.usage.prompt_tokens" or not (difference.recorded and difference.actual):
        return False
    roles = [message["role"] for message in exchange.request.fields["messages"]]
    shorter = int(difference.recorded) - int(difference.actual)
    return shorter == roles.count("developer") > 0


def _value(key: str, recorded: str, actual: str) -> Predicate:
    """The value of a key of the object that `/v1/responses` answers with, where it stands in a stream and alone."""
    place = rf"(body|response\.(created|in_progress|completed)\.response)\.{key}"
    return on(_RESPONSES, at(place, recorded=re.escape(recorded), actual=re.escape(actual)))


_NUMBERS = (("top_p", "1"), ("temperature", "0"), ("presence_penalty", "0"), ("frequency_penalty", "0"))

V1 = (
    Deviation(
        "v1 keys",
        "vLLM's replies have further keys: " + ", ".join(f"`{key}`" for key in OWN_KEYS) + ".",
        "OpenAI's and Anthropic's APIs; contract §10",
        on(_ALL, _own_key),
    ),
    Deviation(
        "v1 order",
        "The keys of an object come in vLLM's order, which means nothing.",
        "RFC 8259 §4",
        on(_ALL, at(r".* in order")),
    ),
    Deviation(
        "v1 fingerprint",
        "`system_fingerprint` is vLLM's, and stands in the last chunk only.",
        "OpenAI's and Anthropic's APIs",
        on(_ALL, at(r".*\.system_fingerprint", recorded='"fp_ollama"', actual='|"vllm-.*"')),
    ),
    Deviation(
        "v1 chunks",
        "As with OpenAI, the role comes once, in a chunk of its own; the last text, and a call that is complete, may "
        "come with `finish_reason`.",
        "OpenAI's and Anthropic's APIs",
        on(r"/v1/(chat/)?completions", _in_other_chunks),
    ),
    Deviation(
        "v1 thinking",
        "A message that is all thinking has no content: null, where Ollama has an empty text.",
        "OpenAI's and Anthropic's APIs",
        on("/v1/chat/completions", at(r"body.choices\[\].message.content", recorded='""', actual="null")),
    ),
    Deviation(
        "developer",
        "If a chat template does not support the role `developer`, its messages get the role `system`.",
        "contract §2.8",
        on("/v1/chat/completions", _developer),
    ),
    Deviation(
        "v1 bodies",
        "No line end follows JSON, streams and errors say that they are UTF-8, and streams do not ask to be kept "
        "or not to be cached; with Ollama the first depends on which of its layers speaks.",
        "RFC 8259 §2, §8.1; RFC 9111 §3",
        on(
            _ALL,
            any_of(
                at("end of body", recorded=re.escape(repr("\n")), actual="''"),
                at("header content-type", recorded="application/json", actual="application/json; charset=utf-8"),
                at("header content-type", recorded="text/event-stream", actual="text/event-stream; charset=utf-8"),
                at("header cache-control", recorded="no-cache", actual=""),
                at("header connection", recorded="keep-alive", actual=""),
            ),
        ),
    ),
    Deviation(
        "responses",
        "The object of `/v1/responses` is vLLM's: an answer that was cut is `incomplete` and says why, fields that say "
        "nothing are null or absent, numbers may have a fraction of 0.",
        "OpenAI's and Anthropic's APIs",
        any_of(
            _value("status", '"completed"', '"incomplete"'),
            _value("incomplete_details", "null", '{"reason": "max_output_tokens"}'),
            _value("completed_at", "null", ""),
            on(_RESPONSES, at(r".*\.completed_at", recorded=r"\d+", actual="")),
            _value("error", "null", ""),
            _value("safety_identifier", "null", ""),
            _value("prompt_cache_key", "null", ""),
            _value("store", "false", ""),
            _value("metadata", "{}", "null"),
            _value("text", '{"format": {"type": "text"}}', "null"),
            _value("service_tier", '"default"', '"auto"'),
            _value("tool_choice", '"auto"', '"none"'),
            _value("top_logprobs", "0", "null"),
            *(_value(name, number, f"{number}.0") for name, number in _NUMBERS),
            on(_RESPONSES, at(r".*\.logprobs", recorded=r"\[\]", actual="null")),
        ),
    ),
    Deviation(
        "anthropic",
        "The id of a message is vLLM's, and `message_start` has the count of tokens that the prompt really has.",
        "OpenAI's and Anthropic's APIs",
        on(
            "/v1/messages",
            any_of(
                at(r"message_start\.message\.id", recorded='"msg_.*"', actual='"chatcmpl-.*"'),
                at(r"message_start\.message\.usage\.input_tokens", recorded="6", actual="15"),
            ),
        ),
    ),
)
