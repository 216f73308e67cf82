"""Every endpoint of an authority by every kind of caller (05 §1.2); a refusal changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from edge.authority.client import AlreadyMember, Client
from edge.authority.issuer import InMemory, Issuer
from edge.authority.registry import Member, code_hash
from edge.authority.service import Authority, Settings
from edge.authority.sqlite import SqliteRegistry
from edge.errors import ApiError
from edge.identity.credential import issue
from edge.identity.history import ChangeHistory, Identifier
from edge.identity.purpose import attest_credential_key
from edge.node.members import Members
from edge.wire.api import Status
from tests.authority.test_service import ADMIN, Signing, _bytes
from tests.net import Net, clock, play
from tests.people import WEEK, Person, ed25519, person, seed

ACCOUNT, FOREIGN = person("account authority"), person("foreign authority")
BOSS, OTHER_BOSS = person("boss").identifier, person("other boss").identifier
DEVICE, NOBODY = person("device").identifier, person("nobody").identifier


class Stage:
    """An authority whose admins are those of an account authority, with members and a spent ticket."""

    def __init__(self, net: Net, folder: Path) -> None:
        self.net, self.folder, self.late = net, folder, 0
        self.me = NOBODY
        """Who the caller is."""

    def now(self) -> int:
        return clock() + self.late

    async def start(self) -> Stage:
        self.node = await self.net.node("authority").listen()
        owner = self.node.identifier
        self.registry = await SqliteRegistry.open(self.folder / "authority.sqlite3", owner)
        signing = Signing("authority")
        issuer = Issuer(self.node.person.history, InMemory(), clock=self.now)
        await issuer.start(signing, None)  # type: ignore[arg-type]
        for one in (ACCOUNT, FOREIGN):  # known, which is not trusted
            self.node.known.learn(one.history)
        self.account = Members(self.node.known, clock=self.now, authority=ACCOUNT.identifier)
        self.node.api._learned = self._learned
        self.authority = Authority(
            self.node.router, self.node.wiring, self.registry, issuer,
            Settings("plant", account_only=True),
            clock=self.now, attributes_of=self.account.attributes,
        )  # fmt: skip
        self.node.closing.append(self.authority.close)
        await self.registry.pre_trust([Member(BOSS, _bytes(ADMIN), owner, clock())], clock())
        await self.registry.put(Member(OTHER_BOSS, _bytes(ADMIN), owner, clock()))
        await self.registry.put(Member(DEVICE, {b"role": b"plc"}, owner, clock()))
        self.spent = await (await self.client("boss")).create_token({})
        await (await self.client("early")).redeem(self.spent)
        return self

    def _learned(self, history: ChangeHistory, credentials: tuple[bytes, ...]) -> None:
        self.account.took(history.identifier, credentials)

    async def client(self, name: str, credential: bytes | None = None) -> Client:
        node = self.net.node(name)
        node.presentation = node.presentation._replace(credential=credential)
        connection = await node.connect(self.node.at + "/secure/api")
        return Client(node.router, connection.channels[-1], timeout=8)

    async def kept(self) -> tuple[object, ...]:
        """Everything that a refused caller must not have changed."""
        tokens = "SELECT * FROM token ORDER BY code_hash"
        return (
            await self.registry.members(),
            await self.registry.latest_change(),
            await self.registry._do(lambda db: db.execute(tokens).fetchall()),
        )


def credential(
    subject: str,
    attributes: Mapping[bytes, bytes],
    *,
    by: Person = ACCOUNT,
    made: int = 0,
    lifetime: int = 600,
) -> bytes:
    key, now = ed25519(seed(f"credentials of {by.identifier}")), clock() + made
    attestation = attest_credential_key(
        by.history, key.public, by.key.sign, now=now - 10, lifetime=WEEK
    )
    history = person(subject).history
    return issue(history, attributes, attestation, key.sign, now=now, lifetime=lifetime).encoded


OF_PLANT = {b"project": b"plant"}


class Caller(NamedTuple):
    """Who asks, what it shows, and what it may."""

    name: str
    may: frozenset[str]
    shows: Callable[[], bytes | None] = lambda: None


Ask = Callable[[Stage, Client], Awaitable[object]]
ENDPOINTS: dict[str, Ask] = {
    "token": lambda stage, client: client.create_token({"role": "plc"}),
    "token of an enroller": lambda stage, client: client.create_token(ADMIN),
    "add": lambda stage, client: client.add_member(NOBODY, {"role": "plc"}),
    "add an enroller": lambda stage, client: client.add_member(NOBODY, ADMIN),
    "change an enroller": lambda stage, client: client.add_member(OTHER_BOSS, {}),
    "make itself an enroller": lambda stage, client: client.add_member(stage.me, ADMIN),
    "list": lambda stage, client: client.members(),
    "list ids": lambda stage, client: client.member_ids(),
    "show": lambda stage, client: client.member(DEVICE),
    "delete": lambda stage, client: client.delete_member(DEVICE),
    "delete an enroller": lambda stage, client: client.delete_member(OTHER_BOSS),
    "delete a pre-trusted": lambda stage, client: client.delete_member(BOSS),
    "delete all": lambda stage, client: client.delete_members(),
    "credential": lambda stage, client: client.credential(),
    "changes": lambda stage, client: client.changes(0),
    "redeem nothing": lambda stage, client: client.redeem(bytes(32)),
    "redeem what is spent": lambda stage, client: client.redeem(stage.spent),
}
MEMBER = frozenset({"credential", "changes"})
ENROLLER = MEMBER | {"token", "add", "list", "list ids", "show", "delete", "delete all"}
ALL = ENROLLER | {
    "token of an enroller", "add an enroller", "change an enroller", "delete an enroller",
    "make itself an enroller",
}  # fmt: skip
CALLERS = {
    "a stranger": Caller("stranger", frozenset()),
    "a member": Caller("device", MEMBER),
    "an enroller, who is no admin": Caller("boss", ENROLLER),
    "an admin": Caller("admin", ALL, lambda: credential("admin", OF_PLANT)),
    "by a foreign authority": Caller(
        "admin", frozenset(), lambda: credential("admin", OF_PLANT, by=FOREIGN)
    ),
    "by itself": Caller(
        "admin", frozenset(), lambda: credential("admin", OF_PLANT, by=person("admin"))
    ),
    "expired": Caller(
        "admin", frozenset(), lambda: credential("admin", OF_PLANT, made=-1000, lifetime=900)
    ),
    "of the future": Caller("admin", frozenset(), lambda: credential("admin", OF_PLANT, made=3600)),
    "of another subject": Caller("admin", frozenset(), lambda: credential("somebody", OF_PLANT)),
    "of another project": Caller(
        "admin", frozenset(), lambda: credential("admin", {b"project": b"other"})
    ),
    "that says enroller": Caller("admin", frozenset(), lambda: credential("admin", _bytes(ADMIN))),
    "a member, with a foreign credential": Caller(
        "device", MEMBER, lambda: credential("device", OF_PLANT, by=FOREIGN)
    ),
}


@pytest.mark.parametrize("who", CALLERS)
@play
async def test_every_endpoint(net: Net, tmp_path: Path, who: str) -> None:
    caller = CALLERS[who]
    stage = await Stage(net, tmp_path).start()
    client = await stage.client(caller.name, caller.shows())
    stage.me = person(caller.name).identifier
    for name in ENDPOINTS.keys() - caller.may:
        before = await stage.kept()
        with pytest.raises(ApiError) as caught:
            await ENDPOINTS[name](stage, client)
        assert caught.value.status == Status.FORBIDDEN, name
        assert await stage.kept() == before, f"{name} was refused, and done"
    for name in sorted(caller.may, key=list(ENDPOINTS).index):
        if name == "changes" and not await stage.registry.latest_change():
            continue  # it would wait; asked again below
        await ENDPOINTS[name](stage, client)
    if "changes" in caller.may:
        await stage.registry.remove(DEVICE if caller.name != "device" else OTHER_BOSS, clock())
        assert (await client.changes(0)).changes


@play
async def test_a_right_ends_with_its_credential(net: Net, tmp_path: Path) -> None:
    """Though the channel in which it was shown is still open."""
    stage = await Stage(net, tmp_path).start()
    admin = await stage.client("admin", credential("admin", OF_PLANT, lifetime=60))
    await admin.create_token(ADMIN)
    stage.late = 62
    for asked in (admin.create_token(ADMIN), admin.create_token({}), admin.credential()):
        with pytest.raises(ApiError) as caught:
            await asked
        assert caught.value.status == Status.FORBIDDEN


@play
async def test_a_right_ends_with_the_membership(net: Net, tmp_path: Path) -> None:
    stage = await Stage(net, tmp_path).start()
    enroller = await stage.client("other boss")
    code = await enroller.create_token({})
    await stage.registry.remove(OTHER_BOSS, clock())
    with pytest.raises(ApiError, match="Non-enroller"):
        await enroller.create_token({})
    # What it made before holds: a ticket is the authority's word, and expires by itself.
    await (await stage.client("late")).redeem(code)


@play
async def test_replayed_tickets(net: Net, tmp_path: Path) -> None:
    stage = await Stage(net, tmp_path).start()
    boss = await stage.client("boss")
    code = await boss.create_token({"role": "plc"}, 600, 2)
    one, two, three = [await stage.client(name) for name in ("one", "two", "three")]
    await one.redeem(code)
    for again in (one, one):
        with pytest.raises(AlreadyMember):
            await again.redeem(code)
    await two.redeem(code)  # the second use was not spent by the one who came again
    with pytest.raises(ApiError, match="used up"):
        await three.redeem(code)
    # Removed, it does not come back with the ticket it came with.
    await boss.delete_member(person("one").identifier)
    with pytest.raises(ApiError, match="used up"):
        await one.redeem(code)
    short = await boss.create_token({}, 5)
    stage.late = 6
    with pytest.raises(ApiError, match="it has expired"):
        await three.redeem(short)
    for wrong in (code[:-1] + bytes([code[-1] ^ 1]), code_hash(short), bytes(32)):
        with pytest.raises(ApiError, match=r"Unknown enrollment token$"):
            await three.redeem(wrong)


@play
async def test_nobody_speaks_for_another(net: Net, tmp_path: Path) -> None:
    """The caller is whoever the channel proved, whatever the request says."""
    stage = await Stage(net, tmp_path).start()
    stranger, device = await stage.client("stranger"), await stage.client("device")
    asked = await asyncio.gather(
        *(client.credential() for client in (stranger, device, stranger)), return_exceptions=True
    )
    assert [isinstance(one, ApiError) for one in asked] == [True, False, True]
    subject: Identifier | None = asked[1].subject  # type: ignore[union-attr]
    assert subject == DEVICE
