"""Attestations and credentials: made, verified step by step, and refused (02 §4, §5)."""

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import DecodeError, TrustError
from edge.identity.credential import Credential, issue
from edge.identity.history import ChangeHistory, Identifier, create
from edge.identity.known import Known
from edge.identity.purpose import Attestation, attest_channel_key, attest_credential_key
from edge.identity.versioned import items
from edge.wire import cbor
from tests.load import vectors
from tests.people import NOW, WEEK, Person, SoftKey, ed25519, p256, person, seed

ALICE, AUTHORITY = person("alice", "p256"), person("authority")
STAMP = ed25519(seed("stamp"))
ATTRIBUTES = {b"b": b"2", b"aa": b"1", b"": b""}


def unhex(text: str) -> bytes:
    return bytes.fromhex(text)


def attest(who: Person, now: int = NOW, lifetime: int = WEEK) -> Attestation:
    return attest_channel_key(who.history, seed("x"), who.key.sign, now=now, lifetime=lifetime)


def attestation(
    who: Person = ALICE,
    *,
    subject: bytes | None = None,
    change_hash: bytes | None = None,
    key: object = (0, (bytes(32),)),
    created_at: object = NOW,
    expires_at: object = NOW + WEEK,
    signer: SoftKey | None = None,
    kind: int = 2,
) -> bytes:
    """An attestation with any one thing about it wrong."""
    body = [
        subject or who.identifier,
        change_hash or who.history.latest.hash,
        key,
        created_at,
        expires_at,
    ]
    data = cbor.encode([1, kind, cbor.encode(body)])
    signature = (signer or who.key).sign(sha256(data).digest())
    return cbor.encode([data, [0 if who.key.public.kind == "ed25519" else 1, [signature]]])


# --- attestations


def test_the_attestations_of_the_worked_example() -> None:
    everything = vectors("secure-channel-selfmade")
    now = everything["verification_clock"]
    for name, whose in {
        "initiator": "initiator",
        "responder": "responder",
        "authority_credential_key": "authority",
        "initiator_after_rotation": "initiator_rotated",
    }.items():
        v = everything["attestations"][name]
        history = ChangeHistory.decode(unhex(everything["identities"][whose]["change_history"]))
        read = Attestation.decode(unhex(v["attestation"]))
        assert read.encoded.hex() == v["attestation"]
        assert read.data.hex() == v["versioned_data"]
        assert (read.credential_key is None) == (name != "authority_credential_key")
        read.verify(history, now)
    public = everything["x25519_public"]["initiator_static"]
    key = ed25519(unhex(everything["private_keys"]["initiator_identity_ed25519_seed"]))
    history = ChangeHistory.decode(unhex(everything["identities"]["initiator"]["change_history"]))
    read = Attestation.decode(unhex(everything["attestations"]["initiator"]["attestation"]))
    made = attest_channel_key(
        history,
        unhex(public),
        key.sign,
        now=read.created_at,
        lifetime=read.expires_at - read.created_at,
    )
    assert made == read
    rotated = ChangeHistory.decode(
        unhex(everything["identities"]["initiator_rotated"]["change_history"])
    )
    with pytest.raises(TrustError, match="latest"):  # the old key's, after the rotation
        read.verify(rotated, now)


def test_an_attestation_has_193_bytes() -> None:
    made = attest(person("bob"))
    assert len(made.encoded) == 193
    assert made.channel_key == seed("x")
    assert made.credential_key is None


def test_it_is_clamped_to_the_life_of_the_identity_key() -> None:
    """02 §4.2."""
    key = ed25519(seed("short"))
    history = create(key.public, key.sign, valid_from=1000, valid_until=2000)

    def made(now: int) -> Attestation:
        return attest_channel_key(history, bytes(32), key.sign, now=now, lifetime=500)

    assert (made(1200).created_at, made(1200).expires_at) == (1200, 1700)
    assert made(1800).expires_at == 2000
    assert made(2000).expires_at == 2000
    assert made(900).created_at == 1000  # our clock is behind
    asked = []
    with pytest.raises(TrustError, match="expired"):
        attest_channel_key(history, bytes(32), asked.append, now=2001, lifetime=500)  # type: ignore[arg-type]
    assert asked == []  # no signature for nothing


@pytest.mark.parametrize(
    ("now", "allow_future", "why"),
    [
        (NOW - 60, False, None),
        (NOW - 61, False, "future"),
        (NOW - 61, True, None),
        (0, True, None),
        (NOW + WEEK, False, None),
        (NOW + WEEK + 1, False, "expired"),
        (NOW + WEEK + 1, True, "expired"),
    ],
)
def test_the_clock(now: int, allow_future: bool, why: str | None) -> None:
    """02 §10, 16."""
    read = Attestation.decode(attestation())
    if why is None:
        read.verify(ALICE.history, now, allow_future=allow_future)
    else:
        with pytest.raises(TrustError, match=why):
            read.verify(ALICE.history, now, allow_future=allow_future)


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (attestation(subject=bytes(32)), "is of"),
        (attestation(change_hash=bytes(32)), "latest key"),
        (attestation(expires_at=ALICE.history.latest.valid_until + 1), "outlives"),
        (attestation(created_at=NOW - 1), "older than the key"),
        (attestation(signer=p256(seed("mallory"))), "does not verify"),
        (attestation(AUTHORITY), "is of"),
    ],
)
def test_well_formed_but_not_accepted(bad: bytes, why: str) -> None:
    with pytest.raises(TrustError, match=why):
        Attestation.decode(bad).verify(ALICE.history, NOW)


@pytest.mark.parametrize(
    "bad",
    [
        attestation(kind=1),
        attestation(key=[2, [bytes(32)]]),
        attestation(key=[0, []]),
        attestation(key=[0, [bytes(31)]]),
        attestation(key=[1, [bytes(32)]]),
        attestation(subject=bytes(31)),
        attestation(created_at=-1),
        attestation(expires_at=None),
        cbor.encode([]),
        cbor.encode([b"", [0, [bytes(64)]]]),
        b"",
    ],
)
def test_not_an_attestation(bad: bytes) -> None:
    with pytest.raises(DecodeError):
        Attestation.decode(bad)


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    with pytest.raises(DecodeError):
        Attestation.decode(data)
    with pytest.raises(DecodeError):
        Credential.decode(data)


# --- credentials


def stamped(key: SoftKey = STAMP, now: int = NOW) -> Attestation:
    return attest_credential_key(
        AUTHORITY.history, key.public, AUTHORITY.key.sign, now=now, lifetime=WEEK
    )


def issued(key: SoftKey = STAMP, now: int = NOW, lifetime: int = 1800) -> Credential:
    return issue(ALICE.history, ATTRIBUTES, stamped(key), key.sign, now=now, lifetime=lifetime)


def acquainted() -> Known:
    known = Known()
    known.learn(AUTHORITY.history)
    return known


@pytest.mark.parametrize("key", [STAMP, p256(seed("stamp"))], ids=["ed25519", "p256"])
def test_a_credential(key: SoftKey) -> None:
    credential = Credential.decode(issued(key).encoded)
    credential.verify(ALICE.identifier, {AUTHORITY.identifier}, acquainted(), NOW)
    assert credential.attributes == ATTRIBUTES
    assert list(credential.attributes) == [b"", b"aa", b"b"]  # lexicographic (02 §2)
    assert credential.issuer == AUTHORITY.identifier
    assert credential.schema == 1
    assert credential.change_hash == ALICE.history.latest.hash
    assert issued(lifetime=2 * WEEK).expires_at == NOW + WEEK


def test_the_credentials_of_the_worked_example() -> None:
    everything = vectors("secure-channel-selfmade")
    now, keys = everything["verification_clock"], everything["private_keys"]
    authority = ChangeHistory.decode(unhex(everything["identities"]["authority"]["change_history"]))
    stamp = ed25519(unhex(keys["authority_credential_ed25519_seed"]))
    known = Known()
    known.learn(authority)
    for name, whose in {
        "initiator": "initiator_rotated",
        "responder": "responder",
        "initiator_refreshed": "initiator_rotated",
    }.items():
        v = everything["credentials"][name]
        subject = ChangeHistory.decode(unhex(everything["identities"][whose]["change_history"]))
        read = Credential.decode(unhex(v["credential_and_purpose_key"]))
        read.verify(subject.identifier, [authority.identifier], known, now, allow_future=True)
        made = issue(
            subject,
            read.attributes,
            read.attestation,
            stamp.sign,
            now=read.created_at,
            lifetime=read.expires_at - read.created_at,
            schema=read.schema,
        )
        assert made.encoded.hex() == v["credential_and_purpose_key"]


def test_the_credential_of_upstream() -> None:
    v = vectors("secure-channel-messages-upstream")["refresh_credentials"]
    padded = items(unhex(v["hex"]))
    refresh = items(items(items(padded[0])[1])[0])
    history = ChangeHistory.decode(refresh[0])
    history.verify(Identifier.parse(v["change_history_identifier"]))
    (pair,) = items(refresh[1])
    credential = Credential.decode(pair)
    assert str(credential.subject) == v["credential_subject"]
    assert {k.decode(): a.decode() for k, a in credential.attributes.items()} == v[
        "credential_attributes"
    ]
    assert credential.schema == v["credential_schema"]
    assert credential.created_at == v["credential_created_at"]
    assert credential.expires_at == v["credential_expires_at"]
    assert credential.signature.value.hex() == v["credential_signature"]
    assert str(credential.issuer) == v["attestation_subject"]
    key = credential.attestation.credential_key
    assert key is not None
    credential.signature.check(key, credential.data, "credential")
    with pytest.raises(TrustError, match="not known"):
        credential.verify(history.identifier, [credential.issuer], Known(), NOW)


def test_not_a_credential_upstream() -> None:
    for v in vectors("must-reject-upstream")["credentials"]:
        with pytest.raises(DecodeError):
            Credential.decode(unhex(v["hex"]))


def credential(
    *,
    subject: object = ALICE.identifier,
    change_hash: object = bytes(32),
    attributes: object = (1, {b"a": b"b"}),
    created_at: object = NOW,
    expires_at: object = NOW + 1800,
    signer: SoftKey = STAMP,
    kind: int = 3,
    key: Attestation | None = None,
) -> bytes:
    """A credential with any one thing about it wrong."""
    body = [subject, change_hash, attributes, created_at, expires_at]
    data = cbor.encode([1, kind, cbor.encode(body)])
    signature = [0, [signer.sign(sha256(data).digest())]]
    return cbor.encode([[data, signature], cbor.Raw((key or stamped()).encoded)])


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (credential(subject=None), "not of"),
        (credential(subject=AUTHORITY.identifier), "not of"),
        (credential(created_at=NOW - 1), "inside the life"),
        (credential(expires_at=NOW + WEEK + 1), "inside the life"),
        (credential(created_at=NOW + 61), "future"),
        (credential(expires_at=NOW - 1), "expired"),
        (credential(signer=ed25519(seed("mallory"))), "does not verify"),
        (credential(key=attest(AUTHORITY)), "not for signing"),
        (credential(key=stamped(p256(seed("p")))), "of one kind"),
    ],
)
def test_credentials_that_are_not_accepted(bad: bytes, why: str) -> None:
    with pytest.raises(TrustError, match=why):
        Credential.decode(bad).verify(ALICE.identifier, [AUTHORITY.identifier], acquainted(), NOW)


def test_authorities() -> None:
    good = issued()
    with pytest.raises(TrustError, match="not an authority"):
        good.verify(ALICE.identifier, [ALICE.identifier], acquainted(), NOW)
    with pytest.raises(TrustError, match="expired"):
        good.verify(ALICE.identifier, [AUTHORITY.identifier], acquainted(), NOW + 1801)
    known = Known()
    known.learn(AUTHORITY.rotate(STAMP).history)
    with pytest.raises(TrustError, match="latest key"):
        good.verify(ALICE.identifier, [AUTHORITY.identifier], known, NOW)
    with pytest.raises(TrustError, match="not for signing"):
        issue(ALICE.history, {}, attest(AUTHORITY), STAMP.sign, now=NOW, lifetime=1)
    assert Credential.decode(credential(change_hash=None)).change_hash is None


@pytest.mark.parametrize(
    "bad",
    [
        credential(subject=bytes(20)),
        credential(change_hash=bytes(20)),
        credential(attributes=[1]),
        credential(attributes=[-1, {}]),
        credential(attributes=[1, []]),
        credential(attributes=[1, {"a": b"b"}]),
        credential(attributes=[1, {b"a": "b"}]),
        credential(created_at=None),
        credential(kind=2),
        cbor.encode([[b"", [0, [bytes(64)]]]]),
    ],
)
def test_not_a_credential(bad: bytes) -> None:
    with pytest.raises(DecodeError):
        Credential.decode(bad)


# --- structures cut into what arrived


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("80", []),
        ("820102", ["01", "02"]),
        ("82190001f6ff", ["190001", "f6"]),
        ("9f01820203ff00", ["01", "820203"]),
        ("9801430102030405", ["43010203"]),
        ("98024301020304", ["43010203", "04"]),
        ("99000107", ["07"]),
        ("9b000000000000000107", ["07"]),
    ],
)
def test_items(data: str, expected: list[str]) -> None:
    assert [item.hex() for item in items(unhex(data))] == expected


@pytest.mark.parametrize(
    "data",
    ["", "01", "8201", "98", "9f01", "9c00", "9effff", "a10102", "9bffffffffffffffff00", "ff"],
)
def test_no_items(data: str) -> None:
    with pytest.raises(DecodeError):
        items(unhex(data))


@given(st.binary(max_size=60))
def test_items_agree_with_the_decoder(data: bytes) -> None:
    try:
        value, _ = cbor.decode_prefix(data)
    except DecodeError:
        return
    if isinstance(value, list):
        assert repr([cbor.decode(item) for item in items(data)]) == repr(value)  # NaN is not NaN
