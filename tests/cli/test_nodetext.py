"""What `node show` says on a terminal: words for people, whatever the node has."""

from typing import Any

import pytest

from edge.cli.nodetext import block

RAW = {"tt": 0, "inner": list(b"postgres")}
INLET = {
    "alias": "db",
    "bind_addr": "127.0.0.1:15432",
    "status": "Down",
    "outlet_addr": "/service/x",
}
FLEET = {"authority": "Iab", "project": "plant", "last_failure": None}


def found(**more: Any) -> dict[str, Any]:
    said = {"name": "n", "status": "running", "pid": 7, "identity_name": "i", "identifier": "Iff"}
    return said | {"route": {"short": "/node/n"}} | more


@pytest.mark.parametrize(
    ("has", "line"),
    [
        ({"transports": [{"mode": "Listen", "socket_addr": "0.0.0.0:1"}]}, "listens on 0.0.0.0:1"),
        ({"transports": [{"mode": "Incoming", "socket_addr": "h:1"}]}, "from h:1"),
        ({"transports": [{"mode": "Outgoing", "socket_addr": "h:1"}]}, "to h:1"),
        ({"secure_channel_listeners": [{"address": RAW}]}, "/service/postgres"),
        (
            {"inlets": [INLET | {"portals": 0, "refused": 2, "last_failure": "no route"}]},
            "db: 127.0.0.1:15432 (Down) to /service/x, 2 refused, last failure: no route",
        ),
        (
            {"outlets": [{"worker_addr": RAW, "to": "db:5", "tls": True, "allow": "A", "opened": 3}]},
            "/service/postgres to db:5, by TLS, for A, 3 opened",
        ),
        (
            {"relays": [
                {"name": "r", "destination_address": "/hub", "connection_status": "Up", "peer": "Iab"}
            ]},
            "r at /hub (Up), with Iab",
        ),
        ({"services": [{"addr": "echo", "type": "echo"}]}, "/service/echo (echo)"),
    ],
)  # fmt: skip
def test_a_thing_is_one_line(has: dict[str, Any], line: str) -> None:
    assert block(found(**has)).splitlines()[-1] == f"      {line}"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            {"expires_at": 0, "attributes": {"role": "db"}},
            "plant, a member until 1970-01-01T00:00:00Z: role=db",
        ),
        (
            {"expires_at": None, "attributes": None, "last_failure": "no answer"},
            "plant, without a credential; no answer",
        ),
    ],
)
def test_a_member_says_of_what_and_until_when(more: dict[str, Any], said: str) -> None:
    assert f"Fleet:    {said}" in block(found(fleet=FLEET | more))


def test_a_node_of_no_fleet_and_an_authority_say_nothing_of_one() -> None:
    assert "Fleet" not in block(found(fleet=None))
    assert "Fleet" not in block(found(fleet={"authority": "Iab", "answered": {}}))
