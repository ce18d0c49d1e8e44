"""Grammars are compiled in a child process before the engine gets them: what takes too long ends there.

vLLM 0.32 is installed here, with errors of its own for requests. In 0.26 to 0.33 `generate` calls `add_request`.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from vllama.errors import SchemaError
from vllama.worker import grammar_trials
from vllama.worker.grammar_trials import GrammarTrials, try_grammars_first

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.anyio,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore"),
]

PATIENCE = 60.0


class Grammar:
    """A grammar whose tokens take no time, or as long as `burn` says."""

    def __init__(self, *, is_slow: bool) -> None:
        self._is_slow = is_slow

    def is_terminated(self) -> bool:
        return False

    def fill_bitmask(self, mask: Any, _: int) -> None:
        mask[0][0] = 2
        while self._is_slow:
            pass

    def accept_tokens(self, _: str, tokens: list[int]) -> bool:
        return tokens == [1]


class Backend:
    """A stand-in for xgrammar that does what the text of a grammar says."""

    tokenizer = SimpleNamespace(all_special_ids=[0])
    vocab_size = 32

    def __init__(self, report: int) -> None:
        self._report = report

    def allocate_token_bitmask(self, _: int) -> Any:
        import torch

        return torch.zeros(1, 1, dtype=torch.int32)

    def compile_grammar(self, _: Any, text: str) -> Grammar:
        os.write(self._report, f"{text} in {os.getpid()}\n".encode())
        if text.startswith("wrong"):
            raise RuntimeError("[02:03:06] /project/cpp/grammar.cc:83: no such rule")
        while text.startswith("endless"):
            pass
        if text.startswith("large"):
            bytearray(4 << 30)
        return Grammar(is_slow=text.startswith("tokens"))


class Reports:
    """Lines in which the child tells its work."""

    def __init__(self, reader: int) -> None:
        self._lines = os.fdopen(reader)

    def close(self) -> None:
        self._lines.close()

    async def next(self) -> tuple[str, int]:
        """Return the next grammar that is compiled, and the process that does."""
        text, _, pid = (await asyncio.wait_for(asyncio.to_thread(self._lines.readline), PATIENCE)).partition(" in ")
        return text, int(pid)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> Iterator[Reports]:
    import torch
    from vllm.v1.structured_output import request, utils  # children have what is imported here

    assert torch
    assert request
    assert utils
    reader, writer = os.pipe()
    monkeypatch.setattr(grammar_trials, "_keep_only", lambda _: None)  # a child would close the pipe
    monkeypatch.setattr(grammar_trials, "_backend_for_trials", lambda *_: Backend(writer))
    made = Reports(reader)
    yield made
    made.close()
    os.close(writer)


def constraint(text: str) -> Any:
    return SimpleNamespace(json=None, regex=None, choice=None, grammar=text, structural_tag=None, json_object=None)


def config(backend: str = "auto") -> Any:
    return SimpleNamespace(
        structured_outputs_config=SimpleNamespace(backend=backend),
        model_config=SimpleNamespace(skip_tokenizer_init=False),
    )


def trials(seconds: float | None = 0.2) -> GrammarTrials:
    return GrammarTrials(config(), None, seconds)


def client_error() -> type[Exception]:
    """What vLLM answers 400 for."""
    from vllm.exceptions import VLLMClientError

    return VLLMClientError  # type: ignore[no-any-return]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_a_grammar_is_compiled_once_and_the_same_process_compiles_the_next(reports: Reports) -> None:
    made = trials()
    assert await made.check(constraint("one"))
    assert await made.check(constraint("one"))
    assert await made.check(constraint("two"))
    (first, process), (second, same) = await reports.next(), await reports.next()
    assert (first, second) == ("one", "two")
    assert process == same != os.getpid()
    made.close()
    assert not is_alive(process)


@pytest.mark.parametrize("text", ["endless", "tokens that are never found"])
async def test_the_kernel_ends_what_takes_too_long_and_the_next_grammar_has_a_new_process(
    reports: Reports, text: str
) -> None:
    made = trials()
    for _ in range(2):  # the second time it is known
        with pytest.raises(client_error(), match="too much time"):
            await asyncio.wait_for(made.check(constraint(text)), PATIENCE)
    assert await made.check(constraint("short"))
    (_, ended), (short, another) = await reports.next(), await reports.next()
    assert short == "short"
    assert not is_alive(ended)
    assert ended != another
    made.close()


async def test_a_grammar_that_takes_too_much_memory_is_refused(reports: Reports) -> None:
    made = trials(None)
    assert await made.check(constraint("large")) is False  # Python says so; xgrammar ends the process
    made.close()


async def test_what_xgrammar_refuses_is_left_to_vllm_and_is_our_error_for_a_schema(reports: Reports) -> None:
    made = trials()
    assert await made.check(constraint("wrong")) is False
    with pytest.raises(SchemaError, match="the grammar cannot be compiled: no such rule"):
        await made.check_schema(constraint("wrong"))
    made.close()


async def test_a_compilation_ends_when_the_last_client_that_waits_for_it_has_left(reports: Reports) -> None:
    made = trials(None)
    one, other = (asyncio.create_task(made.check(constraint("endless"))) for _ in range(2))
    _, process = await reports.next()
    one.cancel()
    await asyncio.wait([one])
    assert is_alive(process)
    other.cancel()
    await asyncio.wait([other])
    assert await made.check(constraint("short"))
    assert not is_alive(process)
    made.close()


async def test_a_child_that_was_killed_refuses_its_grammar_only(reports: Reports) -> None:
    made = trials(None)
    waiting = asyncio.create_task(made.check(constraint("endless")))
    _, process = await reports.next()
    os.kill(process, signal.SIGKILL)
    with pytest.raises(client_error(), match="too much time"):
        await waiting
    assert await made.check(constraint("short"))
    made.close()


async def test_each_request_of_an_engine_is_tried_first_and_those_without_a_constraint_are_not(
    reports: Reports,
) -> None:
    added: list[str] = []

    async def add_request(request_id: str, prompt: Any, params: Any, priority: int = 0) -> str:
        del prompt, params, priority
        added.append(request_id)
        return request_id

    client = SimpleNamespace(
        vllm_config=config(), renderer=SimpleNamespace(get_tokenizer=lambda: None), add_request=add_request
    )
    made = try_grammars_first(client, 0.2)
    assert made
    assert await client.add_request("free", "", SimpleNamespace(structured_outputs=None), priority=1) == "free"
    assert await client.add_request("pooled", "", SimpleNamespace()) == "pooled"
    assert await client.add_request("bound", "", SimpleNamespace(structured_outputs=constraint("one"))) == "bound"
    with pytest.raises(client_error(), match="too much time"):
        await client.add_request("slow", "", SimpleNamespace(structured_outputs=constraint("endless")))
    assert added == ["free", "pooled", "bound"]
    made.close()


async def test_without_a_vocabulary_for_xgrammar_vllm_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("an unknown kind of tokenizer")

    monkeypatch.setattr(grammar_trials, "_backend_for_trials", fail)
    made = trials()
    assert await made.check(constraint("one")) is False
    await made.check_schema(constraint("one"))


def test_engines_with_other_grammars_are_left_as_they_are() -> None:
    client = SimpleNamespace(vllm_config=config("guidance"), renderer=SimpleNamespace(get_tokenizer=lambda: None))
    assert try_grammars_first(client, 1) is None
