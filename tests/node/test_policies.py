"""Policies of a node: which one applies, what it says, and that live portals follow."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from edge.errors import ConfigError
from edge.identity.history import Identifier
from edge.node import policies as module
from edge.node.home import Home
from edge.node.policies import Policies, Policy, read
from tests.node.test_members import ALICE, AUTHORITY, BOB, Fleet, credential
from tests.node.test_node import three, tunnel
from tests.node.world import eventually, port_of, run, running, target
from tests.people import person

WHO = ALICE.identifier


def policies(fleet: Fleet) -> Policies:
    return Policies(fleet.members)


def allowed(one: Policies, peer: Identifier | None = WHO, name: str = "db") -> bool:
    return one.allows("tcp-outlet", name)(peer)


def test_without_an_authority_what_is_not_said_is_open() -> None:
    one = policies(Fleet(authority=None))
    assert allowed(one, None)
    assert not one.guarded("tcp-outlet", "db")
    assert one.list() == []
    assert one.may_relay(None, "any")


@pytest.mark.parametrize("text", ["{}", '(= subject.identifier "{}")', "{} or I" + "00" * 32])
def test_who_is_named_is_let_in(text: str) -> None:
    one = policies(Fleet(authority=None))
    one.set(Policy("db", None, read(text.format(WHO))))
    assert allowed(one)
    assert not allowed(one, BOB.identifier)
    assert not allowed(one, None)
    assert allowed(one, None, "other")


def test_name_before_type_before_default() -> None:
    fleet = Fleet()
    one = policies(fleet)
    assert not allowed(one)
    assert one.decide("tcp-outlet", "db", WHO).reason == (
        "the policy of every tcp-outlet: (= subject.has_credential true) says no; "
        "subject.has_credential is false"
    )
    fleet.show(credential())
    assert allowed(one)
    one.set(Policy(None, "tcp-outlet", read("role=rtu")))
    assert not allowed(one)
    one.set(Policy("db", None, read("role=plc")))
    assert allowed(one)
    assert not allowed(one, WHO, "other")
    assert one.find(resource="db") == read("role=plc")
    assert one.find(kind="tcp-outlet") == read("role=rtu")
    assert one.remove(resource="db")
    assert not one.remove(resource="db")
    assert not allowed(one)
    assert one.remove(kind="tcp-outlet")
    assert allowed(one)


def test_what_a_policy_knows() -> None:
    fleet = Fleet()
    fleet.show(credential(attributes={b"role": b"plc", b"resource.id": b"x"}))
    one = policies(fleet)
    for text in (
        '(= resource.id "db")', '(= action.id "handle_message")', '(= subject.resource.id "x")',
        "(= subject.has_credential true)",
    ):  # fmt: skip
        one.set(Policy("db", None, read(text)))
        assert allowed(one), text


def test_an_unbound_credential_without_an_authority() -> None:
    one = policies(Fleet(authority=None))
    one.set(Policy("db", None, read("(= subject.has_credential true)")))
    assert "unbound" in one.decide("tcp-outlet", "db", WHO).reason


def test_a_refusal_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    fleet = Fleet()
    one = policies(fleet)
    for _ in range(3):
        assert not allowed(one)
        assert not allowed(one, None)
    assert one.refused == 6
    logged = [record.getMessage() for record in caplog.records]
    assert len(logged) == 2
    assert str(WHO) in logged[0]
    assert "has_credential" in logged[0]


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REMEMBERED", 2)
    one = policies(Fleet())
    for n in range(5):
        assert not allowed(one, Identifier(bytes([n]) * 32))
    assert len(one._made) <= 2


def test_what_is_said_of_one_peer_is_news_of_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """When a hub starts, thousands come one by one."""
    fleet = Fleet()
    one = policies(fleet)
    told: list[Identifier | None] = []
    one.watch(told.append)
    assert not allowed(one)
    assert not allowed(one, BOB.identifier)
    fleet.show(credential())
    assert told == [WHO]
    decided: list[Identifier | None] = []
    decide = one.decide

    def counting(kind: str, name: str, peer: Identifier | None) -> module.Decision:
        decided.append(peer)
        return decide(kind, name, peer)

    monkeypatch.setattr(one, "decide", counting)
    assert allowed(one)
    assert not allowed(one, BOB.identifier)
    assert decided == [WHO], "of the other one it is known"
    one.set(Policy("db", None, read("role=rtu")))
    assert told == [WHO, None]
    assert not allowed(one)
    assert not allowed(one, BOB.identifier)
    assert decided == [WHO, WHO, BOB.identifier]


def test_relays_are_for_those_with_the_right() -> None:
    fleet = Fleet()
    one = policies(fleet)
    assert not one.may_relay(WHO, "plant-7")
    fleet.show(credential(attributes={b"ockam-relay": b"plant-7"}))
    assert one.may_relay(WHO, "plant-7")
    assert not one.may_relay(WHO, "plant-8")
    fleet.show(credential(attributes={b"ockam-relay": b"*"}, now=fleet.now))
    assert one.may_relay(WHO, "plant-8")
    one.set(Policy(None, "relay", read("role=plc")))
    assert not one.may_relay(WHO, "plant-8")


def test_no_type_of_that_name() -> None:
    with pytest.raises(ConfigError, match="no type"):
        policies(Fleet()).set(Policy(None, "outlet", read("a")))


def test_a_policy_that_changes_cuts_a_live_portal(tmp_path: Path) -> None:
    async def test(home: Home) -> None:
        who = three(home)
        async with target() as port, running(home, "hub", "gateway", "client") as nodes:
            gateway = nodes[1]
            inlet = await tunnel(nodes, port, allow=who["client"])
            reader, writer = await asyncio.open_connection("127.0.0.1", port_of(inlet))
            writer.write(b"hello")
            assert await asyncio.wait_for(reader.read(100), 5) == b"hello"
            stranger = str(person("stranger").identifier)
            await gateway.set_policy(Policy("outlet", None, read(stranger)))
            assert await asyncio.wait_for(reader.read(100), 5) == b""
            writer.close()
            assert gateway.policy_text("outlet") == f'(= subject.identifier "{stranger}")'
            await gateway.set_policy(Policy(None, "tcp-outlet", read("a")))
            await gateway.remove_policy(resource="outlet")
            gateway.ways_out = lambda: ["/ip4/192.0.2.1/tcp/1"]  # type: ignore[method-assign]
            with pytest.raises(ConfigError, match="no policy"):
                await gateway.remove_policy(kind="tcp-outlet")
            assert gateway.policies.guarded("tcp-outlet", "outlet")
        async with running(home, "gateway") as (gateway,):
            assert gateway.policies.find(kind="tcp-outlet") == read("a")
            assert gateway.policies.find(resource="outlet") is None

    run(test, tmp_path)


def test_an_authority_lets_in_and_cuts(tmp_path: Path) -> None:
    """The outlet's node has an authority. The client shows its credential in a channel that is open
    already, is let in, and is cut when that says something else, and when it has expired."""

    async def test(home: Home) -> None:
        three(home)
        async with target() as port, running(home, "hub", "gateway", "client") as nodes:
            gateway, client = nodes[1], nodes[2]
            gateway.known.learn(AUTHORITY.history)
            gateway.members.authority = AUTHORITY.identifier
            inlet = await tunnel(nodes, port)
            peer = client.identity.history.identifier
            assert not gateway.policies.decide("tcp-outlet", "outlet", peer).allowed

            def show(role: bytes, lifetime: int) -> None:
                subject = replace(ALICE, history=client.identity.history)
                made = credential(
                    subject, {b"role": role}, now=client.clock.now(), lifetime=lifetime
                )
                client.show_credential(made)

            async def open_one() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
                streams = await asyncio.open_connection("127.0.0.1", port_of(inlet))
                streams[1].write(b"hello")
                assert await asyncio.wait_for(streams[0].read(100), 5) == b"hello"
                return streams

            await gateway.set_policy(Policy(None, "tcp-outlet", read("role=plc")))
            show(b"plc", 1000)
            await eventually(lambda: gateway.members.attributes(peer))
            reader, writer = await open_one()
            show(b"rtu", 1000)
            assert await asyncio.wait_for(reader.read(100), 5) == b"", "it says something else now"
            writer.close()
            await asyncio.sleep(1)  # a credential made in the same second would not be newer
            show(b"plc", 2)
            await eventually(lambda: gateway.members.attributes(peer) == {"role": "plc"})
            reader, writer = await open_one()
            assert await asyncio.wait_for(reader.read(100), 8) == b"", "it has expired"
            writer.close()
            client.show_credential(None)
            assert not gateway.policies.decide("tcp-outlet", "outlet", peer).allowed

    run(test, tmp_path)
