"""The one thread of the store in a node: waiting for the disk must not stall the loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from edge.events import event
from edge.node.store import Store

log = logging.getLogger("edge.store")

P = ParamSpec("P")
T = TypeVar("T")


class StoreThread:
    """A Store, and the only thread that calls it. What is asked for first, is done first."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")
        self._store: Store | None = None

    async def open(self) -> StoreThread:
        self._store = await self._run(lambda: Store(self._path))
        return self

    async def call(
        self, method: Callable[Concatenate[Store, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Call a method of the Store and wait until it is done."""
        assert self._store is not None
        store = self._store
        return await self._run(lambda: method(store, *args, **kwargs))

    def later(
        self, method: Callable[Concatenate[Store, P], None], *args: P.args, **kwargs: P.kwargs
    ) -> None:
        """Call a method of the Store, where nobody waits for the outcome. A failure is logged;
        after close() nothing is done."""
        store = self._store
        if store is None:
            return
        done = self._thread.submit(lambda: method(store, *args, **kwargs))
        done.add_done_callback(_report)

    async def settled(self) -> None:
        """Wait until everything asked for so far is on the disk."""
        await self._run(lambda: None)

    async def close(self) -> None:
        store, self._store = self._store, None
        if store is not None:
            await self._run(store.close)
        self._thread.shutdown(wait=False)

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


def _report(done: Future[None]) -> None:
    error = done.exception()
    if error is not None:
        log.error("could not be stored: %s", error, extra=event("store-failed", error))
