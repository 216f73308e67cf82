"""A session comes back when a node of the other kind dies and is started again."""

import pytest

from tests.interop.conftest import Make
from tests.interop.nodes import until
from tests.interop.services import ping, serving
from tests.interop.test_matrix import tunnel


@pytest.mark.slow
@pytest.mark.parametrize(("ends", "relay", "limit"), [("ours", "stock", 10), ("stock", "ours", 90)])
def test_the_hub_dies(make: Make, ends: str, relay: str, limit: float) -> None:
    """Ours notices a dead connection; stock asks every 10 s and gives up after three times."""
    nodes = {}

    def keep(kind: str, name: str, *, listen: bool = True) -> object:
        nodes[name] = make(kind, name, listen=listen)
        return nodes[name]

    with serving() as server:
        port = tunnel(keep, ends, relay, ends, server.port)  # type: ignore[arg-type]
        nodes["hub"].kill()
        until("the loss of the tunnel", lambda: not ping(port, 1), 10)
        nodes["hub"].again()
        took = until("an answer through the tunnel", lambda: ping(port, 2), limit)
        print(f"{ends} ends over a {relay} hub: back after {took:.1f} s")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("inlet", "outlet", "limit"), [("ours", "stock", 10), ("stock", "ours", 90)]
)
def test_the_far_end_dies(make: Make, inlet: str, outlet: str, limit: float) -> None:
    with serving() as server:
        gateway = make(outlet, "gateway")
        client = make(inlet, "client", listen=inlet == "stock")
        gateway.outlet(server.port, client.identifier)
        port = client.inlet(f"{gateway.at}/secure/api/service/outlet", gateway.identifier)
        until("an answer through the tunnel", lambda: ping(port), 30)
        gateway.kill()
        until("the loss of the tunnel", lambda: not ping(port, 1), 10)
        gateway.again()
        if outlet == "stock":  # it forgets its outlets
            gateway.outlet(server.port, client.identifier)
        took = until("an answer through the tunnel", lambda: ping(port, 2), limit)
        print(f"{inlet} inlet, {outlet} outlet: back after {took:.1f} s")
