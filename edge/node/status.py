"""Status: one picture of a node, for `ockam-edge status` and for the node's page.

The keys are those of docs/status.md, which a test compares. Nothing in it is secret. Moments are
texts in UTC, and null where there is none.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from edge import __version__
from edge.node.health import obstacles
from edge.node.rotation import rotation_due
from edge.token import utc

if TYPE_CHECKING:
    from edge.node.node import Node

Picture = dict[str, Any]


def status(node: Node) -> Picture:
    """What is known now. Asks nobody, and takes well below a millisecond."""
    reasons = obstacles(node)
    return {
        "name": node.name,
        "state": "running",
        "ready": not reasons,
        "obstacles": reasons,
        "version": __version__,
        "pid": os.getpid(),
        "started": None if node.started_at is None else utc(node.started_at),
        "now": utc(time.time()),
        "clock": _clock(node),
        "identity": _identity(node),
        "vault": node.presence.describe_vault(),
        "fleet": _fleet(node),
        "listeners": list(node.listeners.entries),
        "relays": [_relay(shown) for shown in node.relays.list()],
        "inlets": [_inlet(shown) for shown in node.inlets.list()],
        "outlets": [_outlet(shown) for shown in node.outlets.list()],
        "channels": sum(len(listener.channels) for listener in node.channel_listeners.things),
        "status_endpoint": node.status_endpoint,
        "errors": node.recent.list(),
    }


def _clock(node: Node) -> Picture:
    return {"set": not node.clock.unset(), "floor": utc(node.clock.floor)}


def _identity(node: Node) -> Picture:
    identity = node.identity
    return {
        "name": identity.name,
        "identifier": str(identity.history.identifier),
        "changes": len(identity.history.changes),
        "rotation_due": utc(rotation_due(identity.history)),
        "behind": node.presence.follower.failure,
    }


def _fleet(node: Node) -> Picture | None:
    found = node.fleet.status()
    if found is None:
        return None
    until = found.get("expires_at")
    return {
        "project": found.get("project"),
        "authority": found["authority"],
        "credential_until": None if until is None else utc(until),
        "attributes": found.get("attributes"),
        "last_failure": found.get("last_failure"),
    }


def _session(shown: Picture) -> Picture:
    since = shown.get("since")
    return {
        "since": None if since is None else utc(since),
        "round_trip_ms": shown.get("round_trip_ms"),
        "reconnected": shown.get("reconnected", 0),
        "last_failure": shown.get("last_failure"),
        "hint": shown.get("hint"),
    }


def _traffic(shown: Picture) -> Picture:
    counted = ("portals", "opened", "refused", "bytes_to_peer", "bytes_from_peer")
    return {key: shown.get(key, 0) for key in counted}


def _relay(shown: Picture) -> Picture:
    return {
        "name": shown["name"],
        "up": shown["connection_status"] == "Up",
        "at": shown["destination_address"],
        "address": shown["remote_address"],
        **_session(shown),
    }


def _inlet(shown: Picture) -> Picture:
    return {
        "name": shown["alias"],
        "up": shown["status"] == "Up",
        "from": str(shown["bind_addr"]),
        "to": shown["outlet_addr"],
        "peer": shown.get("peer"),
        **_traffic(shown),
        **_session(shown),
    }


def _outlet(shown: Picture) -> Picture:
    return {
        "name": shown["worker_addr"],
        "to": shown["to"],
        "allow": shown["allow"],
        "failed": shown.get("failed", 0),
        **_traffic(shown),
        "last_failure": shown["last_failure"],
    }
