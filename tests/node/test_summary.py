"""The line of `systemctl status`: what keeps a node from working comes first."""

from types import SimpleNamespace
from typing import Any

from edge.node.summary import status


def node(**given: Any) -> Any:
    def shelf(kind: str) -> Any:
        items = given.get(kind, [])
        return SimpleNamespace(list=lambda: items, entries=dict(enumerate(items)))

    shelves = {kind: shelf(kind) for kind in ("listeners", "relays", "inlets", "outlets")}
    presence = SimpleNamespace(waiting_for=given.get("waiting_for"))
    return SimpleNamespace(name="g", presence=presence, **shelves)


def test_a_node_with_nothing() -> None:
    assert status(node()) == "node g: nothing to do"


def test_all_is_well() -> None:
    shown = status(
        node(
            listeners=["a"],
            relays=[{"name": "r", "connection_status": "Up"}],
            inlets=[{"alias": "i", "status": "Up", "portals": 1}],
            outlets=[{"portals": 2}, {}],
        )
    )
    assert shown == "node g: 1 listener, 1 relay up, 1 inlet up, 2 outlets, 3 tunnels"


def test_what_is_wrong_comes_first() -> None:
    shown = status(
        node(
            waiting_for="token edge is gone: pulled",
            relays=[{"name": "r", "connection_status": "Down", "last_failure": "refused"}],
            inlets=[{"alias": "i", "status": "Down", "last_failure": None}],
            outlets=[{"portals": 0}],
        )
    )
    assert shown == (
        "node g: token edge is gone: pulled; relay r is down (refused); inlet i is down; 1 outlet"
    )
