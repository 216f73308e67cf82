"""A real node with its identity in the token: what the network sees while the token misbehaves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge.routing.connection import Connection
from edge.wire.multiaddr import Multiaddr
from tests.net import Net
from tests.tokens.cells import Cell, scenario
from tests.tokens.environments import Environment, Outage
from tests.tokens.nodes import Nodes, Pinger, echo
from tests.tokens.processes import until
from tests.tokens.shim import Shim

pytestmark = pytest.mark.timeout(240)

LIFETIME = 6
"""Seconds that an attestation lives here: the node signs every 4 s."""
OUTAGE = 8.0
PATIENCE = 60.0
"""Seconds within which the first signature must be there after the token is back; the time itself is a
figure of the results, not a condition."""
MOST_LINES = 20
"""Lines of log in an outage of OUTAGE seconds."""


class Stand:
    """A gateway with its key behind a shim."""

    def __init__(
        self, token: Environment, shim: Shim, folder: Path, cell: Cell, label: str
    ) -> None:
        self.token, self.shim, self.kind = token, shim, str(cell.kind)
        self.vault = token.uri(module=shim.path, object=label)
        self.nodes = Nodes(folder / "home", token.variables, token.prefix)
        self.ids: dict[str, str] = {}

    def start(self, seconds: int = LIFETIME) -> None:
        self.token.clean()
        self.ids = self.nodes.identities(self.vault, self.kind)
        self.token.clean()
        self.nodes.start_gateway(seconds)

    def signed_since(self, moment: float) -> float:
        """When (seconds after `moment`) the first good signature came out of the module."""

        def found() -> float | None:
            good = [call for call in self.shim.calls("C_Sign") if call.result == "0x0"]
            times = [call.began + call.seconds - moment for call in good if call.began > moment]
            return min(times, default=None)

        return until("a signature", found, PATIENCE, 0.1)


@pytest.fixture
def stand(
    token: Environment, shim: Shim, tmp_path: Path, cell: Cell, label: str
) -> Iterator[Stand]:
    made = Stand(token, shim, tmp_path, cell, label)
    try:
        yield made
    finally:
        made.nodes.tear_down()
        token.clean()


async def _channels(port: int, identifier: str, count: int, *, at_once: int) -> float:
    """Open so many secure channels to the node and close them again, `at_once` open at a time; the
    slowest handshake's seconds."""
    net = Net()
    client = net.node("client")
    to = Multiaddr.parse(f"/ip4/127.0.0.1/tcp/{port}/secure/api")
    slowest = 0.0

    async def one() -> Connection:
        nonlocal slowest
        began = time.monotonic()
        made = await client.connector.connect(to, timeout=30)
        slowest = max(slowest, time.monotonic() - began)
        assert str(made.peer) == identifier
        return made

    try:
        for _ in range(count // at_once):
            for made in await asyncio.gather(*[one() for _ in range(at_once)]):
                made.close()
    finally:
        await client.stop()
    return slowest


@scenario("1,000 channels of a node: no signature, no login")
def test_no_signature_per_channel(stand: Stand, figure: Callable[..., None]) -> None:
    stand.start(seconds=86_400)
    watched = ("C_Sign", "C_SignInit", "C_Login", "C_Initialize")
    before = {name: stand.shim.count(name) for name in watched}
    opening = _channels(stand.nodes.port, stand.ids["gateway"], 1000, at_once=20)
    asyncio.run(asyncio.wait_for(opening, 200))
    assert {name: stand.shim.count(name) for name in watched} == before
    assert before["C_Sign"] > 0
    figure("logins_from_start_to_end", before["C_Login"])


@scenario("a slow token, 2 s per signature: 50 channels open meanwhile")
def test_slow_token(stand: Stand, figure: Callable[..., None]) -> None:
    stand.start(seconds=15)  # renewed after 10, and valid while that takes 2
    port = stand.nodes.port
    began = stand.shim.count("C_SignInit")
    stand.shim.on("C_SignInit", "delay", 2000, always=True)
    until("a renewal", lambda: stand.shim.count("C_SignInit") > began, 30)
    opening = _channels(port, stand.ids["gateway"], 50, at_once=50)
    slowest = asyncio.run(asyncio.wait_for(opening, 60))
    assert stand.shim.count("C_SignInit") <= began + 10
    figure("slowest_channel_s", round(slowest, 2))


def _ride_out(
    stand: Stand, away: Callable[[], None], back: Callable[[], None], figure: Callable[..., None]
) -> None:
    """A tunnel stays open through a fault; the first signature after it comes by itself."""
    with echo() as target:
        pinger = Pinger(stand.nodes.tunnel(stand.ids, target))
        try:
            lines, cpu, began = _lines(stand), stand.nodes.cpu_seconds(), time.monotonic()
            away()
            try:
                time.sleep(OUTAGE)
                took = time.monotonic() - began
                spent = [
                    now - then for now, then in zip(stand.nodes.cpu_seconds(), cpu, strict=True)
                ]
                figure("cpu_percent_node", round(100 * spent[0] / took, 1))
                figure("cpu_percent_module_processes", round(100 * spent[1] / took, 1))
                figure("log_lines", _lines(stand) - lines)
                assert _lines(stand) - lines <= MOST_LINES, stand.nodes.log.read_text()[-3000:]
                assert not pinger.broken
            finally:
                back()
            returned = time.monotonic()
            figure("recovery_s", round(stand.signed_since(returned), 2))
            answers = pinger.answers
            until("the tunnel", lambda: pinger.answers > answers + 5 or pinger.broken, 20)
        finally:
            pinger.close()
        assert not pinger.broken, pinger.broken
        assert stand.nodes.show()["status"] == "running"
        figure("longest_pause_s", round(pinger.longest, 2))


def _lines(stand: Stand) -> int:
    return len(stand.nodes.log.read_text().splitlines())


@scenario("a node with an open tunnel, the token gone and back")
def test_outage(
    stand: Stand, outage: Outage, outage_name: str, figure: Callable[..., None]
) -> None:
    stand.start()
    _ride_out(stand, outage.away, outage.back, figure)


FAULTS: dict[str, tuple[str, str, int]] = {
    "every signature DeviceRemoved": ("C_SignInit", "rv", 0x32),
    "every signature GeneralError": ("C_SignInit", "rv", 0x05),
    "no session free": ("C_OpenSession", "rv", 0xB1),
    "module does not start": ("C_Initialize", "rv", 0x30),
    "crash in every C_Sign": ("C_Sign", "crash", 0),
    "crash in every C_Initialize": ("C_Initialize", "crash", 0),
}
ONCE: dict[str, tuple[str, str, int]] = {
    "all calls fail until started anew": ("C_SignInit", "stuck", 0x05),
    "one crash in C_Sign": ("C_Sign", "crash", 0),
    "one exit in C_Sign": ("C_Sign", "exit", 3),
    "one hang in C_Sign": ("C_Sign", "hang", 0),
}


@scenario("a node with an open tunnel", variants=(*FAULTS, *ONCE), only=("softhsm", "abrmd"))
def test_fault(stand: Stand, variant: str, figure: Callable[..., None]) -> None:
    stand.start()
    function, action, argument = (FAULTS | ONCE)[variant]

    def away() -> None:
        stand.shim.on(function, action, argument, always=variant in FAULTS)
        if function in ("C_OpenSession", "C_Initialize"):  # they come only after another error
            stand.shim.on("C_SignInit", "rv", 0x32)

    def back() -> None:
        stand.shim.calm()
        if action == "crash":
            stand.token.clean()

    _ride_out(stand, away, back, figure)


@scenario("a real login of a node: one from start to end, over 5 renewals")
def test_one_login(stand: Stand) -> None:
    stand.start()
    logins, signs = stand.shim.count("C_Login"), stand.shim.count("C_SignInit")
    until("5 signatures", lambda: stand.shim.count("C_SignInit") >= signs + 5, 60)
    assert stand.shim.count("C_Login") == logins


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


@scenario("the PIN appears nowhere", quick=("softhsm-ed25519",))
def test_canary(stand: Stand, token: Environment, tmp_path: Path) -> None:
    """In no log, error, command line, environment, dump of core, help or `node show`."""
    stand.start()
    pin = token.pin.encode()
    said = [stand.nodes.do(*words).encode() for words in (
        ("--help",), ("identity", "--help"), ("vault", "--help"), ("vault", "list"),
        ("identity", "show", "gateway"), ("node", "show", "gateway"),
    )]  # fmt: skip
    for pid in stand.nodes.family():
        said.append(Path(f"/proc/{pid}/cmdline").read_bytes())
        said.append(Path(f"/proc/{pid}/environ").read_bytes())
    assert stand.token.pin_file.read_bytes().strip() == pin  # the search finds it where it is
    assert not [text for text in said if pin in text]
    stand.shim.on("C_Sign", "crash")
    crashes = stand.shim.inside("C_Sign")
    until("a crash", lambda: stand.shim.inside("C_Sign") > crashes, 30)
    time.sleep(1)
    places = [stand.nodes.home, stand.shim.folder, tmp_path, Path.cwd()]
    cores = [one for place in places for one in place.glob("core*") if one.is_file()]
    for file in [*_files(stand.nodes.home), *_files(stand.shim.folder), *cores]:
        assert pin not in file.read_bytes(), file
