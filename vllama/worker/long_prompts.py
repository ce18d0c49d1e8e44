"""Long prompts are rendered and tokenised in a thread of their own, one at a time: short ones do not wait for them.

vLLM renders and tokenises all prompts of an API server in one thread, and gives up what has waited 30 seconds for it.
Written against vLLM 0.32 (`tests/worker/test_long_prompts.py` names it); only this file uses these internals:
`BaseRenderer._executor` (`vllm/renderers/base.py`), to which `make_async` (`vllm/utils/async_utils.py`) gives the
work as a partial, and that tokenizers may be used by several threads (`maybe_make_thread_pool` of
`vllm/tokenizers/hf.py`). Other versions are left as they are.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

log = logging.getLogger(__name__)

_LONG = 50_000
"""Characters of a prompt that takes longer than others should wait: about 30 ms."""

_DEPTH = 6
"""How deep the texts of a conversation lie in the arguments: list, message, list of parts, part, text."""


def tokenize_long_ones_apart(renderer: Any) -> None:
    """Let the renderer render and tokenise long prompts in another thread."""
    try:
        from vllm.tokenizers.hf import maybe_make_thread_pool
    except ImportError:
        maybe_make_thread_pool = None
    executor = getattr(renderer, "_executor", None)
    if maybe_make_thread_pool is None or executor is None:
        log.info("this vLLM tokenises long prompts in the thread of short ones")
        return
    any_length: Callable[..., Future[Any]] = executor.submit
    thread = ThreadPoolExecutor(1, thread_name_prefix="long-prompts")

    def submit(work: Any, /, *arguments: Any, **named: Any) -> Future[Any]:
        given = [*getattr(work, "args", ()), *getattr(work, "keywords", {}).values()]
        if _characters(given, _LONG) > _LONG:
            return thread.submit(work, *arguments, **named)
        return any_length(work, *arguments, **named)

    executor.submit = submit


def _characters(value: Any, most: int, depth: int = _DEPTH) -> int:
    """Count the characters of all texts in a value; stop soon beyond `most`."""
    if isinstance(value, str):
        return len(value)
    if not depth or not isinstance(value, list | tuple | Mapping):
        return 0
    number = 0
    for item in value.values() if isinstance(value, Mapping) else value:
        number += _characters(item, most - number, depth - 1)
        if number > most:
            break
    return number
