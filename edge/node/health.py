"""Health: what keeps a node from its work now. Nothing is asked of anybody: all of it is known."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge.keyring import Unattested

if TYPE_CHECKING:
    from edge.node.node import Node


def obstacles(node: Node) -> list[str]:
    """Why others cannot reach what they should, each reason with its subject; empty where all is well.

    A token that is away is none while its last attestation holds: channels open all the same.
    """
    found = []
    try:
        node.present()
    except Unattested as error:
        found.append(str(error))
    found += [
        f"relay {relay.name} is down{_why(relay.session.last_failure)}"
        for relay in node.relays.things
        if not relay.session.up
    ]
    found += [
        f"{shelf.kind} {name} could not be made{_why(entry.failure)}"
        for shelf in node.shelves
        for name, entry in shelf.entries.items()
        if entry.failure is not None
    ]
    membership = node.fleet.membership
    if (
        membership is not None
        and membership.context.route is not None
        and membership.credential is None
    ):
        found.append(f"there is no credential of the fleet{_why(membership.last_failure)}")
    return found


def _why(failure: str | None) -> str:
    return f": {failure}" if failure else ""
