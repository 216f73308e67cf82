"""{Our, their} inlet through {our, their} relay to {our, their} outlet: every cell, real bytes."""

from itertools import product

import pytest

from tests.interop.conftest import Make
from tests.interop.nodes import until
from tests.interop.services import bulk, download, late_answer, ping, serving, upload

KINDS = ("ours", "stock")
PAIRS = list(product(KINDS, repeat=2))
CELLS = list(product(KINDS, repeat=3))


def tunnel(make: Make, inlet: str, relay: str, outlet: str, port: int) -> int:
    """The port of an inlet that leads through the relay, over channels, to `port`."""
    hub = make(relay, "hub")
    gateway = make(outlet, "gateway", listen=outlet == "stock")
    client = make(inlet, "client", listen=inlet == "stock")
    gateway.outlet(port, client.identifier)
    gateway.relay("gateway", hub)
    route = f"{hub.at}/secure/api/service/forward_to_gateway/secure/api/service/outlet"
    opened = client.inlet(route, gateway.identifier)
    until("an answer through the tunnel", lambda: ping(opened), 30)
    return opened


@pytest.mark.parametrize(("inlet", "relay", "outlet"), CELLS, ids=lambda kind: kind)
def test_cell(make: Make, inlet: str, relay: str, outlet: str) -> None:
    with serving() as server:
        port = tunnel(make, inlet, relay, outlet, server.port)
        bulk(port, 50)
        upload(port, server)
        download(port)
        if inlet == outlet == "ours":
            assert late_answer(port) == b"got 1000"


@pytest.mark.parametrize(("inlet", "outlet"), PAIRS, ids=lambda kind: kind)
def test_without_relay(make: Make, inlet: str, outlet: str) -> None:
    with serving() as server:
        gateway = make(outlet, "gateway")
        client = make(inlet, "client", listen=inlet == "stock")
        gateway.outlet(server.port, client.identifier)
        port = client.inlet(f"{gateway.at}/secure/api/service/outlet", gateway.identifier)
        until("an answer through the tunnel", lambda: ping(port), 30)
        bulk(port, 5)
        upload(port, server)
        download(port)


@pytest.mark.parametrize(("inlet", "outlet"), PAIRS, ids=lambda kind: kind)
def test_another_identity_is_refused(make: Make, inlet: str, outlet: str) -> None:
    with serving() as server:
        gateway = make(outlet, "gateway")
        client = make(inlet, "client", listen=inlet == "stock")
        stranger = make(inlet, "stranger", listen=inlet == "stock")
        gateway.outlet(server.port, client.identifier)
        route = f"{gateway.at}/secure/api/service/outlet"
        port = client.inlet(route, gateway.identifier)
        theirs = stranger.inlet(route, gateway.identifier)
        until("an answer through the tunnel", lambda: ping(port), 30)
        assert not ping(theirs, 3)
        assert ping(port)


@pytest.mark.parametrize("relay", KINDS)
@pytest.mark.parametrize("client", KINDS)
def test_a_relay_client_over_plain_tcp(make: Make, client: str, relay: str) -> None:
    hub = make(relay, "hub")
    gateway = make(client, "gateway", listen=client == "stock")
    gateway.relay("gateway", hub, secure=False)
    asker = make("stock" if client == "ours" else "ours", "asker")
    route = f"{hub.at}/service/forward_to_gateway/secure/api/service/uppercase"
    assert asker.send("hello", route) == "HELLO"


@pytest.mark.parametrize(("sender", "receiver"), PAIRS, ids=lambda kind: kind)
@pytest.mark.parametrize("way", ["", "/secure/api"], ids=["plain", "channel"])
def test_message_send(make: Make, sender: str, receiver: str, way: str) -> None:
    here = make(sender, "here", listen=sender == "stock")
    there = make(receiver, "there")
    assert here.send("hello, wörld", f"{there.at}{way}/service/uppercase") == "HELLO, WÖRLD"
    assert here.send("hello", f"{there.at}{way}/service/echo") == "hello"
