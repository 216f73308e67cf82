"""What a file wants of a node: made once, compared afterwards, and no tunnel dropped without need."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from edge.config.file import read
from edge.errors import ConfigError
from edge.node.home import Home
from edge.node.node import Node
from edge.node.store import Store
from tests.node.world import address, eventually, make_node, port_of, run, running, talk, target


async def apply(node: Node, text: str) -> dict[tuple[str, str], str]:
    """What changed, by kind and name; with the error where something failed."""
    config = read(text)
    wanted = {
        "resources": [{"kind": one.kind, "body": one.body} for one in config.resources],
        "policies": [one.body for one in config.policies],
    }
    changes = await node.configuration.apply(wanted)
    return {
        (one["kind"], one["name"]): one["what"] + (f": {one['error']}" if "error" in one else "")
        for one in changes
    }


async def sources(node: Node) -> dict[str, str]:
    records = await node.store.call(Store.resources, node.name)
    return {f"{record.kind}/{record.name}": record.source for record in records}


async def policies(node: Node) -> dict[tuple[str, str], tuple[str, str]]:
    found: dict[Any, Any] = await node.store.call(Store.policy_sources, node.name)
    return found


def test_a_live_tunnel_survives_everything_that_does_not_change_it(tmp_path: Path) -> None:
    async def test(home: Home) -> None:
        make_node(home, "hub")
        gateway_id, client_id = make_node(home, "gateway", None), make_node(home, "client", None)
        async with target() as port, running(home, "hub", "gateway", "client") as nodes:
            hub, gateway, client = nodes
            route = f"{address(hub)}/secure/api"
            wants = f"relay: {{gateway: {{at: {route}}}}}\ntcp-outlets:\n"
            wants += f"  target: {{to: {port}, allow: {client_id}}}\n"
            asks = f"tcp-inlets:\n  db: {{authorized: {gateway_id}, from: 0, "
            asks += f"to: {route}/service/forward_to_gateway/secure/api/service/target}}\n"
            assert await apply(gateway, wants) == {
                ("relay", "gateway"): "added", ("tcp-outlet", "target"): "added",
            }  # fmt: skip
            assert await apply(client, asks) == {("tcp-inlet", "db"): "added"}
            where = port_of(client.inlets.show("db"))
            reader, writer = await asyncio.open_connection("127.0.0.1", where)

            async def alive() -> None:
                writer.write(b"still here")
                async with asyncio.timeout(10):
                    assert await reader.readexactly(10) == b"still here"

            await alive()
            assert await apply(gateway, wants) == {}
            assert await apply(client, asks) == {}
            more = wants + f"  other: {{to: {port}, allow: a}}\n"
            assert await apply(gateway, more) == {("tcp-outlet", "other"): "added"}
            changed = more.replace("allow: a}", "allow: b}")
            assert await apply(gateway, changed) == {("policy", "other"): "changed"}
            moved = changed.replace(f"other: {{to: {port}", "other: {to: 1")
            assert await apply(gateway, moved) == {("tcp-outlet", "other"): "changed"}
            assert await apply(gateway, wants) == {("tcp-outlet", "other"): "removed"}
            assert await policies(gateway) == {("target", ""): (
                f'(= subject.identifier "{client_id}")', "file"
            )}  # fmt: skip
            await alive()
            # Now one that concerns it: whoever is no longer allowed is cut, and nothing else.
            assert await apply(gateway, wants.replace(client_id, gateway_id)) == {
                ("policy", "target"): "changed"
            }
            async with asyncio.timeout(10):
                assert await reader.read(1) == b""
            writer.close()
            await apply(gateway, wants)
            assert await talk(where) == b"hello"
            # All of it survives a restart, and is still the file's.
            assert await sources(client) == {"tcp-inlet/db": "file"}
        async with target() as port, running(home, "hub", "gateway", "client") as nodes:
            await eventually(lambda: nodes[2].inlets.things[0].session.up, 10)
            assert (
                await apply(nodes[2], asks.replace(route, f"{address(nodes[0])}/secure/api")) == {}
            )

    run(test, tmp_path)


def test_the_file_wins_a_name_and_leaves_the_others(tmp_path: Path) -> None:
    async def test(home: Home) -> None:
        make_node(home, "n")
        async with running(home, "n") as (node,):
            await node.outlets.create({"name": "mine", "to": "127.0.0.1:1"})
            await node.outlets.create({"name": "theirs", "to": "127.0.0.1:1"})
            await node.outlets.create({"name": "same", "to": "127.0.0.1:3"})
            text = "tcp-outlets: {theirs: {to: 2}, same: {to: 3}}\nservices: {hop: }"
            assert await apply(node, text) == {
                ("tcp-outlet", "theirs"): "changed", ("service", "hop"): "added",
            }  # fmt: skip
            assert await sources(node) == {
                "tcp-outlet/mine": "command", "tcp-outlet/theirs": "file",
                "tcp-outlet/same": "file", "service/hop": "file",
            }  # fmt: skip
            assert await apply(node, "name: n") == {
                ("tcp-outlet", "theirs"): "removed", ("tcp-outlet", "same"): "removed",
                ("service", "hop"): "removed",
            }  # fmt: skip
            assert list(node.outlets.entries) == ["mine"]

    run(test, tmp_path)


def test_what_fails_leaves_what_was_there(tmp_path: Path) -> None:
    async def test(home: Home) -> None:
        make_node(home, "n")
        async with target() as taken, running(home, "n") as (node,):
            assert await apply(
                node, "tcp-inlet: {a: {to: /secure/api, no-connection-wait: true}}"
            ) == {("tcp-inlet", "a"): "added"}
            before = node.inlets.show("a")["bind_addr"]
            text = "tcp-inlets:\n  a: {to: /secure/api, from: %d}\n  b: {to: /secure/api}"
            found = await apply(node, text % taken)
            assert found.pop(("tcp-inlet", "b")) == "added"
            assert found.pop(("tcp-inlet", "a")).startswith("failed: cannot listen at")
            assert found == {}
            assert node.inlets.show("a")["bind_addr"] == before
            assert (await sources(node))["tcp-inlet/a"] == "file"

    run(test, tmp_path)


def test_a_peer_that_is_not_the_named_one_makes_a_change_fail(tmp_path: Path) -> None:
    async def test(home: Home) -> None:
        hub_id, gateway_id = make_node(home, "hub"), make_node(home, "n", None)
        async with running(home, "hub", "n") as (hub, node):
            text = f"relay: {{r: {{at: {address(hub)}/secure/api, authorized: %s}}}}"
            found = await apply(node, text % gateway_id)
            assert list(found) == [("relay", "r")]
            assert found["relay", "r"].startswith("failed: relay/r: ")
            assert (node.relays.entries, await sources(node)) == ({}, {})
            assert await apply(node, text % hub_id) == {("relay", "r"): "added"}
            # What was there before is there again, and comes up again.
            found = await apply(node, text % gateway_id)
            assert found["relay", "r"].startswith("failed: relay/r: ")
            assert node.relays.entries["r"].spec["authorized"] == hub_id
            await eventually(lambda: node.relays.things[0].session.up)
            assert await sources(node) == {"relay/r": "file"}

    run(test, tmp_path)


def test_policies_of_a_file(tmp_path: Path) -> None:
    async def test(home: Home) -> None:
        make_node(home, "n", "0.0.0.0:0")
        async with running(home, "n") as (node,):
            text = "policies: [{resource-type: tcp-outlet, allow: a}, {resource: x, allow: b}]\n"
            assert await apply(node, text + "tcp-outlets: {x: {to: 1}, y: {to: 2}}") == {
                ("policy", "tcp-outlet"): "added", ("tcp-outlet", "x"): "added",
                ("tcp-outlet", "y"): "added",
            }  # fmt: skip
            # The resource is made anew, and its policy stays.
            assert await apply(node, text + "tcp-outlets: {x: {to: 3}, y: {to: 2}}") == {
                ("tcp-outlet", "x"): "changed"
            }
            assert node.policy_text("x") == '(= subject.b "true")'
            # Without the policy of the type, y would be open to everybody.
            found = await apply(node, "tcp-outlets: {x: {to: 3, allow: b}, y: {to: 2}}")
            assert found[("policy", "tcp-outlet")].startswith("failed: the outlet y has no policy")
            assert await apply(node, "name: n") == {
                ("tcp-outlet", "x"): "removed", ("tcp-outlet", "y"): "removed",
                ("policy", "tcp-outlet"): "removed",
            }  # fmt: skip
            assert await policies(node) == {}

    run(test, tmp_path)


def test_the_open_listener_can_be_restricted_and_is_open_again_afterwards(tmp_path: Path) -> None:
    who = "I" + "ab" * 32
    text = f"services: {{secure-channel-listener: {{authorized-identifiers: [{who}]}}}}"

    async def test(home: Home) -> None:
        make_node(home, "n")
        async with running(home, "n") as (node,):
            assert await apply(node, text) == {("secure-channel-listener", "api"): "changed"}
        async with running(home, "n") as (node,):
            assert node.channel_listeners.show("api")["authorized"] == [who]
            assert await apply(node, text) == {}
            assert await apply(node, "name: n") == {("secure-channel-listener", "api"): "removed"}
            assert node.channel_listeners.show("api")["authorized"] == []
            assert await sources(node) == {}

    run(test, tmp_path)


def test_two_kinds_may_share_a_name_and_their_policy(tmp_path: Path) -> None:
    async def test(home: Home) -> None:
        make_node(home, "n")
        async with running(home, "n") as (node,):
            await node.outlets.create({"name": "db", "to": "127.0.0.1:1", "allow": "a"})
            await node.relays.create({"name": "db", "at": "/secure/api", "wait": False})
            await node.inlets.create({"name": "db", "to": "/secure/api", "wait": False})
            await node.relays.delete("db")
            await node.inlets.delete("db")
            assert node.policy_text("db") == '(= subject.a "true")'
            assert list(await policies(node)) == [("db", "")]
            await node.outlets.delete("db")
            assert (node.policy_text("db"), await policies(node)) == (None, {})

    run(test, tmp_path)


@pytest.mark.parametrize(
    "body",
    [
        None,
        {"resources": {}},
        {"resources": [1]},
        {"resources": [{"kind": "tcp-listener", "body": {}}]},
        {"resources": [{"kind": "relay"}]},
        {"resources": [{"kind": "relay", "body": {"name": "a b"}}]},
        {"policies": [{"expression": "a"}]},
        {"policies": [{"type": "nothing", "expression": "a"}]},
        {"policies": [{"resource": "a"}]},
        {"more": []},
    ],
)
def test_bad_requests_change_nothing(body: object, tmp_path: Path) -> None:
    async def test(home: Home) -> None:
        make_node(home, "n")
        async with running(home, "n") as (node,):
            await apply(node, "tcp-outlet: {a: {to: 1}}")
            with pytest.raises(ConfigError):
                await node.configuration.apply(body)
            assert list(node.outlets.entries) == ["a"]

    run(test, tmp_path)
