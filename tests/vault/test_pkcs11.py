"""The keys of a token: made, found, used and deleted. Over SoftHSM."""

import dataclasses
import re

import pytest

pkcs11 = pytest.importorskip("pkcs11")

from pkcs11 import Attribute, KeyType, Mechanism  # noqa: E402

from vault_backends.pkcs11 import points, profiles  # noqa: E402
from vault_backends.vault import (  # noqa: E402
    Attests,
    DeviceGone,
    Exists,
    Key,
    Kind,
    Misconfigured,
    NotFound,
    Refused,
    Token,
)


def test_key_stays_inside(vault, key) -> None:
    for one in (key, vault.generate(Kind.P256, "p256")):
        said = vault.describe(one)
        expected = {
            "extractable": False,
            "sensitive": True,
            "always_sensitive": True,
            "never_extractable": True,
            "local": True,
            "private": True,
        }
        assert expected.items() <= said.items()
        assert (said["token"], said["profile"]) == ("edge", "softhsm")
        assert said["serial"]
        assert said["module"].startswith("/")
        private = vault._found[one].private
        with pytest.raises(pkcs11.AttributeSensitive):
            private[Attribute.VALUE]
        with pytest.raises(pkcs11.AttributeReadOnly):
            private[Attribute.EXTRACTABLE] = True


def test_powers(vault) -> None:
    assert isinstance(vault, Token)
    assert isinstance(vault, Attests)


def test_one_login(vault, key) -> None:
    for _ in range(5):
        vault.sign(key, b"x")
    vault.public(key)
    list(vault.keys())
    vault.state()
    vault.probe()
    with pytest.raises(NotFound):
        vault.public(Key(Kind.ED25519, "absent"))
    assert (vault.logins, vault.signs) == (1, 5)


def test_two_vaults_share_the_login(soft_token, vault, key, opened) -> None:
    other = opened(soft_token.uri())
    assert other.public(key) == vault.public(key)
    assert vault.logins + other.logins == 1
    other.close()  # and does not log the first one out
    vault.sign(key, b"x")
    assert vault.logins == 1


def test_two_tokens_of_one_module(soft_token, vault, key, opened) -> None:
    vault.close()
    soft_token.init("second")
    first, second = opened(soft_token.uri()), opened(soft_token.uri("token=second"))
    there = second.generate(Kind.ED25519, "identity")
    assert first.public(key) != second.public(there)
    first.reopen()  # ends the sessions of both
    assert second.sign(there, b"x")
    assert first.sign(key, b"x")
    assert list(first.keys()) == [key]


def test_generate_twice(vault, key) -> None:
    public = vault.public(key)
    for kind in Kind:
        with pytest.raises(Exists, match="identity"):
            vault.generate(kind, "identity")
    assert vault.public(key) == public


def test_id_is_taken(soft_token, opened, key) -> None:
    taken = points.key_id("identity", 20)
    uri = soft_token.uri("token=edge;id=" + "".join(f"%{byte:02x}" for byte in taken))
    with pytest.raises(Exists, match=taken.hex()):
        opened(uri).generate(Kind.P256, "other")


def test_object_and_id_in_the_uri(soft_token, vault, key, opened) -> None:
    named = opened(soft_token.uri("token=edge;object=second;id=%01%02;type=private"))
    assert list(named.keys()) == []
    with pytest.raises(NotFound):
        named.public(key)
    with pytest.raises(Misconfigured, match="object=second"):
        named.generate(Kind.P256, "third")
    made = named.generate(Kind.P256, "second")
    assert list(named.keys()) == [made]
    assert vault.describe(made)["id"] == "0102"


def test_keys_of_others_are_left_alone(vault, key) -> None:
    session = vault.login._session
    x25519 = bytes.fromhex("06032b656e")
    session.create_domain_parameters(
        KeyType.EC_EDWARDS, {Attribute.EC_PARAMS: x25519}, local=True
    ).generate_keypair(
        id=b"x", label="x", store=True, mechanism=Mechanism.EC_EDWARDS_KEY_PAIR_GEN, capabilities=0
    )
    session.generate_keypair(KeyType.RSA, 1024, id=b"r", label="rsa", store=True)
    session.create_domain_parameters(
        KeyType.EC, {Attribute.EC_PARAMS: bytes.fromhex("06052b81040022")}, local=True
    ).generate_keypair(id=b"3", label="p384", store=True, mechanism=Mechanism.EC_KEY_PAIR_GEN)
    assert list(vault.keys()) == [key]
    for label in ("x", "rsa", "p384"):
        for kind in Kind:
            with pytest.raises(NotFound):
                vault.sign(Key(kind, label), b"x")


def test_duplicates_are_listed(soft_token, vault, opened) -> None:
    for number in ("0a", "0b"):
        soft_token.tool(
            "--keypairgen", "--key-type", "EC:prime256v1", "--label", "k", "--id", number
        )
    vault.reopen()
    for act in (vault.public, vault.delete):
        with pytest.raises(Misconfigured, match=r"ids 0[ab], 0[ab]") as caught:
            act(Key(Kind.P256, "k"))
        assert (
            len(re.findall(r"\n  pkcs11:token=edge;object=k;id=%0[ab]\?", caught.value.hint)) == 2
        )
    one = opened(soft_token.uri("token=edge;id=%0b"))
    one.sign(Key(Kind.P256, "k"), b"x")
    one.delete(Key(Kind.P256, "k"))
    assert vault.describe(Key(Kind.P256, "k"))["id"] == "0a"


def test_extractable_key_is_refused(vault, key) -> None:
    vault.login._session.create_domain_parameters(
        KeyType.EC, {Attribute.EC_PARAMS: profiles.P256_OID}, local=True
    ).generate_keypair(
        id=b"e",
        label="loose",
        store=True,
        mechanism=Mechanism.EC_KEY_PAIR_GEN,
        private_template={Attribute.EXTRACTABLE: True, Attribute.SENSITIVE: False},
    )
    with pytest.raises(Refused, match="can be read out"):
        vault.sign(Key(Kind.P256, "loose"), b"x")


def public_objects(vault):
    return list(vault.login._session.get_objects({Attribute.CLASS: pkcs11.ObjectClass.PUBLIC_KEY}))


def test_missing_public_object(vault, key) -> None:
    public = vault.public(key)
    for one in public_objects(vault):
        one.destroy()
    vault.reopen()
    assert vault.public(key) == public  # pinned by the first look
    vault.sign(key, b"x")
    vault._pinned.clear()
    vault._found.clear()
    with pytest.raises(Refused, match="no public keys"):
        vault.sign(key, b"x")
    vault.pin(key, public)
    vault.sign(key, b"x")


def test_half_a_pair_can_be_deleted(vault, key) -> None:
    vault._found[key].private.destroy()
    vault.reopen()
    with pytest.raises(Exists):
        vault.generate(Kind.ED25519, "identity")
    with pytest.raises(NotFound):
        vault.sign(key, b"x")
    vault.delete(key)
    vault.generate(Kind.ED25519, "identity")


def test_exchanged_key_is_noticed(soft_token, vault, key, opened) -> None:
    vault.sign(key, b"x")
    other = opened(soft_token.uri())
    other.delete(key)
    other.generate(Kind.ED25519, "identity")
    with pytest.raises(DeviceGone):
        vault.sign(key, b"x")
    with pytest.raises(Refused, match="another key"):
        vault.sign(key, b"x")
    pinned = opened(soft_token.uri())
    pinned.pin(key, b"\0" * 32)
    with pytest.raises(Refused, match="another key"):
        pinned.public(key)


def test_first_use_is_a_test_of_the_key(soft_token, vault, key, opened) -> None:
    """The public object belongs to another key, so nothing signs for it."""
    other = vault.generate(Kind.ED25519, "other")
    theirs = vault._found[other]
    for one in public_objects(vault):
        if one[Attribute.LABEL] == "other":
            one[Attribute.ID] = b"away"
        else:
            one.destroy()
    vault.login._session.create_object(
        {
            Attribute.CLASS: pkcs11.ObjectClass.PUBLIC_KEY,
            Attribute.KEY_TYPE: KeyType.EC_EDWARDS,
            Attribute.EC_PARAMS: profiles.ED25519_NAME,
            Attribute.EC_POINT: b"\4\x20" + theirs.public,
            Attribute.ID: points.key_id("identity", 20),
            Attribute.LABEL: "identity",
            Attribute.TOKEN: True,
        }
    )
    for act in (lambda one: one.public(key), lambda one: one.sign(key, b"x")):
        with pytest.raises(Refused, match="does not verify"):
            act(opened(soft_token.uri()))


def test_first_use_signs_once(vault, key) -> None:
    for _ in range(3):
        vault.public(key)
    vault.reopen()
    vault.public(key)
    assert vault.signs == 1


def test_device_full_of_our_keys_starts_over(vault, key, monkeypatch) -> None:
    class Full:
        def sign(self, data, mechanism):
            raise pkcs11.GeneralError

    vault._found[key] = vault._found[key]._replace(private=Full())
    vault.login.profile = dataclasses.replace(vault.login.profile, few_objects=True)
    assert vault.sign(key, b"x")
    assert vault.logins == 2


def test_bad_signature_never_leaves(vault, key, monkeypatch) -> None:
    monkeypatch.setattr(
        points, "signature", lambda kind, value: value[:-1] + bytes([value[-1] ^ 1])
    )
    with pytest.raises(Refused, match="does not verify"):
        vault.sign(key, b"x")
