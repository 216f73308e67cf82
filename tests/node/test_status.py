"""The picture of a node: the keys of docs/status.md, and what is in them."""

import asyncio
import re
from pathlib import Path
from typing import Any

from edge.node.home import Home
from edge.node.node import Node
from edge.node.status import status
from tests.node.world import address, make_node, port_of, run, running, talk, target

DOCUMENT = (Path(__file__).parents[2] / "docs/status.md").read_text()


def documented(title: str) -> set[str]:
    section = DOCUMENT.split(f"## {title}\n")[1].split("\n## ")[0]
    return set(re.findall(r"^\| `(\w+)` \|", section, re.M))


async def tunnel(node: Node, port: int) -> int:
    """An outlet, an inlet to it, and a relay; the inlet's port."""
    await node.outlets.create({"name": "o", "to": f"127.0.0.1:{port}"})
    made = await node.inlets.create({"name": "i", "to": f"{address(node)}/secure/api/service/o"})
    await node.relays.create({"name": "r", "at": f"{address(node)}/secure/api"})
    return port_of(made)


def test_keys_are_documented_and_bytes_counted(tmp_path: Path) -> None:
    async def work(home: Home) -> None:
        make_node(home, "n")
        async with running(home, "n") as (node,), target() as port:
            inlet = await tunnel(node, port)
            assert await talk(inlet, b"hello") == b"hello"
            async with asyncio.timeout(5):
                while any(one["portals"] for one in status(node)["inlets"]):
                    await asyncio.sleep(0.02)
                while status(node)["relays"][0]["round_trip_ms"] is None:
                    await asyncio.sleep(0.02)
            found: dict[str, Any] = status(node)
        assert set(found) == documented("A node")
        words = set(re.findall(r"`(\w+)`", DOCUMENT))
        for kind in ("relays", "inlets", "outlets"):
            assert set(found[kind][0]) <= words
        for part in ("identity", "vault", "clock"):
            assert set(found[part]) <= words
        assert (found["ready"], found["obstacles"], found["errors"]) == (True, [], [])
        for kind in ("inlets", "outlets"):
            (one,) = found[kind]
            assert (one["opened"], one["bytes_to_peer"], one["bytes_from_peer"]) == (1, 5, 5)
        assert 0 < found["relays"][0]["round_trip_ms"] < 5000

    run(work, tmp_path)


def test_a_path_that_is_down_is_an_obstacle_and_says_what_to_do(tmp_path: Path) -> None:
    async def work(home: Home) -> None:
        make_node(home, "n")
        async with running(home, "n") as (node,):
            to = "/ip4/127.0.0.1/tcp/9/secure/api"
            await node.relays.create({"name": "r", "at": to, "wait": False})
            async with asyncio.timeout(5):
                while not status(node)["relays"][0]["last_failure"]:
                    await asyncio.sleep(0.02)
            found = status(node)
        assert not found["ready"]
        assert found["obstacles"][0].startswith("relay r is down: cannot connect")
        assert found["relays"][0]["hint"]

    run(work, tmp_path)
