"""What every vault must do. A new backend is finished when this passes with its URI."""

import uuid

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, utils

from vault_backends.vault import (
    Attests,
    Exists,
    Key,
    Kind,
    Misconfigured,
    NotFound,
    Unsupported,
    Vault,
    VaultError,
)


@pytest.fixture
def vault(vault_uri, opened):
    return opened(vault_uri)


@pytest.fixture(params=list(Kind))
def kind(request, vault):
    if request.param not in vault.kinds:
        pytest.skip(f"this vault holds no {request.param} keys")
    return request.param


@pytest.fixture
def key(vault, kind):
    made = vault.generate(kind, f"test-{uuid.uuid4().hex[:12]}")
    yield made
    if made in list(vault.keys()):
        vault.delete(made)


def check(kind: Kind, public: bytes, signature: bytes, data: bytes) -> None:
    assert len(signature) == 64
    if kind is Kind.ED25519:
        assert len(public) == 32
        ed25519.Ed25519PublicKey.from_public_bytes(public).verify(signature, data)
    else:
        assert len(public) == 65
        r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
        ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), public).verify(
            utils.encode_dss_signature(r, s), data, ec.ECDSA(hashes.SHA256())
        )


def test_signs(vault: Vault, key: Key) -> None:
    for data in (b"", b"\0" * 32, b"x" * 1000):
        check(key.kind, vault.public(key), vault.sign(key, data), data)


def test_signs_views_and_arrays_whole(vault: Vault, key: Key) -> None:
    data = bytearray(b"0123456789")
    check(key.kind, vault.public(key), vault.sign(key, memoryview(data)[2:5]), b"234")
    check(key.kind, vault.public(key), vault.sign(key, data), bytes(data))


def test_signature_is_of_the_data(vault: Vault, key: Key) -> None:
    with pytest.raises(InvalidSignature):
        check(key.kind, vault.public(key), vault.sign(key, b"one"), b"other")


def test_p256_signature_is_always_64_bytes(vault: Vault, key: Key) -> None:
    # r or s has a leading zero byte in one of 128 signatures
    for n in range(300 if key.kind is Kind.P256 else 1):
        assert len(vault.sign(key, n.to_bytes(2, "big"))) == 64


def test_lists_what_it_made(vault: Vault, key: Key) -> None:
    assert key in list(vault.keys())
    assert all(isinstance(one, Key) and isinstance(one.kind, Kind) for one in list(vault.keys()))


def test_keys_survive(vault_uri: str, vault: Vault, key: Key, opened) -> None:
    public = vault.public(key)
    first = opened(vault_uri)
    made = first.generate(key.kind, key.label + "-survives")
    made_public = first.public(made)
    first.close()
    again = opened(vault_uri)
    assert (again.public(key), again.public(made)) == (public, made_public)
    check(key.kind, made_public, again.sign(made, b"again"), b"again")
    again.delete(made)


def test_second_vault_sees_changes_at_once(vault_uri, vault, kind, opened) -> None:
    other = opened(vault_uri)
    label = f"test-{uuid.uuid4().hex[:12]}"
    list(other.keys())
    key = vault.generate(kind, label)
    check(kind, vault.public(key), other.sign(key, b"seen"), b"seen")
    other.delete(key)
    assert key not in list(vault.keys())


def test_label_is_taken(vault: Vault, key: Key) -> None:
    public = vault.public(key)
    for kind in vault.kinds:
        with pytest.raises(Exists, match=key.label):
            vault.generate(kind, key.label)
    assert vault.public(key) == public
    assert [one.label for one in list(vault.keys())].count(key.label) == 1


def test_keys_are_different(vault: Vault, key: Key) -> None:
    other = vault.generate(key.kind, key.label + "2")
    assert vault.public(other) != vault.public(key)
    vault.delete(other)
    assert key in list(vault.keys())
    check(key.kind, vault.public(key), vault.sign(key, b"still"), b"still")


def test_deleted_is_gone(vault: Vault, key: Key) -> None:
    vault.sign(key, b"x")
    vault.delete(key)
    assert key not in list(vault.keys())
    for act in (vault.public, vault.delete, lambda key: vault.sign(key, b"x")):
        with pytest.raises(NotFound, match=key.label):
            act(key)
    again = vault.generate(key.kind, key.label)  # the name is free again
    check(key.kind, vault.public(again), vault.sign(again, b"x"), b"x")


def test_unknown_key(vault: Vault, kind: Kind) -> None:
    with pytest.raises(NotFound, match="no-such-key"):
        vault.sign(Key(kind, "no-such-key"), b"x")


def test_kind_is_part_of_the_name(vault: Vault, key: Key) -> None:
    other = Kind.P256 if key.kind is Kind.ED25519 else Kind.ED25519
    with pytest.raises(NotFound, match=other):
        vault.public(Key(other, key.label))


@pytest.mark.parametrize("label", ["", "a\0b", "line\nbreak", "x" * 300])
def test_bad_labels(vault: Vault, kind: Kind, label: str) -> None:
    with pytest.raises(Misconfigured, match="label"):
        vault.generate(kind, label)


def test_cannot_do_what_it_does_not_claim(vault: Vault) -> None:
    for kind in set(Kind) - vault.kinds:
        with pytest.raises(Unsupported):
            vault.generate(kind, "test-unsupported")


def test_describes_keys_without_secrets(vault: Vault, key: Key) -> None:
    assert isinstance(vault, Attests)
    said = vault.describe(key)
    assert said["label"] == key.label
    assert said["kind"] == key.kind.value


def test_closed_is_closed(vault_uri: str, kind: Kind, opened) -> None:
    vault = opened(vault_uri)
    vault.close()
    vault.close()
    with pytest.raises(VaultError, match="closed"):
        list(vault.keys())
    with pytest.raises(VaultError, match="closed"):
        vault.generate(kind, "test-closed")
