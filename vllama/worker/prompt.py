"""The prompt that `/api/generate` would give the model, for `/v1/completions`: vLLM's route knows raw prompts only."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import orjson

from vllama.errors import EngineError, VllamaError
from vllama.ollama.status import JSON
from vllama.protocol.frames import Form
from vllama.protocol.profile import Profile
from vllama.worker.sink import Sink

if TYPE_CHECKING:
    from vllama.worker.generation import GenerationRoute

log = logging.getLogger(__name__)


class PromptRoute:
    """Answers a body of `/api/generate` with the list of the prompt's token ids."""

    def __init__(self, generate: GenerationRoute) -> None:
        self._generate = generate

    async def answer(self, body: bytes, received: int, sink: Sink, profile: Profile, form: Form) -> None:
        """Answer one request, or send the reason why there is no prompt."""
        del received, form  # the gateway makes the body of another, and checks neither
        try:
            await sink.reply(200, JSON, orjson.dumps(await self._generate.prompt_ids(body, profile)))
        except VllamaError as error:
            await sink.fail(error)
        except Exception:
            log.exception("cannot render a prompt")
            await sink.fail(EngineError("an error was encountered while running the model: internal error"))
