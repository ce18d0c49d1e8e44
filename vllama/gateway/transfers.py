"""Long work of the store, done step by step in threads, and watched by any number of clients.

Pulls of one name are one transfer, however many clients ask for it. A transfer ends when the last client has left.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator, Hashable

from vllama.errors import Overloaded
from vllama.machine.interruption import Interruption
from vllama.machine.threads import Threads
from vllama.store.progress import Progress

Steps = Generator[Progress, None, None]


class Transfers:
    """The running pulls and creations. At most `most` run at once; each has a thread whenever it needs one."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._threads = Threads("transfer", most)
        self._running: set[_Transfer] = set()
        self._shared: dict[Hashable, _Transfer] = {}

    def adopt(self, most: int) -> None:
        """Allow this many from now on."""
        if most != self._most:
            self._most, self._threads = most, Threads("transfer", most)

    def watch(self, make_steps: Callable[[], Steps], key: Hashable = None) -> AsyncGenerator[Progress, None]:
        """Do the work and return its steps; with a `key`, work that runs under the same key is watched instead.

        A client that joins later gets the newest step of each kind first. Closing the iterator ends the work if no
        other client watches it: its child processes are killed at once. Raises Overloaded where too many run; the
        iterator raises what the work raises.
        """
        transfer = self._shared.get(key) if key is not None else None
        if transfer is None:
            if len(self._running) >= self._most:
                raise Overloaded("too many pulls and creations are running, please try again later")
            transfer = _Transfer(make_steps(), self._threads)
            self._begin(transfer, key)
        return transfer.watched()

    def _begin(self, transfer: _Transfer, key: Hashable) -> None:
        self._running.add(transfer)
        if key is not None:
            self._shared[key] = transfer

        def ended(work: asyncio.Task[None]) -> None:
            self._running.discard(transfer)
            if not work.cancelled():
                work.exception()  # its watchers have it

        def left() -> None:
            if self._shared.get(key) is transfer:
                del self._shared[key]

        transfer.begin(left, ended)


class _Transfer:
    """One piece of work and its watchers. `_newest` has the newest step of each status and file, in order."""

    def __init__(self, steps: Steps, threads: Threads) -> None:
        self._steps = steps
        self._threads = threads
        self._interruption = Interruption()
        self._newest: dict[tuple[str, str], Progress] = {}
        self._watchers: set[_Watcher] = set()

    def begin(self, left: Callable[[], None], ended: Callable[[asyncio.Task[None]], None]) -> None:
        """Start the work; `left` is called once no client may join any more, `ended` after its last step."""
        self._left = left
        self._work = asyncio.create_task(self._run())
        self._work.add_done_callback(ended)

    async def watched(self) -> AsyncGenerator[Progress, None]:
        """Yield the steps so far, and those to come."""
        watcher = _Watcher(self._newest)
        self._watchers.add(watcher)
        try:
            while not (watcher.is_empty and self._work.done()):
                if watcher.is_empty:
                    await watcher.anything(self._work)
                for step in watcher.taken():
                    yield step
            self._work.result()
        finally:
            self._watchers.discard(watcher)
            if not self._watchers and not self._work.done():
                self._left()
                self._interruption.ask()
                self._work.cancel()

    async def _run(self) -> None:
        pending: asyncio.Future[Progress | None] | None = None
        try:
            while True:
                pending = asyncio.wrap_future(self._threads.submit(self._interruption.next_of, self._steps))
                step = await asyncio.shield(pending)
                if step is None:
                    break
                self._tell(step)
                if step.pause:
                    await asyncio.sleep(step.pause)
        finally:
            self._left()
            if pending is not None and not pending.done():
                await asyncio.wait({pending})
            if pending is not None and not pending.cancelled():
                pending.exception()  # no client is left to inform
            await asyncio.wait({asyncio.wrap_future(self._threads.submit(self._steps.close))})

    def _tell(self, step: Progress) -> None:
        self._newest[step.status, step.digest] = step
        for watcher in self._watchers:
            watcher.tell(step)


class _Watcher:
    """The steps that one client has not seen; of the same status and file only the newest."""

    def __init__(self, newest: dict[tuple[str, str], Progress]) -> None:
        self._unseen = dict(newest)
        self._told: asyncio.Future[None] | None = None

    @property
    def is_empty(self) -> bool:
        return not self._unseen

    def tell(self, step: Progress) -> None:
        self._unseen[step.status, step.digest] = step
        if self._told is not None and not self._told.done():
            self._told.set_result(None)

    async def anything(self, work: asyncio.Task[None]) -> None:
        """Wait for the next step, or for the end of the work."""
        self._told = asyncio.get_running_loop().create_future()
        await asyncio.wait({work, self._told}, return_when=asyncio.FIRST_COMPLETED)

    def taken(self) -> list[Progress]:
        steps, self._unseen = list(self._unseen.values()), {}
        return steps
