"""Credentials that somebody has worked on: none of them counts."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.identity.credential import Credential, issue
from edge.identity.known import Known
from edge.identity.purpose import attest_channel_key, attest_credential_key
from edge.node.members import Members
from edge.wire import cbor
from tests.people import NOW, WEEK, Person, ed25519, p256, person, seed

ALICE, BOB = person("alice"), person("bob")
AUTHORITIES = {kind: person(f"authority {kind}", kind) for kind in ("ed25519", "p256")}
FOREIGN = person("foreign")
KINDS = sorted(AUTHORITIES)


@cache
def made(
    kind: str, subject: str = "alice", role: str = "plc", authority: str = "", now: int = NOW
) -> Credential:
    by = person(authority) if authority else AUTHORITIES[kind]
    key = (p256 if kind == "p256" else ed25519)(seed("credential key" + authority))
    attestation = attest_credential_key(by.history, key.public, by.key.sign, now=now, lifetime=WEEK)
    given = {b"role": role.encode(), b"site": b"7"}
    return issue(person(subject).history, given, attestation, key.sign, now=now, lifetime=3600)


def counts(kind: str, encoded: bytes, subject: Person = ALICE) -> bool:
    """Whether a node that trusts that authority takes anything from it."""
    authority, known = AUTHORITIES[kind], Known()
    for one in (*AUTHORITIES.values(), FOREIGN, ALICE, BOB):
        known.learn(one.history)
    members = Members(known, clock=lambda: NOW + 10, authority=authority.identifier)
    members.took(subject.identifier, (encoded,))
    return members.attributes(subject.identifier) is not None


@pytest.mark.parametrize("kind", KINDS)
def test_what_nobody_has_touched_counts(kind: str) -> None:
    assert counts(kind, made(kind).encoded)
    assert not counts(kind, made(kind).encoded, BOB)


@pytest.mark.parametrize("kind", KINDS)
def test_every_bit(kind: str) -> None:
    good = made(kind).encoded
    for position in range(len(good)):
        for bit in range(8):
            bad = bytearray(good)
            bad[position] ^= 1 << bit
            assert not counts(kind, bytes(bad)), f"byte {position}, bit {bit}"


@settings(max_examples=300, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    start=st.integers(0, 700),
    taken=st.integers(0, 40),
    put=st.binary(max_size=40),
)
def test_bytes_cut_out_and_put_in(kind: str, start: int, taken: int, put: bytes) -> None:
    good = made(kind).encoded
    bad = good[:start] + put + good[start + taken :]
    if bad != good and bad[: len(good)] != good:
        assert not counts(kind, bad)


Place = tuple[Any, ...]


def opened(encoded: bytes) -> Any:
    """The whole structure, the signed parts read too; `closed` is the way back."""
    return [[cbor.decode(data), signature] for data, signature in _pairs(encoded)]


def _pairs(encoded: bytes) -> Iterator[tuple[bytes, Any]]:
    for pair in cbor.as_list(cbor.decode(encoded)):
        data, signature = cbor.as_list(pair, 2)
        yield cbor.as_bytes(data), signature


def closed(parts: Any) -> bytes:
    return cbor.encode([[cbor.encode(data), signature] for data, signature in parts])


def leaves(value: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Every value that is no list or map, and where it stands."""
    if isinstance(value, list):
        for number, one in enumerate(value):
            yield from leaves(one, (*place, number))
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from leaves(one, (*place, key))
    else:
        yield place, value


def replaced(value: Any, place: Place, new: Any) -> Any:
    if not place:
        return new
    copy: Any = dict(value) if isinstance(value, dict) else list(value)
    copy[place[0]] = replaced(copy[place[0]], place[1:], new)
    return copy


OTHERS = st.one_of(
    st.integers(0, 2**40), st.binary(max_size=70), st.none(), st.just([]), st.just({}),
    st.sampled_from([ALICE.identifier, BOB.identifier, FOREIGN.identifier, NOW, NOW + WEEK]),
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(kind=st.sampled_from(KINDS), pick=st.integers(0, 10_000), new=OTHERS)
def test_a_value_inside_is_another_one(kind: str, pick: int, new: object) -> None:
    """Well-formed throughout, so that nothing but the rules can refuse it."""
    parts = opened(made(kind).encoded)
    assert closed(parts) == made(kind).encoded, "we can take it apart and put it together"
    places = list(leaves(parts))
    place, old = places[pick % len(places)]
    if new != old:
        assert not counts(kind, closed(replaced(parts, place, new))), place


@settings(max_examples=200, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    pieces=st.lists(st.integers(0, 5), min_size=4, max_size=4),
)
def test_pieces_of_several(kind: str, pieces: list[int]) -> None:
    """Data, signature, attested data and its signature, each from a credential that is or was good
    for somebody: only those that belong together count, and for their subject alone."""
    sources = [
        made(kind),
        made(kind, subject="bob"),
        made(kind, role="boss"),
        made(kind, now=NOW - 2 * WEEK),
        made(kind, role="foreign", authority="foreign"),
        made("ed25519" if kind == "p256" else "p256", role="other"),
    ]
    parts = [opened(one.encoded) for one in sources]
    data, signature, attested, signed = pieces
    mixed = [
        [parts[data][0][0], parts[signature][0][1]],
        [parts[attested][1][0], parts[signed][1][1]],
    ]
    # The first three were made with one key, attested by one authority at one time.
    belong = data == signature and data in (0, 2) and max(attested, signed) <= 2
    assert counts(kind, closed(mixed)) is belong


def test_keys_for_other_things() -> None:
    """A channel key that the authority attested, and an identity key itself, sign no credentials."""
    authority = AUTHORITIES["ed25519"]
    key = ed25519(seed("credential key"))
    good = made("ed25519")
    channel = attest_channel_key(
        authority.history, key.public.value, authority.key.sign, now=NOW, lifetime=WEEK
    )
    data, signature = next(_pairs(good.encoded))
    pair = [[data, signature], cbor.Raw(channel.encoded)]
    assert not counts("ed25519", cbor.encode(pair))
    # By the identity key of the authority, with the attestation of its credential key.
    forged = [0, [authority.key.sign(good.data)]]
    assert not counts("ed25519", cbor.encode([[data, forged], cbor.Raw(good.attestation.encoded)]))
