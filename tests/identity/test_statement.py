"""What an identity says about its key: for one nonce, by one key, and nothing of it can be changed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import DecodeError, EdgeError, TrustError
from edge.identity.purpose import Attestation
from edge.identity.statement import DOMAIN, MAX_BYTES, KeyStatement, state
from edge.wire import cbor
from tests.people import KINDS, NOW, person, seed
from tests.people import ed25519 as key

ALICE, BOB = person("alice"), person("bob")
NONCE = bytes(range(32))
DESCRIPTION = {"vault": "pkcs11", "extractable": False, "slot": 3, "id": None}


def made(who: str = "alice", kind: str = "ed25519") -> KeyStatement:
    if kind == "rotated":
        first = person(who)
        new = key(seed("new"))
        rotated = first.rotate(new)
        return state(rotated.history, new.sign, DESCRIPTION, nonce=NONCE, now=NOW)
    one = person(who, kind)
    return state(one.history, one.key.sign, DESCRIPTION, nonce=NONCE, now=NOW)


@pytest.mark.parametrize("kind", KINDS)
def test_a_statement_is_verified_from_its_bytes_alone(kind: str) -> None:
    read = KeyStatement.decode(made(kind=kind).encoded)
    read.verify(NONCE)
    assert read.description == DESCRIPTION
    assert (read.made_at, read.nonce) == (NOW, NONCE)
    with pytest.raises(TrustError, match="another nonce"):
        read.verify(bytes(32))


def test_nobody_speaks_for_another() -> None:
    with pytest.raises(TrustError, match="does not verify"):
        state(ALICE.history, BOB.key.sign, DESCRIPTION, nonce=NONCE, now=NOW)
    statement = made()
    for bad in (
        statement._replace(history=BOB.history),
        statement._replace(history=ALICE.rotate(key(seed("new"))).history),  # not its latest key
        statement._replace(signature=made("bob").signature),
    ):
        with pytest.raises(TrustError):
            bad.verify(NONCE)


def test_it_is_no_attestation_and_an_attestation_is_no_statement() -> None:
    with pytest.raises(DecodeError):
        Attestation.decode(cbor.encode([made().data, made().signature.structure()]))
    attestation = ALICE.present().attestation
    mixed = [ALICE.history.encoded, attestation.data, attestation.signature.structure()]
    with pytest.raises(DecodeError, match="not a statement"):
        KeyStatement.decode(cbor.encode(mixed))


@given(st.data())
def test_every_changed_byte_is_refused(data: st.DataObject) -> None:
    whole = bytearray(STATEMENT)
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(EdgeError):
        KeyStatement.decode(bytes(whole)).verify(NONCE)


STATEMENT = made(kind="rotated").encoded


def test_what_does_not_decode() -> None:
    statement = made()
    history, signature = statement.history.encoded, statement.signature.structure()
    subject, latest = ALICE.identifier, ALICE.history.latest.hash

    def with_body(*body: object) -> bytes:
        return cbor.encode([history, DOMAIN + cbor.encode(list(body)), signature])

    for bad in (
        bytes(MAX_BYTES + 1),
        cbor.encode([history, statement.data, signature, 1]),
        statement.encoded + b"\0",
        with_body(subject, latest, NONCE, NOW, {"a": [1]}),
        with_body(subject, latest, NONCE, NOW, {1: 1}),
        with_body(subject, latest, NONCE, NOW, {}, 1),
    ):
        with pytest.raises(DecodeError):
            KeyStatement.decode(bad)
    for nonce in (bytes(7), bytes(65)):
        with pytest.raises(DecodeError, match="nonce"):
            state(ALICE.history, ALICE.key.sign, {}, nonce=nonce, now=NOW)
