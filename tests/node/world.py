"""A home with identities, nodes in this process, and clients of them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from edge.node.clock import BUILD_DATE
from edge.node.home import Home
from edge.node.identities import create_identity
from edge.node.node import Node
from edge.node.store import Store

NOW = BUILD_DATE + 86_400


def make_node(home: Home, name: str, listener: str | None = "127.0.0.1:0") -> str:
    """Write down a node with an identity of its own; returns the identifier."""
    home.prepare()
    store = Store(home.database)
    try:
        identity = create_identity(store, home, name, now=NOW)
        store.add_node(name, identity=name, listener=listener)
        return identity.identifier
    finally:
        store.close()


@asynccontextmanager
async def running(home: Home, *names: str) -> AsyncIterator[list[Node]]:
    """Nodes of the home, started, and stopped at the end."""
    async with AsyncExitStack() as stack:
        nodes = []
        for name in names:
            node = Node(home, name)
            await node.start()
            stack.push_async_callback(node.close)
            nodes.append(node)
        yield nodes


def address(node: Node) -> str:
    """The start of a route to the node's listener."""
    assert node.own_listener is not None
    host, _, port = node.own_listener.rpartition(":")
    return f"/ip4/{host}/tcp/{port}"


async def eventually(what: Callable[[], Any], seconds: float = 5.0) -> Any:
    async with asyncio.timeout(seconds):
        while not (found := what()):
            await asyncio.sleep(0.01)
        return found


@asynccontextmanager
async def target() -> AsyncIterator[int]:
    """A TCP service that sends back what it gets; its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def talk(port: int, data: bytes = b"hello") -> bytes:
    """What comes back from a client's connection; empty where it was closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        async with asyncio.timeout(10):
            return await reader.readexactly(len(data))
    except (asyncio.IncompleteReadError, ConnectionError):
        return b""
    finally:
        writer.close()


def port_of(shown: dict[str, Any]) -> int:
    return int(shown["bind_addr"].rpartition(":")[2])


def run(test: Callable[[Home], Awaitable[None]], folder: Path) -> None:
    asyncio.run(asyncio.wait_for(test(Home(folder)), 50))
