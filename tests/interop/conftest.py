"""Nodes for the interop tests, and the loud skip where there is no stock `ockam`."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.interop.nodes import Node, Ours, Stock, stock_program

WHY = (
    "no stock ockam on this machine, so NOTHING here was tested against it: "
    "install release 0.150.0 with get-ockam.sh, or name it in OCKAM_STOCK"
)

Make = Callable[..., Node]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    absent = stock_program() is None
    for item in items:
        if here not in item.path.parents:
            continue
        item.add_marker(pytest.mark.interop)
        item.add_marker(pytest.mark.timeout(180))
        if absent:
            item.add_marker(pytest.mark.skip(reason=WHY))


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """`make("stock" or "ours", name, listen=True)`: a started node with an identity of its name."""
    with contextlib.ExitStack() as stack:

        def start(kind: str, name: str, *, listen: bool = True) -> Node:
            node = {"stock": Stock, "ours": Ours}[kind](name, tmp_path / f"{kind}-{name}")
            stack.callback(node.end)
            node.start(listen=listen)
            return node

        yield start
