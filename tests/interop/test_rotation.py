"""Ours rotates under a live tunnel with stock peers, which had known its identity as it was before."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.interop.conftest import Make
from tests.interop.nodes import Node, until
from tests.interop.services import bulk, ping, serving
from tests.interop.test_matrix import tunnel


@pytest.mark.slow
@pytest.mark.parametrize("end", ["gateway", "client"])
def test_stock_accepts_the_longer_history(make: Make, end: str) -> None:
    """The other end and the hub are stock. The tunnel that is open goes on, and loses nothing; the next
    one, after our node was started again, brings the new history and is accepted."""
    nodes: dict[str, Node] = {}

    def keep(kind: str, name: str, *, listen: bool = True) -> Node:
        nodes[name] = make(kind, name, listen=listen)
        return nodes[name]

    kinds = ("stock", "stock", "ours") if end == "gateway" else ("ours", "stock", "stock")
    with serving() as server:
        port = tunnel(keep, *kinds, server.port)
        with ThreadPoolExecutor(max_workers=1) as beside:
            carried = beside.submit(bulk, port, 50)
            nodes[end].run("identity", "rotate", end, "--yes")
            carried.result(timeout=120)
        until("an answer on a new connection", lambda: ping(port), 10)
        nodes[end].kill()
        nodes[end].again()
        until("an answer after the rotation", lambda: ping(port, 2), 90)
