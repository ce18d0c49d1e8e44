"""`vllama serve`: the gateway's process, from its socket to its last worker."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import math
import os
import shlex
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import uvicorn
import uvloop

import vllama
from vllama.durations import FOREVER, NS_PER_SECOND
from vllama.errors import BadEngineFlags, ModelNotFound, VllamaError
from vllama.gateway.app import Gateway
from vllama.gateway.pid_file import PidFile
from vllama.gateway.signals import Reread, Signals
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
from vllama.store.pull import pull

log = logging.getLogger("vllama")

USAGE_EXIT = 2
_CUT_SECONDS = 5
"""How long a client that reads slowly has to take the error that ends its reply."""


class GatewayLauncher(WorkerLauncher, Protocol):
    """What the server needs of vllama.scheduler.launcher.Launcher."""

    serving: Serving

    async def check_flags(self) -> None:
        """Raise BadEngineFlags where vLLM does not know the user's flags."""

    def keep_spares(self, is_quiet: Callable[[], bool]) -> None:
        """Begin to prepare workers that wait for their model."""

    async def drop_spares(self) -> None:
        """End them, and prepare no more."""

    def adopt(self, settings: Settings) -> None:
        """Start workers by these settings from now on."""

    def close(self) -> None:
        """Clean up."""


class _Server(uvicorn.Server):
    """Uvicorn without its signal handlers: ours also tell the scheduler."""

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
    loaded at once and stay. `engine_flags` go to every vLLM. Raises VllamaError where it cannot begin.
    """
    _set_up_logging(debug=settings.debug)
    store = ModelStore(settings.models)
    Blobs(store.root).prune()
    manifests = [_stage(store, model) for model in models]
    listener = _listen(settings)
    launcher = Launcher(settings, user_flags=engine_flags, compiled=compile)
    return uvloop.run(_serve(settings, reread, store, manifests, listener=listener, launcher=launcher))


def _set_up_logging(*, debug: bool) -> None:
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S"
    )


def _stage(store: ModelStore, model: str) -> Manifest:
    """The manifest of `NAME`, or of `NAME=PATH` after taking the path in."""
    text, has_path, path = model.partition("=")
    name = ModelName.parse(text)
    if has_path:
        for step in pull(store, name, from_path=Path(path).expanduser()):
            log.debug("%s: %s", name, step.status)
    try:
        return store.get(name)
    except ModelNotFound as error:
        similar = [*catalogue(store.root).closest(name), *(m.name.display for m in store.list())]
        hint = f"; known: {', '.join(dict.fromkeys(similar))}" if similar else ""
        raise VllamaError(f"{error}: pull it first with `vllama pull {name}`{hint}") from None


def _listen(settings: Settings) -> socket.socket:
    address = settings.address
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        return socket.create_server((address.host, address.port), family=family, backlog=2048)
    except OSError as error:
        # Python adds the address to the system's words, but not to those of the resolver.
        reason = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
        hint = ". Is another server running there?" if error.errno == errno.EADDRINUSE else ""
        raise VllamaError(f"cannot listen on {address.host}:{address.port}: {reason}{hint}") from error


async def _serve(
    settings: Settings,
    reread: Reread,
    store: ModelStore,
    manifests: Sequence[Manifest],
    *,
    listener: socket.socket,
    launcher: GatewayLauncher,
) -> int:
    scheduler = Scheduler(settings, launcher)
    gateway = Gateway(settings, store, scheduler, launcher.serving)
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
    log.info("vllama %s listens on %s", vllama.__version__, f"http://{settings.address.host}:{port}")
    # What the operator names stays, unless keep-alive was set to anything but its default.
    keep_alive = FOREVER if settings.keep_alive == DEFAULT_KEEP_ALIVE else settings.keep_alive
    url = f"http://localhost:{port}"

    # A load is the best check of the flags; where there is none, wrong ones shall not wait for the first request.
    async def prepare() -> None:
        await (_preload(scheduler, manifests, keep_alive, url) if manifests else launcher.check_flags())
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


def server_config(gateway: Gateway, drain_timeout: int = FOREVER) -> uvicorn.Config:
    """How uvicorn serves it. `drain_timeout` is ns: replies are ended then, and what clients do not take is cut."""
    limit = None if drain_timeout == FOREVER else math.ceil(drain_timeout / NS_PER_SECOND) + _CUT_SECONDS
    return uvicorn.Config(
        gateway,
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=limit,
    )


async def _preload(scheduler: Scheduler, manifests: Sequence[Manifest], keep_alive: int, url: str) -> None:
    """Load the models named on the command line.

    Raises BadEngineFlags. A model that cannot be loaded for another reason is reported, and the server goes on.
    """
    for manifest in manifests:
        log.info("loading %s (this takes half a minute or more)", manifest.name)
        try:
            async with scheduler.lease(manifest, keep_alive):
                pass
        except BadEngineFlags:
            raise
        except VllamaError as error:
            log.error("%s could not be loaded: %s", manifest.name, error)  # noqa: TRY400 - for the user, not for us
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
        log.error("preparing the models failed", exc_info=error)
