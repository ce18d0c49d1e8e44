"""Compile each new grammar in a child process first, which the kernel ends when it takes too long.

The engine compiles grammars in threads that nothing can end, and asks them for the allowed tokens in the step loop that
all replies share. So each constraint is tried before it reaches the engine: compiled, and asked for the tokens of its
first places. The child is forked from the API server, with which it shares the vocabulary, and compiles one grammar at
a time. It is killed when the last client that waits for its grammar has left.

Written against vLLM 0.26 to 0.33 (`tests/worker/test_grammar_trials.py` names them). Only this file uses these
internals: `XgrammarBackend` and what it compiles, `get_structured_output_key`, `choice_as_grammar`, and that
`AsyncLLM.generate` calls its own `add_request`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import json
import logging
import os
import re
import resource
import signal
import socket
import struct
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllama.errors import SchemaError
from vllama.worker.grammars import check_constraint_cost, is_compiled
from vllama.worker.slow_masks import for_vocabulary

log = logging.getLogger(__name__)

_MOST_KNOWN = 1024
"""Number of grammars whose verdict is kept."""

_MOST_MEMORY = 2 << 30
"""Maximum bytes that a trial may allocate, beyond what the API server has."""

_MOST_MASK_SECONDS = 0.25
"""Maximum CPU seconds in which the tokens of a place have to be found; more with large vocabularies."""

_NICE = 10
"""Trials leave the processor to those who have their grammar, or need none."""

_PLACES = 24
"""Number of places whose tokens a trial asks for."""

_COMPILED, _REFUSED, _SLOW = b"y", b"n", b"s"
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came out of a trial: `cause` says why the grammar cannot be used; "" if it can."""

    cause: str = ""
    is_malformed: bool = False
    """Whether xgrammar refused it; another of vLLM's backends may take it."""


class GrammarTrials:
    """The trials of an API server's grammars."""

    def __init__(self, vllm_config: Any, tokenizer: Any, seconds: float | None) -> None:
        """Give each grammar at most so many seconds of CPU time, more with large vocabularies; None for any."""
        self._config = vllm_config
        self._tokenizer = tokenizer
        self._seconds = seconds
        self._backend: Any = None
        self._making: asyncio.Task[Any] | None = None
        self._is_told = False
        self._child: _Child | None = None
        self._turn = asyncio.Lock()
        self._known: OrderedDict[bytes, Verdict] = OrderedDict()
        self._running: dict[bytes, tuple[asyncio.Task[Verdict], set[object]]] = {}

    @property
    def concerns(self) -> bool:
        """Whether grammars of this engine are tried: those of xgrammar are, which vLLM prefers."""
        backend = str(self._config.structured_outputs_config.backend)
        return backend in ("auto", "xgrammar") and not self._config.model_config.skip_tokenizer_init

    async def check(self, constraint: Any) -> bool:
        """Return whether xgrammar takes a constraint. Raises vLLM's error for requests if that takes too long."""
        try:
            check_constraint_cost(constraint)
        except ValueError as error:
            raise _client_error(str(error)) from error
        verdict = await self.verdict(constraint)
        if verdict is not None and verdict.cause and not verdict.is_malformed:
            raise _client_error(f"the grammar is refused: {verdict.cause}")
        return verdict is not None and not verdict.cause

    async def check_schema(self, constraint: Any) -> None:
        """Raise SchemaError if no grammar can be made of the JSON Schema of a constraint."""
        verdict = await self.verdict(constraint)
        if verdict is not None and verdict.cause:
            raise SchemaError("", f"the grammar cannot be compiled: {verdict.cause}")

    async def verdict(self, constraint: Any) -> Verdict | None:
        """Return what came out of a constraint's trial; None if xgrammar cannot be used with it or this model.

        Cancelling ends the trial if no other client waits for it.
        """
        if not await self._has_backend():
            return None
        try:
            kind, text = _key(constraint)
        except (TypeError, ValueError):  # vLLM says what is wrong with it
            return None
        key = hashlib.sha256(f"{kind}\0{text}".encode(errors="surrogatepass")).digest()
        if (known := self._known.get(key)) is not None:
            self._known.move_to_end(key)
            return known
        if key not in self._running:
            self._running[key] = asyncio.create_task(self._try(key, kind, text)), set()
        task, watchers = self._running[key]
        watcher = object()
        watchers.add(watcher)
        try:
            return await asyncio.shield(task)
        finally:
            watchers.discard(watcher)
            if not watchers and not task.done():
                self._running.pop(key, None)
                task.cancel()

    async def _has_backend(self) -> bool:
        """Make the backend before its first use, because it reads the whole vocabulary."""
        if self._making is None:
            self._making = asyncio.create_task(asyncio.to_thread(_backend_for_trials, self._config, self._tokenizer))
        try:
            self._backend = await asyncio.shield(self._making)
        except Exception as error:  # noqa: BLE001 - tokenizers of all kinds; vLLM says what it thinks of them
            if not self._is_told:
                log.warning("grammars are not tried before the engine compiles them: %s", error)
                self._is_told = True
            return False
        return True

    def close(self) -> None:
        """End the child, if there is one."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    async def _try(self, key: bytes, kind: str, text: str) -> Verdict:
        try:
            async with self._turn:
                if self._child is None:
                    seconds = self._seconds and for_vocabulary(self._seconds, self._backend.vocab_size)
                    self._child = await _Child.start(self._backend, seconds)
                verdict: Verdict | None = None
                try:
                    verdict = await self._child.compile(kind, text)
                finally:
                    if verdict is None:  # it was killed, or is to be
                        self.close()
            if verdict is None:
                verdict = Verdict("it takes too much time or memory to compile")
                log.warning("a grammar of %d characters was refused: %s", len(text), verdict.cause)
            self._known[key] = verdict
            if len(self._known) > _MOST_KNOWN:
                self._known.popitem(last=False)
            return verdict
        finally:
            if self._running.get(key, (None,))[0] is asyncio.current_task():
                del self._running[key]


def try_grammars_first(client: Any, seconds: float | None) -> GrammarTrials | None:
    """Have an engine client try the constraint of each request before the engine gets it; None if it cannot."""
    trials = GrammarTrials(client.vllm_config, client.renderer.get_tokenizer(), seconds)
    if not trials.concerns:
        return None
    add = client.add_request

    async def add_request(request_id: str, prompt: Any, params: Any, *rest: Any, **others: Any) -> Any:
        constraint = getattr(params, "structured_outputs", None)
        known = is_compiled.set(constraint is not None and await trials.check(constraint))
        try:
            return await add(request_id, prompt, params, *rest, **others)
        finally:
            is_compiled.reset(known)

    client.add_request = add_request
    return trials


class _Child:
    """The process in which grammars are compiled, and the socket to it."""

    def __init__(self, pid: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._pid = pid
        self._reader = reader
        self._writer = writer

    @classmethod
    async def start(cls, backend: Any, seconds: float | None) -> _Child:
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            _serve(theirs, backend, seconds)
        theirs.close()
        return cls(pid, *await asyncio.open_connection(sock=ours))

    async def compile(self, kind: str, text: str) -> Verdict | None:
        """Return what came out of a trial; None if the child was killed."""
        body = json.dumps([kind, text]).encode()
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            self._writer.write(_LENGTH.pack(len(body)) + body)
            await self._writer.drain()
            answer = await self._reader.readexactly(1)
            cause = await self._reader.readexactly(_LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))[0])
            return Verdict(cause.decode(), is_malformed=answer == _REFUSED)
        return None

    def kill(self) -> None:
        self._writer.transport.abort()
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)


def _serve(connection: socket.socket, backend: Any, seconds: float | None) -> None:
    """Compile what comes over a connection until it closes. Runs in the child, and never returns."""
    try:
        gc.disable()  # a collection would copy each page that the child shares
        os.nice(_NICE)
        _keep_only(connection.fileno())
        for number in (signal.SIGPROF, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)  # ends the process
        limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + _MOST_MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with connection.makefile("rwb") as stream:
            while len(head := stream.read(_LENGTH.size)) == _LENGTH.size:
                kind, text = json.loads(stream.read(_LENGTH.unpack(head)[0]))
                signal.setitimer(signal.ITIMER_PROF, seconds or 0)
                answer, cause = _tried(backend, kind, text)
                signal.setitimer(signal.ITIMER_PROF, 0)
                stream.write(answer + _LENGTH.pack(len(cause)) + cause)
                stream.flush()
    finally:
        os._exit(0)


def _keep_only(descriptor: int) -> None:
    """Close what the child has inherited: connections of clients would stay open with it."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    os.closerange(3, descriptor)
    os.closerange(descriptor + 1, os.sysconf("SC_OPEN_MAX"))


def _tried(backend: Any, kind: str, text: str) -> tuple[bytes, bytes]:
    """Compile a grammar and find the tokens of its first places. Returns the answer and the cause of a refusal."""
    from vllm.v1.structured_output.backend_types import StructuredOutputOptions

    try:
        grammar = backend.compile_grammar(StructuredOutputOptions[kind], text)
    except Exception as error:  # noqa: BLE001 - libraries refuse with errors of all kinds
        cause = re.sub(r"^\[[\d:]+\] \S+:\d+: ", "", str(error)).strip() or "no cause"
        return _REFUSED, cause.encode(errors="replace")
    mask = backend.allocate_token_bitmask(1)
    for _ in range(_PLACES):
        if grammar.is_terminated():
            break
        began = time.process_time()
        grammar.fill_bitmask(mask, 0)
        if time.process_time() - began > for_vocabulary(_MOST_MASK_SECONDS, backend.vocab_size):
            return _SLOW, b"it takes too much time to find the tokens that it allows"
        token = _longest_allowed(mask, backend)
        if token is None or not grammar.accept_tokens("", [token]):
            break
    return _COMPILED, b""


def _longest_allowed(mask: Any, backend: Any) -> int | None:
    """Return an allowed token that is not special: the one with the highest number, which often is long."""
    words = mask[0].numpy().view("uint32")
    special = set(getattr(backend.tokenizer, "all_special_ids", ()))
    for index in reversed(range(len(words))):
        for bit in reversed(range(32)):
            token = 32 * index + bit
            if int(words[index]) >> bit & 1 and token not in special and token < backend.vocab_size:
                return token
    return None


def _key(constraint: Any) -> tuple[str, str]:
    """Return how the engine names a constraint: its kind, and its text."""
    from vllm.v1.structured_output.request import get_structured_output_key
    from vllm.v1.structured_output.utils import choice_as_grammar

    if constraint.choice is not None:
        return "GRAMMAR", str(choice_as_grammar(constraint.choice))
    kind, text = get_structured_output_key(constraint)
    return str(kind.name), text if isinstance(text, str) else json.dumps(text)


def _client_error(message: str) -> Exception:
    """Return the error for which vLLM answers 400: its own where it has one, because ValueErrors then mean 500."""
    try:
        from vllm.exceptions import VLLMValidationError
    except ImportError:
        return ValueError(message)
    return VLLMValidationError(message)  # type: ignore[no-any-return]


def _backend_for_trials(vllm_config: Any, tokenizer: Any) -> Any:
    """Return vLLM's xgrammar with the vocabulary of the model."""
    from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend

    vocabulary_size = vllm_config.model_config.get_vocab_size()
    return XgrammarBackend(vllm_config, tokenizer=tokenizer, vocab_size=vocabulary_size)
