"""How the recordings are played: what was asked before them, what at the same time, and of which server.

More was recorded than is here, so what other exchanges rest on is asked for before them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from itertools import groupby

from replay.player import blob, delete, post, with_fields
from replay.recording import Exchange, Request, exchanges

MAIN: Mapping[str, str] = {"OLLAMA_CONTEXT_LENGTH": "4096", "HTTPS_PROXY": "http://127.0.0.1:9"}
"""The settings of the first server: Ollama's context on a small machine, and no way to other hosts."""

SETTINGS: Mapping[str, Mapping[str, str]] = {
    "max_queue_1": {**MAIN, "OLLAMA_MAX_QUEUE": "1"},
    "origins_star": {**MAIN, "OLLAMA_ORIGINS": "*"},
}
"""The settings of other servers, by what the names of exchanges say."""

_MARIO = post(
    "/api/create",
    model="mario",
    **{"from": "smollm2:135m"},
    system="You are Mario.",
    template="{{ .System }} USER: {{ .Prompt }} ASSISTANT: {{ .Response }}",
    license="MIT",
    parameters={"num_ctx": 2048, "stop": ["<|im_end|>", "STOP"], "temperature": 0},
    messages=[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "It's-a me"}],
    stream=False,
)


def _chat(keep_alive: str) -> Request:
    return with_fields(exchanges()["231_chat_keep_alive_300"].request, keep_alive=keep_alive)


BEFORE: Mapping[str, Callable[[], list[Request]]] = {
    "230b_ps_after_keep_alive_5m": lambda: [_chat("5m")],
    "241b_ps_after_keep_alive_24h": lambda: [_chat("24h")],
    "431_show_created": lambda: [_MARIO],
    "441_create_files_not_gguf": lambda: [blob(b"hello blob")],
    "500_v1_models": lambda: [delete("mario"), delete("fromfile")],
    "483_create_with_unknown_param_key_only": lambda: [delete("m5")],
    "867_max_queue_1_cold_v1_stream_0": lambda: [post("/api/generate", model="smollm2:135m", keep_alive=0)],
}
"""What is asked before an exchange, as it was when the recordings were made."""


def adapted(exchange: Exchange) -> Request:
    """The request to play: one without a limit gets one, for another engine's answer may never come to its end."""
    options = exchange.request.fields.get("options")
    if isinstance(options, dict) and options.get("num_predict") == -1:
        return with_fields(exchange.request, options={**options, "num_ctx": 64}, shift=False)
    return exchange.request


_TEXTS = ("/api/generate", "/api/chat", "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")


_ANOTHER_LOAD = ("107_", "233_", "233b_", "243_", "243b_", "814_", "843_", "867_")
_LONG_TEXT = ("117_", "210_", "802_", "862_")
"""How the names begin of exchanges that take one more load, or a long text, for what another of the sample shows."""


Scene = list[Exchange]
"""Exchanges that are played at once; most are alone."""


def scenes(*, one_text_of: int = 1) -> Iterator[tuple[Mapping[str, str], list[Scene]]]:
    """Yield the settings of each server, and what is played there.

    Of the exchanges that only make the model write text, one of so many is played. Where that is a sample, those
    that only load the model once more, or write the longest texts, are left out as well.
    """
    texts = [name for name, exchange in exchanges().items() if _only_writes_text(exchange)]
    left_out = {name for number, name in enumerate(texts) if number % one_text_of}
    if one_text_of > 1:
        left_out |= {name for name in exchanges() if name.startswith((*_ANOTHER_LOAD, *_LONG_TEXT))}
    played_at_all = [exchange for name, exchange in exchanges().items() if name not in left_out]
    for settings, played in groupby(played_at_all, key=lambda exchange: _settings(exchange.name)):
        scenes = groupby(played, key=lambda exchange: _together(exchange.name))
        yield settings, [sorted(scene, key=lambda exchange: exchange.name) for _, scene in scenes]


def _only_writes_text(exchange: Exchange) -> bool:
    """Whether no other exchange rests on this one."""
    path, fields = exchange.request.path, exchange.request.fields
    is_alone = _together(exchange.name) == exchange.name and exchange.name not in BEFORE
    return is_alone and path in _TEXTS and exchange.response.status == 200 and "keep_alive" not in fields


def _settings(name: str) -> Mapping[str, str]:
    return next((settings for mark, settings in SETTINGS.items() if mark in name), MAIN)


def _together(name: str) -> str:
    return re.sub(r"(max_queue_1.*)_\d$", r"\1", name)


def sent(scene: Scene) -> list[tuple[str, Request]]:
    """The requests of a scene in the order in which they arrive, with the names of their exchanges.

    First those that were served, for who came too late was refused; between them, without a name, those whose
    recordings are not here: groups had six, numbered in their text.
    """
    served = [(exchange.name, adapted(exchange)) for exchange in scene if exchange.response.status != 503]
    refused = [(exchange.name, adapted(exchange)) for exchange in scene if exchange.response.status == 503]
    numbers = {int(exchange.name[-1]) for exchange in scene} if len(scene) > 1 else range(6)
    others = [("", _numbered(scene[0].request, number)) for number in range(6) if number not in numbers]
    return [*served, *others, *refused]


def _numbered(request: Request, number: int) -> Request:
    return Request(request.head, re.sub(rb"Tell story \d", b"Tell story %d" % number, request.body))
