"""A bare node inside the test: router, links and channels, to ask a live node what it lets through."""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable

from edge.channel.trust import everyone
from edge.errors import EdgeError
from edge.identity.known import Known
from edge.routing import link as links
from edge.routing.answering import ChannelListener
from edge.routing.hop import Message
from edge.routing.link import Link, LinkListener
from edge.routing.opening import open_channel
from edge.routing.reach import Wiring
from edge.routing.router import Router
from edge.routing.secure import SecureChannel
from edge.routing.services import Echo, Uppercase
from edge.wire import bare, cbor
from edge.wire.route import Route
from tests.people import Person

PATIENCE = 0.6


class Registrations:
    """A relay service that only remembers how the clients can be reached."""

    def __init__(self, router: Router) -> None:
        self.router = router
        self.seen: asyncio.Queue[Message] = asyncio.Queue()

    def deliver(self, message: Message) -> None:
        name = bare.decode_string(bytes(message.payload))
        self.seen.put_nowait(Message(message.onward, message.back, b"", message.flow))
        address = b"forward_to_" + name.encode()
        self.router.send(message.back, Route.of(address), bare.encode_string(f"forward_to_{name}"))


class Arrivals:
    """Sets an event for each message."""

    def __init__(self, address: bytes) -> None:
        self.address = address
        self.event = asyncio.Event()

    def deliver(self, _: Message) -> None:
        self.event.set()


class Probe:
    """One identity of the kind to be tested, and the services that stock expects of a node."""

    def __init__(self, person: Person) -> None:
        self.person = person
        self.router, self.wiring, self.known = Router(), Wiring(), Known()
        for address, hop in ((b"echo", Echo(self.router)), (b"uppercase", Uppercase(self.router))):
            self.router.add(address, hop)
            self.wiring.open(address)
        self.registrations = Registrations(self.router)
        self.router.add(b"static_forwarding_service", self.registrations)
        self.wiring.open(b"static_forwarding_service")
        self.presentation = person.present(now=int(time.time()))
        self.api = ChannelListener(
            self.router,
            b"api",
            lambda: self.presentation,
            trust=everyone,
            known=self.known,
            wiring=self.wiring,
            learned=lambda history, credentials: None,
            now=lambda: int(time.time()),
        )
        self.wiring.open(b"api")
        self.closing: list[Callable[[], object]] = [self.api.close]

    async def listen(self) -> int:
        listener: LinkListener = await links.listen(
            self.router, "127.0.0.1", 0, reach=self.wiring.plain
        )
        self.closing.append(listener.close)
        return int(listener.address[1])

    async def link(self, port: int) -> Link:
        link = await links.connect(
            self.router, "127.0.0.1", port, reach=self.wiring.outgoing, timeout=5
        )
        self.closing.append(link.close)
        return link

    async def channel(self, route: Route, timeout: float = 5) -> SecureChannel:
        return await open_channel(
            self.router,
            route,
            self.presentation,
            trust=everyone,
            known=self.known,
            reach=self.wiring.outgoing,
            learned=lambda history, credentials: None,
            now=lambda: int(time.time()),
            timeout=timeout,
        )

    async def ask(self, way: Route, address: str, payload: bytes) -> bytes | None:
        """The answer of `address` at the end of `way`; None when none came."""
        route = way.joined(Route.of(address))
        with contextlib.suppress(EdgeError):
            answer = await self.router.request(route, payload, timeout=PATIENCE)
            return bytes(answer.payload)
        return None

    # Which addresses answer.

    async def reaches(self, way: Route, address: str) -> bool:
        """Whether `address`, at the end of `way`, does what it is there for."""
        return await QUESTIONS.get(address, Probe._outlet)(self, way, address)

    async def _echo(self, way: Route, address: str) -> bool:
        payload = bare.encode_string(secrets.token_hex(4))
        return await self.ask(way, address, payload) == payload

    async def _uppercase(self, way: Route, address: str) -> bool:
        answer = await self.ask(way, address, bare.encode_string("word"))
        return answer == bare.encode_string("WORD")

    async def _api(self, way: Route, address: str) -> bool:
        with contextlib.suppress(EdgeError):
            channel = await self.channel(way.joined(Route.of(address)), PATIENCE)
            channel.close()
            return True
        return False

    async def _register(self, way: Route, address: str) -> bool:
        name = "register" if address == "forwarding_service" else secrets.token_hex(4)
        return await self.ask(way, address, bare.encode_string(name)) is not None

    async def _relay(self, way: Route, address: str) -> bool:
        """`address` belongs to a relay that this probe has registered (see `own_relay`)."""
        self.arrivals.event.clear()
        # A relay leaves its client's own address out, so it is named (03 §3.4).
        route = way.joined(Route.of(address, self.arrivals.address))
        self.router.send(route, Route.of("nowhere"), b"x")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.arrivals.event.wait(), PATIENCE)
            return True
        return False

    async def _manager(self, way: Route, address: str) -> bool:
        request = cbor.encode({1: 7, 2: "/node", 3: 0, 4: False})
        return await self.ask(way, address, bare.encode_data(request)) is not None

    async def _outlet(self, way: Route, address: str) -> bool:
        answer = await self.ask(way, address, b"\x00")
        return answer is not None and answer[:1] == b"\x01"

    async def own_relay(self, link: Link, name: str) -> None:
        """Register a relay through `link`; what comes through it is noticed by `_relay`."""
        own = self.router.fresh()
        self.arrivals = Arrivals(own)
        self.router.add(own, self.arrivals)
        link.reach.add(own)
        service = Route.of(link.address, "static_forwarding_service")
        self.router.send(service, Route.of(own), bare.encode_string(name))
        await asyncio.wait_for(self.arrivals.event.wait(), 5)

    def close(self) -> None:
        for close in reversed(self.closing):
            close()


Question = Callable[[Probe, Route, str], Awaitable[bool]]
QUESTIONS: dict[str, Question] = {
    "echo": Probe._echo,
    "uppercase": Probe._uppercase,
    "api": Probe._api,
    "forwarding_service": Probe._register,
    "static_forwarding_service": Probe._register,
    "forward_to_mine": Probe._relay,
    "_internal.nodemanager": Probe._manager,
    "control": Probe._manager,
    "control_api": Probe._manager,
    "hop": Probe._echo,
}


@contextlib.asynccontextmanager
async def probing(person: Person) -> AsyncIterator[Probe]:
    probe = Probe(person)
    try:
        yield probe
    finally:
        probe.close()
        await asyncio.sleep(0.05)
