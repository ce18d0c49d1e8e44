"""What `think` of a request becomes for the chat template (contract §2.5)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from vllama.errors import RequestError

# vLLM is imported (its imports warn), but no engine started.
pytestmark = [pytest.mark.anyio, pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def asked_of_vllm(think: Any, *, thinks: bool = True) -> Any:
    """The request that the renderer gets; it then refuses, which is all that this test wants of it."""
    from vllama.worker.parsing import Parsing

    seen: list[Any] = []

    async def render_chat(request: Any, **_: Any) -> Any:
        seen.append(request)
        return SimpleNamespace(error=SimpleNamespace(message="seen"))

    parser = SimpleNamespace(reasoning_parser_cls=object if thinks else None, tool_parser_cls=None)
    tokenizer = SimpleNamespace(get_tokenizer=lambda: None)
    renderer = SimpleNamespace(renderer=tokenizer, parser=parser, render_chat=render_chat)
    conversation = [{"role": "user", "content": "hi"}]
    with pytest.raises(RequestError, match=r"^seen$"):
        await Parsing(renderer, None).render(conversation, tools=(), think=think, stream=False)
    return seen[0]


@pytest.mark.parametrize(
    ("think", "switch", "level"),
    [
        (None, True, None),
        (True, True, None),
        (False, False, None),
        ("low", True, "low"),
        ("medium", True, "medium"),
        ("high", True, "high"),
        ("max", True, "high"),
    ],
)
async def test_the_switch_and_the_level_of_think_reach_the_chat_template(
    think: Any, switch: bool, level: str | None
) -> None:
    request = await asked_of_vllm(think)
    assert request.chat_template_kwargs == {"enable_thinking": switch, "thinking": switch}
    assert request.reasoning_effort == level


async def test_a_level_that_vllm_does_not_know_is_left_to_the_chat_template() -> None:
    request = await asked_of_vllm("xhigh")
    assert request.chat_template_kwargs == {"enable_thinking": True, "thinking": True, "reasoning_effort": "xhigh"}
    assert request.reasoning_effort is None


async def test_a_model_that_cannot_think_is_told_nothing_of_it() -> None:
    request = await asked_of_vllm(False, thinks=False)
    assert not request.chat_template_kwargs
