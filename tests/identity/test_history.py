"""Identities: upstream's own, the worked example, and what is refused (02 §3)."""

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import DecodeError, TrustError
from edge.identity.history import (
    MAX_CHANGES,
    ChangeHistory,
    Comparison,
    Identifier,
    create,
)
from edge.identity.keys import KeyKind, PublicKey, Signature, signed
from edge.wire import cbor
from tests.load import vectors
from tests.people import KINDS, NOW, SoftKey, ed25519, p256, person, seed

KEY_TYPES = {"EdDSACurve25519": KeyKind.ED25519, "ECDSASHA256CurveP256": KeyKind.P256}


@pytest.mark.parametrize(
    "v", vectors("identities-upstream")["vectors"], ids=lambda v: v["identifier"][:9]
)
def test_the_identities_of_upstream(v: dict[str, str]) -> None:
    history = ChangeHistory.decode(bytes.fromhex(v["change_history"]))
    history.verify(Identifier.parse(v["identifier"]))
    latest = history.latest
    assert str(history.identifier) == v["identifier"]
    assert latest.key == PublicKey(KEY_TYPES[v["key_type"]], bytes.fromhex(v["public_key"]))
    assert latest.revoke is v["revoke_all_purpose_keys"]
    assert latest.valid_from == v["attestations_valid_from"]
    assert latest.valid_until == v["attestations_valid_until"]
    assert latest.signature.value.hex() == v["signature"]
    assert history.encoded.hex() == v["change_history"]
    if "ed25519_secret_seed" in v:
        key = ed25519(bytes.fromhex(v["ed25519_secret_seed"]))
        again = create(
            key.public, key.sign, valid_from=latest.valid_from, valid_until=latest.valid_until
        )
        assert again == history
        assert hash(again) == hash(history)


@pytest.mark.parametrize("name", ["initiator", "responder", "authority", "initiator_rotated"])
def test_the_identities_of_the_worked_example(name: str) -> None:
    v = vectors("secure-channel-selfmade")["identities"][name]
    history = ChangeHistory.decode(bytes.fromhex(v["change_history"]))
    history.verify()
    assert str(history.identifier) == v["identifier"]
    for change, expected in zip(history.changes, v["changes"], strict=True):
        assert change.hash.hex() == expected["change_hash"]
        assert change.data.hex() == expected["versioned_data"]
        assert cbor.encode(change.structure()).hex() == expected["change"]


def test_the_worked_example_is_rebuilt() -> None:
    everything = vectors("secure-channel-selfmade")
    keys = everything["private_keys"]
    v = everything["identities"]["initiator"]
    key = ed25519(bytes.fromhex(keys["initiator_identity_ed25519_seed"]))
    history = create(key.public, key.sign, valid_from=1_700_000_000, valid_until=2_015_360_000)
    assert history.encoded.hex() == v["change_history"]
    rotated = ChangeHistory.decode(
        bytes.fromhex(everything["identities"]["initiator_rotated"]["change_history"])
    )
    assert history.compare(rotated) is Comparison.NEWER
    assert rotated.compare(history) is Comparison.OLDER


@pytest.mark.parametrize("v", vectors("must-reject-upstream")["change_histories"], ids=[0, 1])
def test_obsolete_histories(v: dict[str, str]) -> None:
    with pytest.raises(DecodeError):
        ChangeHistory.decode(bytes.fromhex(v["hex"]))


@pytest.mark.parametrize(
    "text",
    [
        *(v["text"] for v in vectors("must-reject-upstream")["identifier_strings"]),
        "",
        "I",
        "i" + "00" * 32,
        "I" + "0g" * 32,
        "I" + "00" * 33,
        "I" + "00 " * 21 + "0",
    ],
)
def test_texts_that_are_no_identifier(text: str) -> None:
    with pytest.raises(DecodeError):
        Identifier.parse(text)


def test_the_text_of_an_identifier() -> None:
    identifier = person("alice").identifier
    assert Identifier.parse(f"  I{identifier.hex().upper()}\n") == identifier
    assert repr(identifier) == f"Identifier({identifier})"
    with pytest.raises(DecodeError):
        Identifier(bytes(20))


# --- rotation and comparison


@pytest.mark.parametrize("old", [ed25519(seed("old")), p256(seed("old"))], ids=["ed25519", "p256"])
@pytest.mark.parametrize("new", [ed25519(seed("new")), p256(seed("new"))], ids=["ed25519", "p256"])
def test_rotation(old: SoftKey, new: SoftKey) -> None:
    first = create(old.public, old.sign, valid_from=NOW, valid_until=NOW + 10)
    # A new key may begin after the old one has ended (02 §3.3).
    second = first.rotated(new.public, new.sign, old.sign, valid_from=NOW + 20, valid_until=NOW)
    third = second.rotated(old.public, old.sign, new.sign, valid_from=NOW + 20, valid_until=NOW)
    ChangeHistory.decode(third.encoded).verify(first.identifier)
    other = first.rotated(new.public, new.sign, old.sign, valid_from=NOW + 21, valid_until=NOW)
    assert first != second
    assert first.compare(third) is Comparison.NEWER
    assert third.compare(second) is Comparison.OLDER
    assert third.compare(third) is Comparison.SAME
    assert third.compare(other) is Comparison.CONFLICT
    with pytest.raises(TrustError, match="before its predecessor"):
        second.rotated(old.public, old.sign, new.sign, valid_from=NOW + 19, valid_until=NOW)


def test_a_vault_that_signs_wrongly_is_found_out() -> None:
    key, other = ed25519(seed("key")), ed25519(seed("other"))
    with pytest.raises(TrustError):
        create(key.public, other.sign, valid_from=0, valid_until=1)
    with pytest.raises(TrustError):
        create(key.public, lambda data: b"", valid_from=0, valid_until=1)
    token = p256(seed("token"))
    with pytest.raises(TrustError):  # the single hash of 02 §1.3
        signed(token.public, lambda _: token.sign(b"data"), b"data", "test")
    history = create(key.public, key.sign, valid_from=0, valid_until=1)
    with pytest.raises(TrustError):
        history.rotated(other.public, other.sign, other.sign, valid_from=0, valid_until=1)


# --- histories that are refused


def change(
    key: SoftKey,
    previous: bytes | None = None,
    *,
    before: SoftKey | None = None,
    signer: SoftKey | None = None,
    version: object = 1,
    kind: object = 1,
    body: list[object] | None = None,
) -> list[object]:
    """A change with any one thing about it wrong."""
    inner = body or [previous, key.public.structure(), False, NOW, NOW]
    data = cbor.encode([version, kind, cbor.encode(inner)])
    digest = sha256(data).digest()
    number = 0 if key.public.kind is KeyKind.ED25519 else 1
    fields: list[object] = [data, [number, [(signer or key).sign(digest)]]]
    return [*fields, [0, [before.sign(digest)]]] if before else fields


ONE, TWO = ed25519(seed("one")), ed25519(seed("two"))
FIRST = change(ONE)
FIRST_HASH = sha256(FIRST[0]).digest()  # type: ignore[arg-type]
TOKEN = p256(seed("token"))


def decoded(*changes: object) -> ChangeHistory:
    return ChangeHistory.decode(cbor.encode(list(changes)))


def test_a_good_one_by_hand() -> None:
    decoded(FIRST, change(TWO, FIRST_HASH, before=ONE)).verify()
    # A previous signature on the first change is ignored, even a bad one (02 §3.3, 3).
    decoded([*FIRST, [0, [bytes(64)]]]).verify()
    # Null, an unknown variant, and more elements than we know (02 §2).
    decoded([*FIRST, None, b"more"]).verify()
    decoded([*FIRST, [2, [b"new kind"]]]).verify()
    # What follows the history is not part of it.
    assert ChangeHistory.decode(cbor.encode([FIRST]) + b"\x00").encoded == cbor.encode([FIRST])


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ([change(ONE, bytes(32))], "names a change before"),
        ([change(ONE, signer=TWO)], "does not verify"),
        ([change(TOKEN, signer=ONE)], "does not verify"),
        ([[FIRST[0], [1, [bytes(64)]]]], "one kind and a key of the other"),
        ([FIRST, change(TWO, bytes(32), before=ONE)], "name its predecessor"),
        ([FIRST, change(TWO, None, before=ONE)], "name its predecessor"),
        ([FIRST, change(TWO, FIRST_HASH)], "without the signature"),
        ([FIRST, change(TWO, FIRST_HASH, before=TWO)], "by the key before it"),
        ([FIRST, change(TWO, FIRST_HASH, before=ONE, signer=ONE)], "does not verify"),
        ([FIRST, FIRST], "name its predecessor"),
    ],
)
def test_well_formed_but_not_accepted(changes: list[object], why: str) -> None:
    with pytest.raises(TrustError, match=why):
        decoded(*changes).verify()


def test_another_identity_than_expected() -> None:
    with pytest.raises(TrustError, match="not of"):
        decoded(FIRST).verify(person("alice").identifier)


KEY = ONE.public.structure()


@pytest.mark.parametrize(
    "bad",
    [
        [],
        [FIRST[0]],
        FIRST[::-1],
        change(ONE, version=2),
        change(ONE, version=256),
        change(ONE, version=True),
        change(ONE, kind=2),
        change(ONE, body=[None, KEY, False, NOW]),
        change(ONE, body=[bytes(20), KEY, False, NOW, NOW]),
        change(ONE, body=[None, KEY, 0, NOW, NOW]),
        change(ONE, body=[None, KEY, None, NOW, NOW]),
        change(ONE, body=[None, KEY, False, -1, NOW]),
        change(ONE, body=[None, KEY, False, NOW, None]),
        change(ONE, body=[None, None, False, NOW, NOW]),
        change(ONE, body=[None, [2, [bytes(32)]], False, NOW, NOW]),
        change(ONE, body=[None, [0, []], False, NOW, NOW]),
        change(ONE, body=[None, [0, [bytes(33)]], False, NOW, NOW]),
        change(ONE, body=[None, [1, [bytes(65)]], False, NOW, NOW]),
        change(ONE, body=[None, [1, [b"\x02" + bytes(32)]], False, NOW, NOW]),
        [FIRST[0], [0, [bytes(63)]]],
        [FIRST[0], [2, [bytes(64)]]],
        [FIRST[0], None],
        [*FIRST, [0, [bytes(63)]]],
    ],
)
def test_not_a_change(bad: object) -> None:
    with pytest.raises(DecodeError):
        decoded(bad)


def test_more_changes_than_anybody_is_to_verify() -> None:
    assert len(decoded(*[FIRST] * MAX_CHANGES).changes) == MAX_CHANGES
    with pytest.raises(DecodeError, match="more than 64 changes"):
        decoded(*[FIRST] * (MAX_CHANGES + 1))


def test_an_empty_history() -> None:
    with pytest.raises(DecodeError, match="without a change"):
        ChangeHistory.decode(b"\x80")


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    with pytest.raises(DecodeError):
        ChangeHistory.decode(data)


@given(st.sampled_from(KINDS), st.data())
def test_any_damage(kind: str, data: st.DataObject) -> None:
    """Every byte of a history counts, or it does not decode."""
    encoded = bytearray(person("alice", kind).history.encoded)
    position = data.draw(st.integers(0, len(encoded) - 1))
    encoded[position] ^= data.draw(st.integers(1, 255))
    with pytest.raises((DecodeError, TrustError)):
        ChangeHistory.decode(bytes(encoded)).verify(person("alice", kind).identifier)


# --- keys


def test_a_high_s_is_as_good_as_a_low_one() -> None:
    v = vectors("primitives-upstream")["ecdsa_p256_high_s"]
    key = PublicKey(KeyKind.P256, bytes.fromhex(v["public_key_uncompressed"]))
    signature = bytes.fromhex(v["signature_r_s"])
    assert key == p256(bytes.fromhex(v["private_scalar"])).public
    assert key.verify(signature, bytes.fromhex(v["message"]))
    assert not key.verify(signature, b"another")


@pytest.mark.parametrize(
    ("key", "signature"),
    [
        (ONE.public, bytes(63)),
        (ONE.public, bytes(65)),
        (ONE.public, bytes(64)),
        (TOKEN.public, bytes(64)),
        (TOKEN.public, b"\xff" * 64),
        (PublicKey(KeyKind.P256, b"\x04" + bytes(64)), bytes(64)),
        (PublicKey(KeyKind.ED25519, b"\xff" * 32), b"\x01" * 64),
    ],
)
def test_signatures_that_are_none(key: PublicKey, signature: bytes) -> None:
    assert key.verify(signature, bytes(32)) is False


def test_a_signature_knows_its_kind() -> None:
    with pytest.raises(TrustError, match="kind"):
        Signature(KeyKind.P256, bytes(64)).check(ONE.public, b"", "test")
