"""The gateway process of `vllama serve`, from its socket to its last worker."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import math
import os
import resource
import shlex
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import uvicorn
import uvloop

import vllama
from vllama.durations import FOREVER, Nanoseconds, to_seconds
from vllama.errors import BadEngineFlags, ModelNotFound, VllamaError
from vllama.gateway.access import require_keys
from vllama.gateway.app import Gateway
from vllama.gateway.library import Puller
from vllama.gateway.pid_file import PidFile
from vllama.gateway.signals import Reread, Signals
from vllama.http_protocol import HttpProtocol
from vllama.log_lines import Formatter
from vllama.names import ModelName
from vllama.scheduler.launcher import Launcher
from vllama.scheduler.residency import STOP_GRACE_SECONDS, WorkerLauncher
from vllama.scheduler.scheduler import Scheduler
from vllama.scheduler.serving import Serving
from vllama.settings import DEFAULT_KEEP_ALIVE, Settings
from vllama.store.blobs import Blobs
from vllama.store.catalogue import catalogue
from vllama.store.manifest import Manifest
from vllama.store.model_store import ModelStore
from vllama.store.progress import paced
from vllama.store.pull import pull

log = logging.getLogger("vllama")

USAGE_EXIT = 2
Load = tuple[Manifest, Nanoseconds | None]
"""A model to load at startup, and its keep-alive; None leaves it at the default."""

_MOST_FILES = 65536
"""Maximum number of open files to ask for; some programs are slow with more."""

_CUT_SECONDS = 5
"""Seconds for a slow client to receive the error that ends its reply."""


class GatewayLauncher(WorkerLauncher, Protocol):
    """The server's interface to vllama.scheduler.launcher.Launcher."""

    serving: Serving

    async def check_flags(self) -> None:
        """Raise BadEngineFlags if vLLM refuses the user's flags."""

    def keep_spares(self, is_quiet: Callable[[], bool]) -> None:
        """Start to prepare spare workers."""

    async def drop_spares(self) -> None:
        """Stop the spare workers and start no more."""

    def adopt(self, settings: Settings) -> None:
        """Use these settings for workers from now on."""

    def close(self) -> None:
        """Remove sockets and directories."""


class _Server(uvicorn.Server):
    """Uvicorn without its signal handlers: ours also inform the scheduler."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def serve(
    settings: Settings,
    reread: Reread,
    *,
    models: Sequence[str],
    engine_flags: Sequence[str],
    compile: bool,  # noqa: A002
) -> int:
    """Serve until SIGTERM or SIGINT; return the exit code.

    `reread` reads the settings again, on SIGHUP. `models` are names, or NAME=PATH for a snapshot on disk; they are
    loaded at once and stay. `engine_flags` go to every vLLM. Raises VllamaError if it cannot start.
    """
    _set_up_logging(debug=settings.debug)
    require_keys(settings)
    _raise_file_limit()
    store = ModelStore(settings.models, settings.precision)
    Blobs(store.root).prune()
    store.remove_leftovers()
    loads = [*_named(store, models, settings), *_preloaded(store, settings)]
    listener = _listen(settings)
    launcher = Launcher(settings, user_flags=engine_flags, compiled=compile)
    return uvloop.run(_serve(settings, reread, store, loads, listener=listener, launcher=launcher))


def _named(store: ModelStore, models: Sequence[str], settings: Settings) -> Iterator[Load]:
    """Yield the models on the command line, which stay unless keep-alive differs from its default."""
    keep_alive = FOREVER if settings.keep_alive == DEFAULT_KEEP_ALIVE else settings.keep_alive
    for model in models:
        yield _stage(store, model), keep_alive


def _preloaded(store: ModelStore, settings: Settings) -> Iterator[Load]:
    """Yield the models of OLLAMA_PRELOAD_MODELS that are stored; the server starts without the others."""
    for preload in settings.preload_models:
        try:
            yield store.get(ModelName.parse(preload.name)), preload.keep_alive
        except VllamaError as error:
            log.warning("cannot load %s of OLLAMA_PRELOAD_MODELS: %s", preload.name, error)


def _set_up_logging(*, debug: bool) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(level=logging.DEBUG if debug else logging.INFO, handlers=[handler])


def _raise_file_limit() -> None:
    """Let the process open as many files as it may, as Go does for Ollama: each client takes one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _stage(store: ModelStore, model: str) -> Manifest:
    """Return the manifest of `NAME`, or of `NAME=PATH` after importing the path."""
    text, has_path, path = model.partition("=")
    name = ModelName.parse(text)
    if has_path:
        for step in paced(pull(store, name, from_path=Path(path).expanduser())):
            log.debug("%s: %s", name, step.status)
    try:
        return store.get(name)
    except ModelNotFound as error:
        similar = [*catalogue(store.root).closest(name), *(m.name.display for m in store.list())]
        hint = f". Similar names: {', '.join(dict.fromkeys(similar))}" if similar else ""
        raise VllamaError(f"{error}; pull it with `vllama pull {name}`{hint}") from None


def _listen(settings: Settings) -> socket.socket:
    address = settings.address
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        return socket.create_server((address.host, address.port), family=family, backlog=2048)
    except OSError as error:
        # Python adds the address to the system's messages, but not to those of the resolver.
        reason = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
        hint = ". Is another server running there?" if error.errno == errno.EADDRINUSE else ""
        raise VllamaError(f"cannot listen on {address.host}:{address.port}: {reason}{hint}") from error


async def _serve(
    settings: Settings,
    reread: Reread,
    store: ModelStore,
    loads: Sequence[Load],
    *,
    listener: socket.socket,
    launcher: GatewayLauncher,
    puller: Puller = pull,
) -> int:
    scheduler = Scheduler(settings, launcher)
    gateway = Gateway(settings, store, scheduler, launcher.serving, puller=puller)
    server = _Server(server_config(gateway, settings.drain_timeout))
    port = listener.getsockname()[1]
    pid_file = PidFile(settings.models, port)
    pid_file.hold()
    signals = Signals(
        server,
        settings,
        reread,
        refuse=scheduler.refuse,
        end_replies=gateway.end_replies,
        parts=(scheduler, gateway, launcher),
    )
    signals.install()
    log.info("vllama %s is listening on %s", vllama.__version__, f"http://{settings.address.host}:{port}")
    url = f"http://localhost:{port}"

    # A load checks the flags best; without one, check them before the first request.
    async def prepare() -> None:
        await (_preload(scheduler, loads, url) if loads else launcher.check_flags())
        launcher.keep_spares(lambda: scheduler.is_quiet)

    preparing = asyncio.create_task(prepare())
    preparing.add_done_callback(lambda task: _stop_on_bad_flags(task, server))
    try:
        await server.serve(sockets=[listener])
    finally:
        preparing.cancel()
        await asyncio.wait({preparing})
        grace = 0 if signals.is_hurried else STOP_GRACE_SECONDS
        await asyncio.gather(scheduler.close(grace=grace), launcher.drop_spares())
        gateway.close()
        launcher.close()
        pid_file.release()
    refused = not preparing.cancelled() and isinstance(preparing.exception(), BadEngineFlags)
    return USAGE_EXIT if refused else 0


def server_config(gateway: Gateway, drain_timeout: Nanoseconds = FOREVER) -> uvicorn.Config:
    """Return uvicorn's config. After `drain_timeout` replies are ended and slow clients are cut off."""
    limit = None if drain_timeout == FOREVER else math.ceil(to_seconds(drain_timeout)) + _CUT_SECONDS
    return uvicorn.Config(
        gateway,
        http=partial(HttpProtocol, counted=gateway.connections),  # type: ignore[arg-type]  # uvicorn calls it
        proxy_headers=False,  # a client could state any address, which the audit log would have
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=limit,
    )


async def _preload(scheduler: Scheduler, loads: Sequence[Load], url: str) -> None:
    """Load the models named on the command line and in OLLAMA_PRELOAD_MODELS.

    Raises BadEngineFlags. Other load failures are logged, and the server continues.
    """
    for manifest, keep_alive in loads:
        log.info("loading %s; this takes half a minute or more", manifest.name)
        try:
            async with scheduler.lease(manifest, keep_alive):
                pass
        except BadEngineFlags:
            raise
        except VllamaError as error:
            log.error("cannot load %s: %s", manifest.name, error)  # noqa: TRY400 - for the user, not for us
            continue
        _say_how_to_use(manifest.name.display, url)


def _say_how_to_use(model: str, url: str) -> None:
    body = f'{{"model":"{model}","messages":[{{"role":"user","content":"What is the capital of France?"}}]}}'
    print(f"\n{model} is ready. Try:\n\n  curl {url}/api/chat -d {shlex.quote(body)}\n", flush=True)


def _stop_on_bad_flags(preparing: asyncio.Task[None], server: _Server) -> None:
    error = None if preparing.cancelled() else preparing.exception()
    if isinstance(error, BadEngineFlags):
        print(f"Error: vLLM does not accept its flags: {error}", file=sys.stderr, flush=True)
        server.should_exit = True
    elif error is not None:
        log.error("cannot prepare the models", exc_info=error)
