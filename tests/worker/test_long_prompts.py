"""Long prompts are rendered and tokenised beside short ones, with vLLM 0.32's renderer."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import threading
from collections.abc import Awaitable
from typing import Any

import pytest

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore"),  # what vLLM's imports warn of is not ours
]

LONG = "x" * 10**6


class Renderer:
    """The part of vLLM's renderer that works in threads; long prompts wait until they may end."""

    def __init__(self) -> None:
        base = importlib.import_module("vllm.renderers.base")
        self._executor = base._SwappableExecutor(max_workers=1)
        make_async = importlib.import_module("vllm.utils.async_utils").make_async
        self.tokenized = make_async(self._tokenize, executor=self._executor)
        self.rendered = make_async(self._render, executor=self._executor)
        self.may_end = threading.Event()
        self.threads = set[str]()

    def _tokenize(self, prompt: dict[str, str], params: str) -> str:
        return self._result(prompt["prompt"], params)

    def _render(self, model_config: object, tokenizer: object, conversation: Any, **named: Any) -> str:
        content = conversation[-1]["content"]
        return self._result(content if isinstance(content, str) else content[0]["text"], named["chat_template"])

    def _result(self, text: str, word: str) -> str:
        if len(text) == len(LONG):
            self.threads.add(threading.current_thread().name)
            assert self.may_end.wait(60)
        return f"{len(text)} {word}"

    def conversation(self, content: Any) -> Awaitable[str]:
        messages = [{"role": "system", "content": "x"}, {"role": "user", "content": content}]
        result: Awaitable[str] = self.rendered(None, self, messages, chat_template="c")
        return result


def test_short_prompts_do_not_wait_for_long_ones_which_take_turns() -> None:
    renderer = Renderer()
    importlib.import_module("vllama.worker.long_prompts").tokenize_long_ones_apart(renderer)

    async def talk() -> None:
        long = [
            renderer.tokenized({"prompt": LONG}, "t"),
            renderer.conversation(LONG),
            renderer.conversation([{"type": "text", "text": LONG}]),
        ]
        assert await renderer.tokenized({"prompt": "hi"}, params="t") == "2 t"
        assert await renderer.conversation("hi") == "2 c"
        assert await renderer.conversation([{"type": "text", "text": "hi"}]) == "2 c"
        renderer.may_end.set()
        assert await asyncio.gather(*long) == ["1000000 t", "1000000 c", "1000000 c"]

    asyncio.run(talk())
    assert len(renderer.threads) == 1


def test_vllms_renderer_has_what_is_replaced() -> None:
    base = importlib.import_module("vllm.renderers.base").BaseRenderer
    assert "make_async(\n            self._tokenize_prompt, executor=self._executor" in inspect.getsource(base)
    of_hf = importlib.import_module("vllm.renderers.hf").HfRenderer
    assert "safe_apply_chat_template, executor=self._executor" in inspect.getsource(of_hf)
    assert callable(importlib.import_module("vllm.tokenizers.hf").maybe_make_thread_pool)
