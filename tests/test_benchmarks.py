"""The chain that the micro-benchmark times really carries bytes; no time is looked at."""

import asyncio
import os

from benchmarks.records import Chain


def test_the_measured_chain_carries_what_is_sent() -> None:
    async def run() -> int:
        chain = Chain()
        chain.link.kept = frames = []
        for _ in range(70):  # past two rekeys
            chain.send(memoryview(os.urandom(1000)))
        for frame in frames:
            chain.receive(frame)
        return chain.sink.bytes

    assert asyncio.run(run()) == 70_000
