"""Sealing under a key in a token: SoftHSM, and a TPM 2.0 through tpm2-pkcs11 on swtpm."""

import os
import shutil
from collections.abc import Iterator

import pytest

pkcs11 = pytest.importorskip("pkcs11")

from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from pkcs11 import Attribute, KeyType, ObjectClass  # noqa: E402

from tests.tokens.tpm import Tpm  # noqa: E402
from vault_backends.pkcs11 import module, sealing  # noqa: E402
from vault_backends.pkcs11.objects import search  # noqa: E402
from vault_backends.pkcs11.sealing import LABEL, SUITES, Blob, Sealing  # noqa: E402
from vault_backends.vault import (  # noqa: E402
    DeviceGone,
    Key,
    Kind,
    Locked,
    NoSealKey,
    Refused,
    Seals,
    Unsupported,
    VaultError,
)

ECDH, OAEP256, OAEP1 = SUITES
SECRET, AAD = b"a secret of some length", b"what for"


def objects(vault, label: str = LABEL) -> list:
    with vault.login.logged_in() as session:
        both = (ObjectClass.PRIVATE_KEY, ObjectClass.PUBLIC_KEY)
        return [one for what in both for one in search(session, what, label=label)]


@pytest.fixture
def vault(soft_token, opened):
    return opened(soft_token.uri())


@pytest.fixture(params=[ECDH, OAEP1], ids=lambda suite: suite.name)
def sealed(request, vault):
    """A vault with a seal key."""
    assert vault.sealing.provision([request.param]) == request.param.name
    return vault


def test_is_a_power_of_the_vault(vault) -> None:
    assert isinstance(vault, Seals)


def test_opens_what_it_sealed(sealed) -> None:
    for secret in (b"", SECRET, os.urandom(5000)):
        blob = sealed.seal(secret, AAD)
        assert sealed.unseal(blob, AAD) == secret
        assert secret not in blob or not secret


def test_opens_after_a_restart(soft_token, sealed, opened) -> None:
    blob = sealed.seal(SECRET, AAD)
    sealed.close()
    assert opened(soft_token.uri()).unseal(blob, AAD) == SECRET
    assert opened(soft_token.uri("token=edge;object=identity")).unseal(blob, AAD) == SECRET


def test_two_blobs_have_nothing_in_common(sealed) -> None:
    one, two = (Blob.decode(sealed.seal(SECRET, AAD)) for _ in range(2))
    assert (one.suite, one.key) == (two.suite, two.key)
    assert len({one.header, two.header, one.nonce, two.nonce, one.box, two.box}) == 6


def test_other_aad(sealed) -> None:
    blob = sealed.seal(SECRET, AAD)
    for aad in (b"", AAD + b"\0", AAD[:-1]):
        with pytest.raises(Refused, match="does not open"):
            sealed.unseal(blob, aad)


def test_never_made_while_in_use(vault) -> None:
    with pytest.raises(NoSealKey, match=LABEL) as caught:
        vault.seal(SECRET, AAD)
    assert "vault seal" in caught.value.hint
    assert objects(vault) == []


def test_provisioning_again_changes_nothing(sealed) -> None:
    blob = sealed.seal(SECRET, AAD)
    suite = Blob.decode(blob).suite
    assert [sealed.sealing.provision() for _ in range(2)] == [suite, suite]
    assert len(objects(sealed)) == 2
    assert sealed.unseal(blob, AAD) == SECRET


def test_suite_that_fails_leaves_no_key(vault) -> None:
    # SoftHSM lists OAEP and refuses it with SHA-256.
    with pytest.raises(Unsupported, match=r"rsa-oaep-sha256.*ArgumentsBad"):
        vault.sealing.provision([OAEP256])
    assert objects(vault) == []
    assert vault.sealing.provision([OAEP256, OAEP1]) == "rsa-oaep-sha1"
    assert vault.unseal(vault.seal(SECRET, AAD), AAD) == SECRET


def test_no_suite_at_all(vault) -> None:
    with pytest.raises(Unsupported, match="mechanisms"):
        vault.sealing.provision([])


def test_suite_that_always_opens_is_refused(vault, monkeypatch) -> None:
    monkeypatch.setattr(Sealing, "unseal", lambda self, blob, aad: SECRET)
    with pytest.raises(Unsupported, match="opens what it should not"):
        vault.sealing.provision()
    assert objects(vault) == []


def test_what_the_token_does_not_give_back_is_not_sealed(sealed, monkeypatch) -> None:
    sealed.seal(SECRET, AAD)
    monkeypatch.setattr(Sealing, "_opened", lambda *_: b"other")
    with pytest.raises(Refused, match="give back"):
        sealed.seal(SECRET, AAD)


def foreign(soft_token, vault) -> None:
    soft_token.tool("--keypairgen", "--key-type", "rsa:2048", "--label", LABEL, "--id", "07")


def test_foreign_key_of_the_label_is_kept(soft_token, vault) -> None:
    foreign(soft_token, vault)
    before = [one[Attribute.ID] for one in objects(vault)]
    with pytest.raises(Refused, match="cannot seal") as caught:
        vault.sealing.provision()
    assert "never replaced" in caught.value.hint
    with pytest.raises(Refused, match="not made for sealing"):
        vault.seal(SECRET, AAD)
    assert [one[Attribute.ID] for one in objects(vault)] == before


def test_key_that_stopped_sealing_is_kept(sealed) -> None:
    public = next(one for one in objects(sealed) if one.object_class == ObjectClass.PUBLIC_KEY)
    public.destroy()
    sealed.reopen()
    with pytest.raises(Refused, match="no public keys"):
        sealed.sealing.provision()
    assert len(objects(sealed)) == 1


def test_two_keys_of_the_label(soft_token, sealed) -> None:
    foreign(soft_token, sealed)
    sealed.reopen()
    with pytest.raises(VaultError, match="2 keys"):
        sealed.seal(SECRET, AAD)
    with pytest.raises(Refused, match="2 keys"):
        sealed.sealing.provision()


def test_seal_key_does_only_that(sealed) -> None:
    private = objects(sealed)[0]
    assert private[Attribute.SENSITIVE]
    assert not private[Attribute.EXTRACTABLE]
    assert not private[Attribute.SIGN]
    assert not private[Attribute.UNWRAP]
    with pytest.raises(pkcs11.AttributeSensitive):
        private[Attribute.PRIVATE_EXPONENT if private.key_type is KeyType.RSA else Attribute.VALUE]


def test_seal_key_is_no_identity_key(sealed) -> None:
    key = sealed.generate(Kind.P256, "identity")
    assert list(sealed.keys()) == [key]
    assert Key(Kind.P256, LABEL) not in list(sealed.keys())


def test_derived_secrets_are_destroyed(soft_token, vault) -> None:
    vault.sealing.provision([ECDH])
    blob = vault.seal(SECRET, AAD)
    for _ in range(5):
        vault.unseal(blob, AAD)
    with vault.login.logged_in() as session:
        assert search(session, ObjectClass.SECRET_KEY) == []


def test_kek_is_overwritten(sealed, monkeypatch) -> None:
    seen = []

    class Cipher:
        def __init__(self, key) -> None:
            seen.append((key, bytes(key)))

        def encrypt(self, nonce: bytes, data: bytes, aad: bytes) -> bytes:
            return bytes(16) + data

        def decrypt(self, nonce: bytes, data: bytes, aad: bytes) -> bytes:
            return data[16:]

    monkeypatch.setattr(sealing, "AESGCM", Cipher)
    sealed.seal(SECRET, AAD)
    assert len(seen) == 2
    assert seen[0][1] == seen[1][1] != bytes(32)
    assert [bytes(key) for key, _ in seen] == [bytes(32)] * 2


def test_another_token(soft_token, sealed, opened) -> None:
    blob = sealed.seal(SECRET, AAD)
    sealed.close()
    soft_token.init("second")
    second = opened(soft_token.uri("token=second"))
    with pytest.raises(NoSealKey, match="no seal key"):
        second.unseal(blob, AAD)
    second.sealing.provision()
    with pytest.raises(Locked, match="this was sealed with the key"):
        second.unseal(blob, AAD)


def test_another_key_with_the_same_digest_in_the_blob(soft_token, sealed, opened) -> None:
    """Whoever edits the digest gets no further."""
    blob = Blob.decode(sealed.seal(SECRET, AAD))
    sealed.close()
    soft_token.init("second")
    second = opened(soft_token.uri("token=second"))
    second.sealing.provision([SUITES[[one.name for one in SUITES].index(blob.suite)]])
    theirs = Blob.decode(second.seal(b"", AAD)).key
    with pytest.raises((Refused, DeviceGone)):
        second.unseal(blob._replace(key=theirs).encode(), AAD)


def test_token_away(soft_token, sealed) -> None:
    blob = sealed.seal(SECRET, AAD)
    away = soft_token.folder / "away"
    shutil.move(soft_token.files, away)
    with pytest.raises(DeviceGone):
        sealed.unseal(blob, AAD)
    with pytest.raises(DeviceGone):
        sealed.sealing.provision()
    shutil.move(away, soft_token.folder / "tokens" / "back")
    assert sealed.unseal(blob, AAD) == SECRET
    assert len(objects(sealed)) == 2


# --- a TPM


@pytest.fixture
def tpm(tmp_path_factory, monkeypatch) -> Iterator[str]:
    """The URI of a token in a TPM that is the emulator swtpm."""
    if missing := Tpm.missing():
        pytest.skip(f"NO SEALING IN A TPM IS TESTED: {missing}")
    module.stop_all()
    with Tpm(tmp_path_factory.mktemp("tpm")) as token:
        for name, value in token.variables.items():
            monkeypatch.setenv(name, value)
        yield token.uri()
        module.stop_all()


def test_tpm(tpm: str, opened) -> None:
    """tpm2-pkcs11 1.9.0 has no ECDH. Beside an identity key, with nobody cleaning up in the TPM."""
    vault = opened(tpm)
    key = vault.generate(Kind.P256, "identity")
    with pytest.raises(NoSealKey, match=LABEL):
        vault.seal(SECRET, AAD)
    suite = vault.sealing.provision()
    assert suite in ("rsa-oaep-sha256", "ecdh-p256")
    blob = vault.seal(SECRET, AAD)
    assert vault.sealing.provision() == suite
    for _ in range(5):
        assert vault.unseal(blob, AAD) == SECRET
        vault.sign(key, b"in between")
    with pytest.raises(Refused, match="does not open"):
        vault.unseal(blob, b"other")
    vault.close()
    vault = opened(tpm)
    assert vault.unseal(blob, AAD) == SECRET
    _refuses_mutations(vault, blob)
    assert vault.unseal(blob, AAD) == SECRET
    assert [len(objects(vault, label)) for label in (LABEL, "identity")] == [2, 2]


def _refuses_mutations(vault, blob: bytes) -> None:
    for at in range(0, len(blob), 23):
        changed = bytearray(blob)
        changed[at] ^= 1
        with pytest.raises(VaultError):
            vault.unseal(bytes(changed), AAD)


# --- blobs


def test_every_changed_byte_is_refused(sealed) -> None:
    blob = sealed.seal(SECRET, AAD)
    for at in range(len(blob)):
        changed = bytearray(blob)
        changed[at] ^= 1 << at % 8
        with pytest.raises(VaultError):
            sealed.unseal(bytes(changed), AAD)
    assert sealed.unseal(blob, AAD) == SECRET


def test_header_with_the_same_shared_secret(vault) -> None:
    """The opposite point has the same x, and with it the same shared secret."""
    vault.sealing.provision([ECDH])
    blob = Blob.decode(vault.seal(SECRET, AAD))
    x, y = blob.header[1:33], int.from_bytes(blob.header[33:], "big")
    prime = 2**256 - 2**224 + 2**192 + 2**96 - 1
    opposite = blob._replace(header=b"\4" + x + (prime - y).to_bytes(32, "big"))
    with pytest.raises(Refused, match="does not open"):
        vault.unseal(opposite.encode(), AAD)


def test_point_off_the_curve_does_not_reach_the_token(vault, monkeypatch) -> None:
    vault.sealing.provision([ECDH])
    blob = Blob.decode(vault.seal(SECRET, AAD))
    off = blob._replace(header=b"\4" + bytes(63) + b"\1")
    asked: list[str] = []
    monkeypatch.setattr(sealing, "destroy", lambda found: asked.append("derived"))
    with pytest.raises(Refused, match="does not open"):
        vault.unseal(off.encode(), AAD)
    assert asked == []


def test_every_shorter_or_longer_blob_is_refused(sealed) -> None:
    blob = sealed.seal(SECRET, AAD)
    for length in range(len(blob)):
        with pytest.raises(VaultError):
            sealed.unseal(blob[:length], AAD)
    with pytest.raises(Refused):
        sealed.unseal(blob + b"\0", AAD)


@st.composite
def mutated(draw: st.DrawFn, blob: bytes) -> bytes:
    """A blob with pieces cut out, put in, or overwritten, and never the same."""
    data = bytearray(blob)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + 40)))
        data[start:end] = draw(st.binary(max_size=40))
    return bytes(data)


def test_no_mutation_opens(soft_token, vault) -> None:
    vault.sealing.provision([ECDH])
    blob = vault.seal(SECRET, AAD)

    @settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
    @given(mutated(blob))
    def never(data: bytes) -> None:
        if data != blob:
            with pytest.raises((Refused, Locked)):
                vault.unseal(data, AAD)

    never()
    assert vault.login.logins == 1  # and none of them costs the session
    assert vault.unseal(blob, AAD) == SECRET


@given(st.binary(max_size=400))
def test_decoding_is_strict(data: bytes) -> None:
    try:
        blob = Blob.decode(data)
    except Refused:
        return
    assert blob.encode() == data


@given(
    st.sampled_from([one.name for one in SUITES]),
    st.binary(min_size=32, max_size=32),
    st.binary(max_size=300),
    st.binary(min_size=12, max_size=12),
    st.binary(min_size=16, max_size=200),
)
def test_encoding_and_back(suite, key, header, nonce, box) -> None:
    blob = Blob(suite, key, header, nonce, box)
    assert Blob.decode(blob.encode()) == blob


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "no sealed secret"),
        (b"\2" + b"\0" * 200, "newer version"),
        (b"\1\x09ecdh-p384" + b"\0" * 100, "suite that is not known"),
        (b"\1\x09ecdh-p256" + b"\0" * 61, "cut short"),
    ],
)
def test_what_is_no_blob(data: bytes, said: str) -> None:
    with pytest.raises(Refused, match=said):
        Blob.decode(data)
