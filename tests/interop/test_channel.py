"""Channels with a live stock node: every kind of our identity, as initiator and as responder."""

import asyncio

import pytest

from edge.wire import bare
from edge.wire.route import Route
from tests.interop.conftest import Make
from tests.interop.probe import probing
from tests.people import KINDS, person

pytestmark = pytest.mark.parametrize("kind", KINDS)


def test_we_open_a_channel(make: Make, kind: str) -> None:
    stock = make("stock", "node")

    async def run() -> None:
        async with probing(person("initiator", kind)) as probe:
            link = await probe.link(stock.port)
            channel = await probe.channel(Route.of(link.address, "api"))
            assert str(channel.peer) == stock.identifier
            way = Route.of(channel.address)
            for n in range(100):  # past several new keys
                answer = await probe.ask(way, "uppercase", bare.encode_string(f"word {n}"))
                assert answer == bare.encode_string(f"WORD {n}")

    asyncio.run(run())


def test_they_open_a_channel(make: Make, kind: str) -> None:
    stock = make("stock", "node")

    async def run() -> None:
        async with probing(person("responder", kind)) as probe:
            port = await probe.listen()
            to = f"/ip4/127.0.0.1/tcp/{port}"
            for n in range(2):
                answer = await asyncio.to_thread(
                    stock.send, f"word {n}", f"{to}/secure/api/service/uppercase"
                )
                assert answer == f"WORD {n}"
            # A route without a service shows the channel itself, and who is at its end.
            authorized = ["--authorized", str(probe.person.identifier)]
            made = await asyncio.to_thread(
                stock.run, "secure-channel", "create", "--from", stock.name,
                "--to", f"{to}/service/api", *authorized,
            )  # fmt: skip
            way = made.strip().removeprefix("/service/").split("\n")[0].strip()
            answer = await asyncio.to_thread(
                stock.send, "through it", f"/service/{way}/service/uppercase"
            )
            assert answer == "THROUGH IT"

    asyncio.run(run())
