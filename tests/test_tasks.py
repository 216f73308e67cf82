"""Tasks that run until they are cancelled."""

import asyncio

import pytest

from edge.tasks import end, keep_running


async def broken() -> None:
    raise ZeroDivisionError


def test_an_error_is_told_when_it_happens(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        task = keep_running(broken(), "divide")
        await asyncio.wait([task])
        await asyncio.sleep(0)
        (record,) = caplog.records
        assert record.getMessage() == "the task 'divide' has ended by a bug"
        assert record.exc_info is not None
        assert record.exc_info[0] is ZeroDivisionError
        await end(task)
        await end(None)

    asyncio.run(run())


def test_one_that_is_cancelled_ends_quietly(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        task = keep_running(asyncio.sleep(60), "sleep")
        await end(task)
        assert task.cancelled()
        assert caplog.records == []

    asyncio.run(run())
