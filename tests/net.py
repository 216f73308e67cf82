"""Nodes inside the test: real routers, links, channels and portals over loopback sockets.

`@play` runs an async test with a `Net` on one loop, `@play_both` on both loops. A test fails when
anything reaches the loop's exception handler, or is logged as an error by `edge`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import logging
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import uvloop

from edge.channel.handshake import Presentation
from edge.channel.trust import Trust, everyone
from edge.identity.history import ChangeHistory, Identifier
from edge.identity.known import Known
from edge.portal.inlet import Inlet
from edge.portal.outlet import Outlet, Target
from edge.relay.client import RelayClient
from edge.relay.relay import RelayService
from edge.routing import link as links
from edge.routing.answering import ChannelListener
from edge.routing.connection import Connection, Connector
from edge.routing.hop import Message
from edge.routing.link import Limits, Link, LinkListener
from edge.routing.opening import open_channel
from edge.routing.reach import OUTLETS, Wiring
from edge.routing.router import Router
from edge.routing.secure import SecureChannel
from edge.routing.services import Echo, HopService, Uppercase
from edge.wire.frame import Frames
from edge.wire.message import encode_transport, parse_transport
from edge.wire.multiaddr import Multiaddr
from edge.wire.route import Route
from tests.people import Person, person

PATIENCE = 8.0
"""Seconds after which a wait has failed."""
SILENCE = 0.25
"""Seconds without an answer that are taken for a refusal."""


def clock() -> int:
    return int(time.time())


class Mailbox:
    """Keeps copies of what is delivered."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    def deliver(self, message: Message) -> None:
        copy = Message(message.onward, message.back, bytes(message.payload), message.flow)
        self.messages.append(copy)

    @property
    def payloads(self) -> list[bytes]:
        return [bytes(message.payload) for message in self.messages]


class Node:
    """The parts of one node."""

    def __init__(self, net: Net, name: str, trust: Trust = everyone, kind: str = "ed25519") -> None:
        self.net, self.name = net, name
        self.person: Person = person(name, kind)
        self.presentation: Presentation = self.person.present(now=clock())
        self.router, self.wiring, self.known = Router(), Wiring(), Known()
        self.learned: list[ChangeHistory] = []
        self.shown: list[tuple[bytes, ...]] = []
        for address, hop in (
            (b"echo", Echo(self.router)),
            (b"uppercase", Uppercase(self.router)),
            (b"hop", HopService(self.router)),
        ):
            self.router.add(address, hop)
            self.wiring.open(address)
        self.control = Mailbox()
        self.router.add(b"control", self.control)
        self.wiring.open(b"control")
        self.api = ChannelListener(
            self.router,
            b"api",
            lambda: self.presentation,
            trust=trust,
            known=self.known,
            wiring=self.wiring,
            learned=self.learn,
            now=clock,
        )
        self.wiring.open(b"api")
        self.connector = Connector(
            self.router,
            self.wiring,
            present=lambda: self.presentation,
            known=self.known,
            learned=self.learn,
            now=clock,
        )
        self.listener: LinkListener | None = None
        self.relays: RelayService | None = None
        self.outlets: list[Outlet] = []
        self.closing: list[Callable[[], Awaitable[None]]] = []

    @property
    def identifier(self) -> Identifier:
        return self.person.identifier

    def learn(self, history: ChangeHistory, credentials: tuple[bytes, ...]) -> None:
        self.learned.append(history)
        self.shown.append(credentials)

    async def listen(self, port: int = 0, limits: Limits | None = None) -> Node:
        self.listener = await links.listen(
            self.router, "127.0.0.1", port, reach=self.wiring.plain, limits=limits
        )
        return self

    @property
    def port(self) -> int:
        assert self.listener is not None
        return int(self.listener.address[1])

    @property
    def at(self) -> str:
        return f"/ip4/127.0.0.1/tcp/{self.port}"

    def serve_relays(self, **more: Any) -> Node:
        self.relays = RelayService(self.router, self.wiring, **more)
        return self

    async def connect(self, to: str, **more: Any) -> Connection:
        connection = await self.connector.connect(Multiaddr.parse(to), **more)

        async def close() -> None:
            connection.close()

        self.closing.append(close)
        return connection

    async def link(self, other: Node) -> Link:
        """A bare link to `other`; what comes back on it reaches what an outgoing one may."""
        link = await links.connect(
            self.router, "127.0.0.1", other.port, reach=self.wiring.outgoing, timeout=PATIENCE
        )

        async def close() -> None:
            link.close()

        self.closing.append(close)
        return link

    async def channel(
        self, route: Route, *, trust: Trust = everyone, timeout: float = PATIENCE
    ) -> SecureChannel:
        return await open_channel(
            self.router,
            route,
            self.presentation,
            trust=trust,
            known=self.known,
            reach=self.wiring.outgoing,
            learned=self.learn,
            now=clock,
            timeout=timeout,
        )

    def outlet(
        self, port: int = 0, *, target: Target | None = None, plain: bool = False, **more: Any
    ) -> Outlet:
        more.setdefault("allows", lambda peer: True)
        address = more.pop("address", b"outlet")
        outlet = Outlet(self.router, address, target or Target("127.0.0.1", port), **more)
        self.wiring.open(address, *OUTLETS)
        if plain:
            self.wiring.plain.add(address)
        self.outlets.append(outlet)
        return outlet

    async def inlet(self, to: str, *, up: bool = True, port: int = 0, **more: Any) -> Inlet:
        wanted = Multiaddr.parse(to)
        inlet = Inlet(
            self.router,
            "inlet",
            opening=lambda: self.connector.connect(wanted),
            host="127.0.0.1",
            port=port,
            **more,
        )
        self.closing.append(inlet.close)
        await inlet.start()
        if up:
            assert await inlet.session.wait_up(PATIENCE), inlet.session.last_failure
        return inlet

    async def relay(self, name: str | None, to: str, *, up: bool = True) -> RelayClient:
        wanted = Multiaddr.parse(to)
        client = RelayClient(
            self.router,
            name or "any",
            opening=lambda: self.connector.connect(wanted),
            relay_address=name,
        )
        self.closing.append(client.close)
        client.start()
        if up:
            assert await client.session.wait_up(PATIENCE), client.session.last_failure
        return client

    async def ask(self, route: Route, payload: bytes, timeout: float = SILENCE) -> bytes | None:
        """The answer, or None when none comes."""
        from edge.errors import NetworkError  # noqa: PLC0415

        try:
            answer = await self.router.request(route, payload, timeout=timeout)
        except NetworkError:
            return None
        return bytes(answer.payload)

    async def stop(self) -> None:
        """As the process ends: everything closes."""
        for close in reversed(self.closing):
            await close()
        self.closing.clear()
        for outlet in self.outlets:
            outlet.close()
        self.outlets.clear()
        if self.relays is not None:
            self.relays.close()
            self.relays = None
        self.api.close()
        if self.listener is not None:
            self.listener.close()
            self.listener = None

    def traces(self) -> dict[str, int]:
        """What could be left behind: compare before and after."""
        flows = [hop for hop, _ in self.router._hops.values() if isinstance(hop, Link)]
        flows += [hop for hop, _ in self.router._hops.values() if isinstance(hop, SecureChannel)]
        return {
            "addresses": len(self.router.addresses()),
            "wiring": sum(len(members) for members in self.wiring.sets.values()),
            "reach": sum(len(flow.reach) for flow in flows),
            "known by": sum(len(flow._known_by) for flow in flows),
            "gates": sum(len(flow.gate._users) for flow in flows),
            "half open": len(self.api._waiting),
            "channels": len(self.api.channels),
        }


class Net:
    """All nodes and servers of a test."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.stack = contextlib.AsyncExitStack()
        self.trouble: list[str] = []

    def node(self, name: str, **more: Any) -> Node:
        node = Node(self, name, **more)
        self.nodes.append(node)
        return node

    async def hub(self, name: str = "hub", **more: Any) -> Node:
        return (await self.node(name, **more).listen()).serve_relays()

    async def server(self, serve: Serve) -> int:
        """A TCP server on a free port; its connections end with the test."""
        tasks: set[asyncio.Task[None]] = set()

        async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            tasks.add(task)
            try:
                await serve(reader, writer)
            except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                pass
            finally:
                tasks.discard(task)
                writer.close()

        server = await asyncio.start_server(run, "127.0.0.1", 0, limit=1 << 20)

        async def close() -> None:
            server.close()
            for task in tasks:
                task.cancel()

        self.stack.push_async_callback(close)
        return int(server.sockets[0].getsockname()[1])

    async def dial(self, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.wait_for(
            asyncio.open_connection("127.0.0.1", port, limit=1 << 20), PATIENCE
        )
        self.stack.callback(writer.close)
        return reader, writer

    async def raw(self, port: int, greeting: bytes = b"\x01") -> Raw:
        reader, writer = await self.dial(port)
        writer.write(greeting)
        return Raw(reader, writer)

    async def tunnel(self, serve: Serve, *, way: str = "relay") -> Tunnel:
        """Target, gateway, hub and client: `way` is relay, channel, or plain."""
        target = await self.server(serve)
        gateway, client = self.node("gateway"), self.node("client")
        outlet = gateway.outlet(target, plain=way == "plain")
        if way == "relay":
            hub = await self.hub()
            await gateway.relay("gw", hub.at + "/secure/api")
            to = hub.at + "/secure/api/service/forward_to_gw/secure/api/service/outlet"
        else:
            hub = await gateway.listen()
            to = hub.at + ("" if way == "plain" else "/secure/api") + "/service/outlet"
        inlet = await client.inlet(to)
        return Tunnel(hub, gateway, client, outlet, inlet, to)

    async def close(self) -> None:
        for node in reversed(self.nodes):
            await node.stop()
        await self.stack.aclose()
        await asyncio.sleep(0.02)


class Tunnel:
    """A working tunnel."""

    def __init__(
        self, hub: Node, gateway: Node, client: Node, outlet: Outlet, inlet: Inlet, to: str
    ) -> None:
        self.hub, self.gateway, self.client = hub, gateway, client
        self.outlet, self.inlet, self.to = outlet, inlet, to

    @property
    def port(self) -> int:
        return self.inlet.bound[1]


class Raw:
    """A peer that writes frames by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.frames = Frames()
        self.waiting: list[bytes] = []

    def send(self, onward: Route, back: Route, payload: bytes) -> None:
        self.writer.write(encode_transport(onward, back, payload))

    def frame(self, body: bytes) -> None:
        self.writer.write(struct.pack(">I", len(body)) + body)

    async def receive(self, timeout: float = PATIENCE) -> Message:
        async with asyncio.timeout(timeout):
            while not self.waiting:
                data = await self.reader.read(1 << 16)
                if not data:
                    raise ConnectionError("closed")
                self.waiting += self.frames.feed(data)
        onward, back, payload = parse_transport(memoryview(self.waiting.pop(0)))
        return Message(onward, back, bytes(payload), None)

    async def closed(self, timeout: float = PATIENCE) -> bool:
        """Whether the node closes the connection."""
        try:
            async with asyncio.timeout(timeout):
                while await self.reader.read(1 << 16):
                    pass
        except TimeoutError:
            return False
        except ConnectionError:
            return True
        return True

    async def alive(self) -> bool:
        """Whether the node still answers on this connection."""
        mark = struct.pack(">d", time.monotonic())
        self.send(Route.of("echo"), Route.of("me"), mark)
        try:
            while (await self.receive(2)).payload != mark:
                pass
        except (TimeoutError, ConnectionError):
            return False
        return True


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def echoing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A server that sends back what comes, and ends when the client has ended."""
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()


async def until(condition: Callable[[], object], timeout: float = PATIENCE) -> None:
    """Wait until `condition` holds."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"never: {_source(condition)}"
        await asyncio.sleep(0.005)


def _source(condition: Callable[[], object]) -> str:
    try:
        return inspect.getsource(condition).strip()
    except TypeError:
        return repr(condition)


def reset(writer: asyncio.StreamWriter) -> None:
    """Close with a reset."""
    sock = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):  # closed already
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def read_all(reader: asyncio.StreamReader, timeout: float = PATIENCE) -> bytes | None:
    """Everything up to the end; None where it ended with a reset."""
    try:
        return await asyncio.wait_for(reader.read(), timeout)
    except ConnectionError:
        return None


async def exchange(net: Net, port: int, data: bytes = b"hello") -> bytes:
    """Send `data` to an echoing target, and what comes back."""
    reader, writer = await net.dial(port)
    writer.write(data)
    answer = await asyncio.wait_for(reader.readexactly(len(data)), PATIENCE)
    writer.close()
    return answer


async def works(net: Net, port: int) -> bool:
    try:
        return await exchange(net, port) == b"hello"
    except (ConnectionError, asyncio.IncompleteReadError):
        return False


class _Errors(logging.Handler):
    def __init__(self, trouble: list[str]) -> None:
        super().__init__(logging.ERROR)
        self.trouble = trouble

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + logging.Formatter().formatException(record.exc_info)
        self.trouble.append(text)


@contextlib.asynccontextmanager
async def netting() -> AsyncIterator[Net]:
    net = Net()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(
        lambda _, context: net.trouble.append(f"{context.get('message')}: {context!r}")
    )
    handler = _Errors(net.trouble)
    for name in ("edge", "asyncio"):
        logging.getLogger(name).addHandler(handler)
    try:
        yield net
    finally:
        try:
            await asyncio.wait_for(net.close(), PATIENCE)
        finally:
            for name in ("edge", "asyncio"):
                logging.getLogger(name).removeHandler(handler)
    assert not net.trouble, "\n".join(net.trouble)


Test = Callable[..., Awaitable[None]]


def play(test: Test) -> Callable[..., None]:
    """Run `test(net, ...)` on the loop that the parameter `loop` names, the standard one without."""

    @functools.wraps(test)
    def run(**given: Any) -> None:
        loop = given.pop("loop", "asyncio")

        async def main() -> None:
            async with asyncio.timeout(50), netting() as net:
                await test(net, **given)

        factory = uvloop.new_event_loop if loop == "uvloop" else asyncio.new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(main())

    signature = inspect.signature(test)
    parameters = list(signature.parameters.values())[1:]
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return run


def play_both(test: Test) -> Callable[..., None]:
    """`play` on both loops."""
    run = play(test)
    signature = inspect.signature(run)
    loop = inspect.Parameter("loop", inspect.Parameter.KEYWORD_ONLY)
    parameters = [*signature.parameters.values(), loop]
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return pytest.mark.parametrize("loop", ["asyncio", "uvloop"])(run)
