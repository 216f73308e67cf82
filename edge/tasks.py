"""Tasks that run until they are cancelled: one that ends by an error of ours is not lost in silence."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from edge.events import event

log = logging.getLogger("edge.tasks")


def keep_running(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    """A task named `name`, whose owner cancels it. What ends it before, it should have caught: that
    is logged, since the owner asks for the outcome at the end only, or never."""
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(_report)
    return task


async def end(task: asyncio.Task[None] | None) -> None:
    """Cancel it, and wait until it has let go."""
    if task is not None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _report(task: asyncio.Task[None]) -> None:
    error = None if task.cancelled() else task.exception()
    if error is not None:
        log.error(
            "the task %r has ended by a bug", task.get_name(), exc_info=error, extra=event("bug")
        )
