"""The authority's services over real channels: every endpoint by every kind of caller (05 §1.2)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from edge.authority import service
from edge.authority.client import AlreadyMember, Client
from edge.authority.issuer import InMemory, InVault, Issuer
from edge.authority.registry import Member, Registry
from edge.authority.service import Authority, Settings
from edge.authority.sqlite import SqliteRegistry
from edge.errors import ApiError, NetworkError, TrustError
from edge.identity.history import Identifier
from edge.identity.known import Known
from edge.wire import bare, cbor
from edge.wire.api import Failure, Method, Request, Response, Status
from edge.wire.route import Address, Route
from tests.authority.conftest import Opening
from tests.net import SILENCE, Net, clock, play, until
from tests.people import person
from vault_backends.vault import DeviceGone

ADMIN = {"ockam-role": "enroller"}


class Signing:
    """A keyring of one key in memory."""

    def __init__(self, name: str) -> None:
        self.person = person(name)
        self.failure: Exception | None = None
        self.signatures = 0

    def signer(self, key: object) -> Any:
        def sign(data: bytes) -> bytes:
            if self.failure is not None:
                raise self.failure
            self.signatures += 1
            return self.person.key.sign(data)

        return sign

    async def run(self, work: Any, *args: Any) -> Any:
        return work(*args)

    async def public(self, key: object) -> Any:
        return self.person.key.public


class Fleet:
    """An authority, and clients that speak with it."""

    def __init__(self, net: Net, tmp_path: Path) -> None:
        self.net, self.path = net, tmp_path / "authority.sqlite3"
        self.said: dict[Identifier, Mapping[str, str]] = {}
        self.keyring = Signing("authority")

    async def start(
        self, *, vault: bool = False, registries: Opening | None = None, **settings: Any
    ) -> Fleet:
        self.node = await self.net.node("authority").listen()
        history = self.node.person.history
        registry: Registry
        if registries is not None:
            registry = await registries(history.identifier)
        else:
            registry = await SqliteRegistry.open(self.path, history.identifier)
        keyring: Any = self.keyring
        key: Any = None
        signs = await InVault.open(keyring, key) if vault else InMemory()
        issuer = Issuer(history, signs, clock=clock, extra={b"trust_context_id": b"plant"})
        await issuer.start(keyring, key)
        self.authority = Authority(
            self.node.router,
            self.node.wiring,
            registry,
            issuer,
            Settings("plant", **settings),
            clock=clock,
            attributes_of=self.said.get,
        )
        self.node.closing.append(self.authority.close)
        return self

    async def trust(self, *names: str) -> None:
        owner = self.node.identifier
        members = [Member(person(name).identifier, _bytes(ADMIN), owner, clock()) for name in names]
        await self.authority.registry.pre_trust(members, clock())

    async def client(self, name: str, timeout: float = 5.0) -> Client:
        node = self.net.node(name)
        connection = await node.connect(self.node.at + "/secure/api")
        self.last = node
        return Client(node.router, connection.channels[-1], timeout=timeout)


def _bytes(attributes: Mapping[str, str]) -> dict[bytes, bytes]:
    return {name.encode(): value.encode() for name, value in attributes.items()}


async def refused(asked: Any, words: str, status: Status = Status.FORBIDDEN) -> None:
    with pytest.raises(ApiError, match=words) as caught:
        await asked
    assert caught.value.status == status


@play
async def test_a_path_cannot_forge_a_line_of_the_log(
    net: Net, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    fleet = await Fleet(net, tmp_path).start()
    thief = await fleet.client("thief")
    asked = thief._ask(service.MEMBERS, Method.GET, "/x\n12:00 ERROR forged")
    await refused(asked, "not an identifier", Status.BAD_REQUEST)
    assert any("forged" in line for line in caplog.messages)
    assert not any("\n" in line for line in caplog.messages)


@play
async def test_from_a_ticket_to_a_credential(net: Net, tmp_path: Path) -> None:
    fleet = await Fleet(net, tmp_path).start()
    await fleet.trust("boss")
    boss, device = await fleet.client("boss"), await fleet.client("device")
    code = await boss.create_token({"role": "plc", "ockam-relay": "plant-7"})
    await refused(device.credential(), "unauthorized member")
    await refused(device.redeem(bytes(32)), "Unknown enrollment token$")
    await device.redeem(code)
    with pytest.raises(AlreadyMember):
        await device.redeem(code)
    await refused((await fleet.client("thief")).redeem(code), "it is used up")
    credential = await device.credential()
    known = Known()
    known.learn(fleet.node.person.history)
    subject = person("device").identifier
    credential.verify(subject, {fleet.node.identifier}, known, clock())
    assert credential.attributes == {
        b"role": b"plc", b"ockam-relay": b"plant-7", b"trust_context_id": b"plant",
    }  # fmt: skip
    entry = await boss.member(subject)
    assert entry.added_by == person("boss").identifier
    with pytest.raises(TrustError):
        credential.verify(person("boss").identifier, {fleet.node.identifier}, known, clock())
    assert (
        fleet.keyring.signatures == 1
    )  # of the vault: the attestation, and nothing per credential


@play
async def test_a_ticket_that_has_expired(net: Net, tmp_path: Path) -> None:
    fleet = await Fleet(net, tmp_path).start()
    await fleet.trust("boss")
    code = await (await fleet.client("boss")).create_token({}, 1)
    fleet.authority._clock = lambda: clock() + 2
    await refused((await fleet.client("device")).redeem(code), "it has expired")


@play
async def test_a_thousand_at_once(net: Net, tmp_path: Path, registries: Opening) -> None:
    """Of one use, by clients with channels of their own: one wins."""
    fleet = await Fleet(net, tmp_path).start(registries=registries)
    await fleet.trust("boss")
    code = await (await fleet.client("boss")).create_token({})
    clients = [await fleet.client(f"device-{n}", timeout=30) for n in range(125)]
    asked = [client.redeem(code) for client in clients for _ in range(service.PER_CALLER)]
    outcomes = await asyncio.gather(*asked, return_exceptions=True)
    assert len(outcomes) == 1000
    assert [outcome for outcome in outcomes if not isinstance(outcome, ApiError)] == [None]
    assert sum(isinstance(outcome, AlreadyMember) for outcome in outcomes) < service.PER_CALLER
    assert len(await fleet.authority.registry.members()) == 2


@play
async def test_members(net: Net, tmp_path: Path) -> None:
    fleet = await Fleet(net, tmp_path).start()
    await fleet.trust("boss")
    boss = await fleet.client("boss")
    device, other = person("device").identifier, person("other").identifier
    await boss.add_member(device, {"role": "plc"})
    await boss.add_member(other, ADMIN)
    assert set(await boss.member_ids()) == {device, other, person("boss").identifier}
    assert (await boss.members())[device].attributes == {b"role": b"plc"}
    await boss.add_member(device, {"role": "rtu"})
    assert (await boss.member(device)).attributes == {b"role": b"rtu"}
    await boss.delete_member(device)
    await boss.delete_member(device)  # is gone already
    await refused(boss.member(device), "not found")
    await boss.add_member(device, {})
    await boss.delete_members()
    assert await boss.member_ids() == [person("boss").identifier]


@play
async def test_who_may_not(net: Net, tmp_path: Path) -> None:
    fleet = await Fleet(net, tmp_path).start(account_only=True)
    await fleet.trust("enroller", "chief")
    chief = person("chief").identifier
    fleet.said[chief] = {"project": "plant"}
    enroller, stranger = await fleet.client("enroller"), await fleet.client("stranger")
    admin = await fleet.client("chief")
    someone = person("someone").identifier
    words = "Non-enroller"
    for caller in (stranger,):
        await refused(caller.create_token({}), words)
        await refused(caller.add_member(someone, {}), words)
        await refused(caller.members(), words)
        await refused(caller.member_ids(), words)
        await refused(caller.member(someone), words)
        await refused(caller.delete_member(someone), words)
        await refused(caller.delete_members(), words)
        await refused(caller.changes(0), "unauthorized")
    await refused(enroller.create_token(ADMIN), "for an enroller")
    await refused(enroller.add_member(someone, ADMIN), "to create an enroller")
    await admin.add_member(someone, ADMIN)
    await refused(enroller.delete_member(someone), "to delete an enroller")
    await refused(enroller.add_member(someone, {}), "to change an enroller")
    await refused(admin.delete_member(person("enroller").identifier), "pre trusted")
    await admin.create_token(ADMIN)
    await enroller.delete_members()
    assert someone in await admin.member_ids()
    await admin.delete_member(someone)
    credential = await admin.credential()
    assert credential.attributes[b"ockam-relay"] == b"*"


@play
async def test_what_is_no_token_or_attribute(net: Net, tmp_path: Path) -> None:
    fleet = await Fleet(net, tmp_path).start()
    await fleet.trust("boss")
    boss = await fleet.client("boss")
    bad = Status.BAD_REQUEST
    await refused(boss.create_token({}, 0), "lives", bad)
    await refused(boss.create_token({}, service.LONGEST + 1), "lives", bad)
    await refused(boss.create_token({}, 1, service.MOST_USES + 1), "uses", bad)
    await refused(boss.create_token({"has_credential": "true"}), "reserved", bad)
    await refused(boss.create_token({"a b": "true"}), "not usable", bad)
    await refused(boss.add_member(person("x").identifier, {"": ""}), "not usable", bad)
    assert len(await boss.create_token({}, 1, 0)) == 32  # stock takes no uses for one


@play
async def test_paths_and_bodies(net: Net, tmp_path: Path) -> None:
    fleet = await Fleet(net, tmp_path).start()
    await fleet.trust("boss")
    boss = await fleet.client("boss")
    bad = Status.BAD_REQUEST
    for desk, path in (
        (service.CREDENTIALS, ""), (service.ISSUER, "tokens"), (service.ACCEPTOR, "/x"),
        (service.MEMBERS, "/a/b"), (service.MEMBERS, "/members/a/b"),
    ):  # fmt: skip
        await refused(boss._ask(desk, Method.POST, path), "unknown path", bad)
    await refused(boss._ask(service.MEMBERS, Method.DELETE, "/"), "unknown path", bad)
    get = boss._ask(service.ISSUER, Method.GET, "/tokens")
    await refused(get, "not allowed", Status.METHOD_NOT_ALLOWED)
    await refused(boss._ask(service.MEMBERS, Method.GET, "/nobody"), "not an identifier", bad)
    for desk in (service.ISSUER, service.ACCEPTOR, service.MEMBERS, service.CHANGES):
        await refused(boss._ask(desk, Method.POST, "/", b"\xff"), "CBOR", bad)
    await refused(boss._ask(service.ACCEPTOR, Method.POST, "/"), "body", bad)
    for path in ("", "members", "/members"):
        assert await boss._ask(service.MEMBERS, Method.GET, path)


@play
async def test_no_method(net: Net, tmp_path: Path) -> None:
    fleet = await Fleet(net, tmp_path).start()
    client = await fleet.client("boss")
    route = Route.of(Address(0, client._channel.address), Address(0, service.CREDENTIALS))
    answer = await fleet.last.ask(route, Request(7, "/", None).encode(), timeout=5)
    response = Response.decode(answer or b"")
    assert (response.re, response.status) == (7, Status.METHOD_NOT_ALLOWED)


@play
async def test_garbage_costs_nothing(net: Net, tmp_path: Path) -> None:
    fleet = await Fleet(net, tmp_path).start()
    await fleet.trust("boss")
    boss = await fleet.client("boss")
    route = Route.of(Address(0, boss._channel.address), Address(0, service.MEMBERS))
    for garbage in (b"", b"\xff" * 40, bare.encode_data(b"\xa0"), bare.encode_data(b"")):
        assert await fleet.last.ask(route, garbage, timeout=SILENCE / 5) is None
    assert await boss.member_ids()


@play
async def test_only_through_a_channel(net: Net, tmp_path: Path) -> None:
    fleet = await Fleet(net, tmp_path).start()
    outside = net.node("outside")
    link = await outside.link(fleet.node)
    request = Request(7, "/", Method.POST).encode()
    for desk in (service.CREDENTIALS, service.MEMBERS, service.ISSUER, service.ACCEPTOR):
        assert (
            await outside.ask(Route.of(Address(0, link.address), Address(0, desk)), request) is None
        )


@play
async def test_said_to_those_without_a_channel(net: Net, tmp_path: Path) -> None:
    """Nobody gets there but by mistake of the wiring; then this is said (05 §0.5)."""
    fleet = await Fleet(net, tmp_path).start()
    for desk in fleet.authority._desks:
        fleet.node.wiring.plain.add(desk.address)
    outside = net.node("outside")
    link = await outside.link(fleet.node)
    route = Route.of(Address(0, link.address), Address(0, service.MEMBERS))
    answer = await outside.ask(route, Request(7, "/", Method.GET).encode(), timeout=5)
    response = Response.decode(answer or b"")
    assert (response.re, response.status) == (0, Status.BAD_REQUEST)
    assert Failure.from_value(cbor.decode(response.body or b"")) == Failure(
        "secure channel required"
    )


@play
async def test_desks_left_out(net: Net, tmp_path: Path) -> None:
    fleet = await Fleet(net, tmp_path).start(direct=False, tokens=False)
    await fleet.trust("boss")
    boss = await fleet.client("boss", timeout=SILENCE)
    for asked in (boss.create_token({}), boss.members(), boss.redeem(bytes(32))):
        with pytest.raises(NetworkError):
            await asked
    assert (await boss.credential()).attributes[b"ockam-role"] == b"enroller"


@play
async def test_changes(net: Net, tmp_path: Path) -> None:
    fleet = await Fleet(net, tmp_path).start()
    await fleet.trust("boss")
    boss = await fleet.client("boss")
    device = person("device").identifier
    waiting = asyncio.create_task(boss.changes(0))
    await boss.add_member(device, {})
    await until(lambda: fleet.authority._waiting.taken)
    assert not waiting.done(), "who joins changes nothing for others"
    await boss.delete_member(device)
    number, changed = await waiting
    assert (number, [one[:2] for one in changed]) == (1, [(device, True)])
    assert await boss.changes(0) == (number, changed), "and at once to who asks later"
    assert not fleet.authority._waiting.taken


@play
async def test_changes_by_another_process(
    net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "LOOK", 0.05)
    fleet = await Fleet(net, tmp_path).start()
    await fleet.trust("boss")
    boss = await fleet.client("boss")
    waiting = asyncio.create_task(boss.changes(0))
    await until(lambda: fleet.authority._waiting.taken)
    other = await SqliteRegistry.open(fleet.path, fleet.node.identifier)
    await other.put(Member(person("x").identifier, {}, fleet.node.identifier, clock()))
    await other.remove(person("x").identifier, clock())
    assert [one.identifier for one in (await waiting).changes] == [person("x").identifier]
    await other.close()


@play
async def test_a_key_of_the_vault_signs_each(net: Net, tmp_path: Path) -> None:
    fleet = await Fleet(net, tmp_path).start(vault=True)
    await fleet.trust("boss")
    boss = await fleet.client("boss")
    await boss.credential()
    assert fleet.keyring.signatures == 2
    fleet.keyring.failure = DeviceGone("the token is away, at a place that is nobody's business")
    await refused(boss.credential(), "has a problem", Status.INTERNAL_SERVER_ERROR)
    assert net.trouble == [f"credential_issuer cannot be served: {fleet.keyring.failure}"]
    net.trouble.clear()  # an error in our log, and no word of it to the caller
    fleet.keyring.failure = None
    await boss.credential()


@play
async def test_one_caller_does_not_take_all(
    net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = await Fleet(net, tmp_path).start()
    await fleet.trust("boss", "other")
    gate = asyncio.Event()
    members = fleet.authority.registry.members

    async def slow() -> list[Member]:
        await gate.wait()
        return await members()

    monkeypatch.setattr(fleet.authority.registry, "members", slow)
    greedy, other = await fleet.client("boss"), await fleet.client("other")
    asked = [asyncio.create_task(greedy.member_ids()) for _ in range(service.PER_CALLER + 5)]
    await until(lambda: fleet.authority._busy.of(person("boss").identifier) == service.PER_CALLER)
    assert (await other.credential()).subject == person("other").identifier
    gate.set()
    done, dropped = await asyncio.wait(asked, timeout=1)
    assert len(done) == service.PER_CALLER
    for task in dropped:
        task.cancel()
    await asyncio.gather(*dropped, return_exceptions=True)
    assert not fleet.authority._busy.taken
