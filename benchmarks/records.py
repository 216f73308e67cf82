"""Microseconds per record of the data path, over the time of the cipher alone.

Outward: stream bytes are sealed end to end, sealed again for the hub, and framed for the link. Inward:
a frame is parsed, opened, routed, opened again and routed to the portal. No socket is involved, so
what is measured is our own code and the cipher. The budget is that of docs/architecture.md: outward
under 3 times the cipher, inward under 3.5 times.

Run it by itself: `.venv/bin/python -m benchmarks.records`.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import Callable

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from edge.channel.handshake import Established
from edge.identity.history import Identifier
from edge.identity.known import Known, Verdict
from edge.routing.hop import Buffer, Flow, Gate, Message
from edge.routing.link import Link
from edge.routing.router import Router
from edge.routing.secure import SecureChannel
from edge.wire import portal as wire
from edge.wire.message import TransportReader, transport_parts
from edge.wire.route import Address, Route

ROUNDS, RECORDS = 7, 400
OUTWARD, INWARD = 3.0, 3.5


class FakeLink(Flow):
    """The way out ends here: frames are counted, or kept for the way in."""

    def __init__(self, router: Router) -> None:
        super().__init__()
        self.address = router.fresh()
        self.gate = Gate()
        self.closed = False
        self.kept: list[bytes] | None = None
        router.add(self.address, self)

    @property
    def link(self) -> Link | None:
        return None

    def deliver(self, message: Message) -> None:
        self.send(message.onward.rest.encoded + message.back.encoded, message.payload)

    def press(self, source: Link | None) -> None:
        """Never full."""

    def send(self, head: bytes, *parts: Buffer) -> None:
        start = transport_parts(head, sum(map(len, parts)))
        if self.kept is not None:
            self.kept.append(b"".join((start[4:], *parts, b"\x62{}")))


class Sink:
    """Where the portal would be."""

    def __init__(self) -> None:
        self.bytes = 0

    def deliver(self, message: Message) -> None:
        _, data, _ = wire.decode(memoryview(message.payload))
        self.bytes += len(data)


class _Peer:
    """Stands where a history would; the benchmark proves nobody."""

    identifier = Identifier(bytes(32))


def channel(
    router: Router, route: Route, keys: tuple[bytes, bytes], decryptor: bytes
) -> SecureChannel:
    established = Established(
        keys[0],
        keys[1],
        _Peer(),
        Verdict.NEW,
        (),
        0,  # type: ignore[arg-type]
    )
    made = SecureChannel(
        router,
        established,
        decryptor=decryptor,
        encryptor=router.fresh(),
        route=route,
        follows=False,
        parent=frozenset(),
        known=Known(),
        learned=lambda history: None,
        source=None,
    )
    router.add(made.address, made)
    return made


class Chain:
    """Two ends: portal, channel to the far end, channel to the hub, link."""

    def __init__(self) -> None:
        self.keys = [(os.urandom(32), os.urandom(32)) for _ in range(2)]
        self.out, self.inn = Router(), Router()
        self.names = [self.out.fresh() for _ in range(2)]
        self.link, self.sink = FakeLink(self.out), Sink()
        route = Route.of(self.link.address, self.names[0])
        outer = channel(self.out, route, self.keys[0], self.out.fresh())
        route = Route.of(outer.address, self.names[1])
        self.inner = channel(self.out, route, self.keys[1], self.out.fresh())
        self.far = FakeLink(self.inn)
        ends = []
        for name, (seal, open_key) in zip(self.names, self.keys, strict=True):
            here = Route.of((ends[-1] if ends else self.far).address, b"peer")
            ends.append(channel(self.inn, here, (open_key, seal), name))
            self.inn.add(name, _Records(ends[-1]))
        self.inn.add(b"S" * 32, self.sink)
        self.far.reach.add(self.names[0])
        ends[0].reach.add(self.names[1])
        ends[1].reach.add(b"S" * 32)
        self.head = Route.of(b"S" * 32).encoded + Route.of(b"R" * 32).encoded
        self.reader = TransportReader()

    def send(self, view: memoryview) -> None:
        self.inner.send(self.head, wire.payload_start(len(view)), view)

    def receive(self, frame: bytes) -> None:
        onward, back, payload = self.reader.read(memoryview(frame))
        back = back.pushed(Address(0, self.far.address))
        self.inn.deliver(Message(onward, back, payload, self.far))


class _Records:
    def __init__(self, channel: SecureChannel) -> None:
        self.deliver = channel.record


def timed(what: Callable[[], None]) -> float:
    """Microseconds of user CPU per record, the median of the rounds."""
    rounds = []
    for _ in range(ROUNDS):
        begin = time.process_time()
        what()
        rounds.append((time.process_time() - begin) / RECORDS * 1e6)
    return statistics.median(rounds)


def cipher(size: int) -> float:
    aead = AESGCM(os.urandom(32))
    plain, out = bytearray(size), memoryview(bytearray(size + 16))

    def run() -> None:
        for _ in range(RECORDS):
            aead.encrypt_into(bytes(12), plain, None, out)
            aead.encrypt_into(bytes(12), plain, None, out)

    return timed(run)


def paths(size: int) -> tuple[float, float]:
    chain, view = Chain(), memoryview(os.urandom(size))

    def outward() -> None:
        for _ in range(RECORDS):
            chain.send(view)

    out = timed(outward)
    chain = Chain()
    chain.link.kept = frames = []
    for _ in range(RECORDS * ROUNDS):
        chain.send(view)
    source = iter(frames)

    def inward() -> None:
        for _ in range(RECORDS):
            chain.receive(next(source))

    inn = timed(inward)
    assert chain.sink.bytes == size * RECORDS * ROUNDS, "records were lost"
    return out, inn


async def main() -> None:
    print(f"{'record':>8} {'cipher x2':>10} {'outward':>9} {'':>6} {'inward':>9}")
    for size in (48 * 1024, 128 * 1024):
        alone = cipher(size)
        out, inn = paths(size)
        print(
            f"{size // 1024:>4} KiB {alone:>10.1f} {out:>9.1f} {out / alone:>5.2f}x"
            f" {inn:>9.1f} {inn / alone:>5.2f}x"
        )
        if size == 48 * 1024 and (out / alone > OUTWARD or inn / alone > INWARD):
            raise SystemExit("over the budget")


if __name__ == "__main__":
    asyncio.run(main())
