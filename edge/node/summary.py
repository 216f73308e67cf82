"""What a node is doing, on one line for people: `systemctl status` shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge.node.node import Node


def status(node: Node) -> str:
    """What keeps it from working comes first."""
    relays = [(shown["name"], shown["connection_status"], shown) for shown in node.relays.list()]
    inlets = [(shown["alias"], shown["status"], shown) for shown in node.inlets.list()]
    problems = [node.presence.waiting_for] if node.presence.waiting_for else []
    problems += [_down("relay", *one) for one in relays if one[1] != "Up"]
    problems += [_down("inlet", *one) for one in inlets if one[1] != "Up"]
    outlets = node.outlets.list()
    portals = sum(shown.get("portals", 0) for shown in [*outlets, *(one[2] for one in inlets)])
    counted = [
        _counted(len(node.listeners.entries), "listener"),
        _counted(sum(one[1] == "Up" for one in relays), "relay", " up"),
        _counted(sum(one[1] == "Up" for one in inlets), "inlet", " up"),
        _counted(len(outlets), "outlet"),
        _counted(portals, "tunnel"),
    ]
    working = ", ".join(text for text in counted if text) or "nothing to do"
    return f"node {node.name}: " + "; ".join([*problems, working])


def _down(what: str, name: str, _: str, shown: dict[str, Any]) -> str:
    return f"{what} {name} is down" + (f" ({why})" if (why := shown.get("last_failure")) else "")


def _counted(number: int, noun: str, more: str = "") -> str:
    return f"{number} {noun}{'s' if number != 1 else ''}{more}" if number else ""
