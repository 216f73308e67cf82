"""(Origin x address) on a live node of each kind: who answers whom, and where we differ on purpose."""

import asyncio

import pytest

from edge.wire.route import Route
from tests.interop.conftest import Make
from tests.interop.nodes import Node
from tests.interop.probe import Probe, probing
from tests.interop.services import serving
from tests.people import person

PLAIN, CHANNEL, OUTGOING, OUTGOING_CHANNEL = "plain", "channel", "outgoing", "outgoing channel"
EVERYWHERE = {PLAIN, CHANNEL, OUTGOING, OUTGOING_CHANNEL}
# 01 §3.5, a node without authority that listens on loopback.
EXPECTED = {
    "echo": EVERYWHERE,
    "uppercase": EVERYWHERE,
    "api": EVERYWHERE,
    "forwarding_service": {PLAIN, CHANNEL},
    "static_forwarding_service": {PLAIN, CHANNEL},
    "forward_to_mine": {PLAIN, CHANNEL},
    "outlet": {PLAIN, CHANNEL},
    "hop": set(),
    "control": set(),
    "control_api": set(),
    "_internal.nodemanager": set(),
}
HOLE = ("_internal.nodemanager", PLAIN)
"""Stock's node manager answers anyone on plain TCP. Ours does not."""


async def came_out(probe: Probe, node: Node, name: str, *, secure: bool) -> Route:
    """The way back over a connection that the node itself made, to register a relay at the probe."""
    port = await probe.listen()
    at = f"/ip4/127.0.0.1/tcp/{port}" + ("/secure/api" if secure else "")
    await asyncio.to_thread(node.run, "relay", "create", name, "--to", node.name, "--at", at)
    message = await asyncio.wait_for(probe.registrations.seen.get(), 10)
    first = message.back.first
    assert first is not None
    return Route.of(first)


async def answers(node: Node) -> dict[str, set[str]]:
    async with probing(person("prober")) as probe, probing(person("hub")) as hub:
        link = await probe.link(node.port)
        await probe.own_relay(link, "mine")
        channel = await probe.channel(Route.of(link.address, "api"))
        ways = {
            PLAIN: (probe, Route.of(link.address)),
            CHANNEL: (probe, Route.of(channel.address)),
            OUTGOING: (hub, await came_out(hub, node, "out", secure=False)),
            OUTGOING_CHANNEL: (hub, await came_out(hub, node, "inside", secure=True)),
        }
        found: dict[str, set[str]] = {address: set() for address in EXPECTED}
        for address in EXPECTED:
            for origin, (asker, way) in ways.items():
                asker.arrivals = probe.arrivals
                if await asker.reaches(way, address):
                    found[address].add(origin)
        return found


@pytest.mark.parametrize("kind", ["stock", "ours"])
def test_every_cell(make: Make, kind: str) -> None:
    with serving() as server:
        node = make(kind, "node")
        node.outlet(server.port)
        found = asyncio.run(answers(node))
    expected = {address: set(origins) for address, origins in EXPECTED.items()}
    if kind == "stock":
        expected[HOLE[0]].add(HOLE[1])
    assert found == expected
