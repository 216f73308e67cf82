"""What an authority says of peers: kept while it holds, told when it ends."""

from collections.abc import Mapping

import pytest

from edge.identity.credential import issue
from edge.identity.history import Identifier
from edge.identity.known import Known
from edge.identity.purpose import attest_credential_key
from edge.node import members as module
from edge.node.members import Members
from tests.people import NOW, WEEK, Person, ed25519, person, seed

AUTHORITY, ALICE, BOB = person("authority"), person("alice"), person("bob")


def credential(
    subject: Person = ALICE,
    attributes: Mapping[bytes, bytes] | None = None,
    *,
    by: Person = AUTHORITY,
    now: int = NOW,
    lifetime: int = 100,
) -> bytes:
    key = ed25519(seed(f"credential key of {by.identifier}"))
    attestation = attest_credential_key(
        by.history, key.public, by.key.sign, now=now - 10, lifetime=WEEK
    )
    given = {b"role": b"plc"} if attributes is None else attributes
    made = issue(subject.history, given, attestation, key.sign, now=now, lifetime=lifetime)
    return made.encoded


class Fleet:
    def __init__(self, authority: Identifier | None = AUTHORITY.identifier) -> None:
        self.now = NOW
        self.told: list[Identifier] = []
        known = Known()
        for one in (AUTHORITY, BOB):
            known.learn(one.history)
        self.members = Members(known, clock=lambda: self.now, authority=authority)
        self.members.watch(self.told.append)

    def said(self, subject: Person = ALICE) -> Mapping[str, str] | None:
        return self.members.attributes(subject.identifier)

    def show(self, encoded: bytes, subject: Person = ALICE) -> None:
        self.members.took(subject.identifier, (encoded,))


def test_what_holds_is_kept_until_it_expires() -> None:
    fleet = Fleet()
    assert fleet.said() is None
    assert fleet.members.attributes(None) is None
    fleet.show(credential())
    assert fleet.said() == {"role": "plc"}
    assert fleet.members.expires_at(ALICE.identifier) == NOW + 100
    assert fleet.said(BOB) is None
    fleet.now += 100
    fleet.members.sweep()
    assert fleet.said() == {"role": "plc"}
    fleet.now += 1
    assert fleet.said() is None, "from the second on, whoever sweeps or not"
    assert fleet.told == [ALICE.identifier]
    fleet.members.sweep()
    assert fleet.told == [ALICE.identifier] * 2
    assert fleet.members.expires_at(ALICE.identifier) is None


def test_what_does_not_hold_is_as_if_not_shown() -> None:
    fleet = Fleet()
    good = credential()
    for encoded in (
        credential(BOB),  # of somebody else
        credential(by=BOB),  # of no authority here
        credential(lifetime=-1),
        credential(now=NOW + 1000),
        good[:-1] + bytes([good[-1] ^ 1]),
        b"\x80",
        b"",
    ):
        fleet.show(encoded)
        assert fleet.said() is None
    assert fleet.members.refused == 7
    fleet.show(good)
    assert fleet.said() is not None


def test_without_an_authority_nothing_counts() -> None:
    fleet = Fleet(authority=None)
    fleet.show(credential())
    assert fleet.said() is None


def test_the_same_again_tells_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = Fleet()
    fleet.show(credential())
    monkeypatch.setattr(fleet.members, "_verified", None)  # it is not verified again
    fleet.show(credential())
    assert fleet.told == [ALICE.identifier]


def test_a_newer_one_replaces() -> None:
    fleet = Fleet()
    first = credential()
    fleet.show(first)
    fleet.now += 50
    fleet.show(credential(now=fleet.now))
    assert fleet.told == [ALICE.identifier], "the same attributes, for longer"
    assert fleet.members.expires_at(ALICE.identifier) == NOW + 150
    fleet.show(first)
    assert fleet.members.expires_at(ALICE.identifier) == NOW + 150, "an older one is shown again"
    fleet.show(credential(attributes={b"role": b"rtu"}, now=fleet.now))
    assert fleet.said() == {"role": "rtu"}
    assert fleet.told == [ALICE.identifier] * 2


def test_no_attribute_passes_for_what_is_built_in() -> None:
    fleet = Fleet()
    attributes = {b"identifier": b"I0", b"has_credential": b"true", b"\xff": b"x", b"y": b"\xff"}
    fleet.show(credential(attributes=attributes | {b"a": b"b"}))
    assert fleet.said() == {"a": "b"}


def test_the_authority_removes_a_member() -> None:
    fleet = Fleet()
    fleet.show(credential())
    fleet.now += 10
    fleet.members.changed(ALICE.identifier, NOW + 5)
    assert fleet.said() is None
    assert fleet.told == [ALICE.identifier] * 2
    fleet.show(credential())
    assert fleet.said() is None, "it still has the old credential"
    fleet.members.changed(ALICE.identifier, NOW + 8)  # and is back
    fleet.show(credential(now=NOW + 9))
    assert fleet.said() is not None


def test_the_authority_changes_what_it_says() -> None:
    fleet = Fleet()
    fleet.show(credential(now=NOW))
    fleet.members.changed(ALICE.identifier, NOW)
    assert fleet.said() is None, "made in that second: nobody knows whether before or after"
    fleet.show(credential(now=NOW + 1))
    assert fleet.said() is not None


def test_it_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 1)
    fleet = Fleet()
    fleet.show(credential())
    fleet.show(credential(BOB), BOB)
    assert fleet.said() is None
    assert fleet.said(BOB) is not None


def test_a_clock_that_is_not_set() -> None:
    known = Known()
    known.learn(AUTHORITY.history)
    members = Members(
        known, clock=lambda: NOW, clock_unset=lambda: True, authority=AUTHORITY.identifier
    )
    members.took(ALICE.identifier, (credential(now=NOW + 5000),))
    assert members.attributes(ALICE.identifier) is not None
