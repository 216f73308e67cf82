"""Other secrets at rest, under a key that never leaves the token.

The token does one thing: it gives back the shared secret that software agreed on with its public
key. From that secret comes a key-encryption key, new for each blob, and the rest is AES-256-GCM in
software. Which suite a token can do is found out when its seal key is made, by sealing and
unsealing; the suite is part of the key's id and of every blob.

    version u8 = 1 | length u8, suite | key 32 | length u16, header | nonce 12 | ciphertext, tag 16

`key` is the SHA-256 of the public key, so that another token's blob is told from a damaged one. All
before the nonce goes into the key-encryption key, and the caller's `aad` into the tag."""

import hashlib
import hmac
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, Self

import pkcs11
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from pkcs11 import MGF, Attribute, KeyType, Mechanism, ObjectClass
from pkcs11.constants import DEFAULT as OMIT

from vault_backends.pkcs11 import points
from vault_backends.pkcs11.objects import SEAL_LABEL as LABEL
from vault_backends.pkcs11.objects import destroy, read, search
from vault_backends.pkcs11.profiles import P256_OID, Profile
from vault_backends.pkcs11.token import TokenLogin
from vault_backends.vault import (
    DeviceGone,
    Kind,
    Locked,
    Misconfigured,
    NoSealKey,
    Refused,
    Unsupported,
    VaultError,
)

_VERSION = 1
_KEY, _NONCE, _TAG = 32, 12, 16
_PURPOSE = b"ockam-edge token seal\0"
_RSA_BITS = 2048
_INSIDE = {Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False}

# What tokens say to a header that their key did not make, and to a mechanism they only list.
_BAD_HEADER = (
    pkcs11.EncryptedDataInvalid,
    pkcs11.EncryptedDataLenRange,
    pkcs11.DataInvalid,
    pkcs11.DataLenRange,
)
_CANNOT = (
    pkcs11.ArgumentsBad,
    pkcs11.MechanismParamInvalid,
    pkcs11.KeyTypeInconsistent,
)


class Blob(NamedTuple):
    """A sealed secret, in its parts."""

    suite: str
    key: bytes
    header: bytes
    nonce: bytes
    box: bytes

    @property
    def head(self) -> bytes:
        """What says how the key-encryption key was made."""
        suite = self.suite.encode()
        return b"".join(
            (
                bytes((_VERSION, len(suite))),
                suite,
                self.key,
                len(self.header).to_bytes(2, "big"),
                self.header,
            )
        )

    def encode(self) -> bytes:
        return self.head + self.nonce + self.box

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Refused, where it is not one, whole, and of a suite known here."""
        version, data = data[:1], data[1:]
        if version != bytes((_VERSION,)):
            raise Refused("this is no sealed secret, or one of a newer version")
        suite, data = _counted(data, 1)
        key, data = data[:_KEY], data[_KEY:]
        header, data = _counted(data, 2)
        nonce, box = data[:_NONCE], data[_NONCE:]
        if len(box) < _TAG:
            raise Refused("the sealed secret is cut short")
        known = [one for one in SUITES if one.name.encode() == suite]
        if not known:
            raise Refused("the sealed secret is of a suite that is not known here")
        return cls(known[0].name, key, header, nonce, box)


def _counted(data: bytes, width: int) -> tuple[bytes, bytes]:
    end = width + int.from_bytes(data[:width], "big")
    return data[width:end], data[end:]


class Suite(Protocol):
    """One way to agree on a secret with a key in a token."""

    name: str
    needs: frozenset[Mechanism]

    def generate(self, session: Any, key_id: bytes, profile: Profile, label: str = LABEL) -> None:
        """Make the key pair. Raises PKCS11Error."""
        ...

    def public(self, found: Any) -> bytes | None:
        """The public key as one encoding; None if the object is another kind of key."""
        ...

    def encapsulate(self, public: bytes) -> tuple[bytes, bytes]:
        """The header, and a shared secret only `decapsulate` gets from it."""
        ...

    def decapsulate(self, private: Any, header: bytes) -> bytes:
        """One operation of the token. Raises ValueError for a header that cannot be, or
        PKCS11Error."""
        ...


class EcdhP256:
    """An ephemeral P-256 key; the header is its point, bare (YubiHSM takes no other form)."""

    name = "ecdh-p256"
    needs = frozenset({Mechanism.EC_KEY_PAIR_GEN, Mechanism.ECDH1_DERIVE})

    def generate(self, session: Any, key_id: bytes, profile: Profile, label: str = LABEL) -> None:
        private: dict[Attribute, Any] = {Attribute.DERIVE: True} | _INSIDE
        if profile.derive_is_decrypt:
            private |= {Attribute.DECRYPT: True, Attribute.UNWRAP: OMIT}
        parameters = {Attribute.EC_PARAMS: P256_OID}
        session.create_domain_parameters(KeyType.EC, parameters, local=True).generate_keypair(
            id=key_id,
            label=label,
            store=True,
            mechanism=Mechanism.EC_KEY_PAIR_GEN,
            capabilities=0,
            public_template=parameters | _omitted(profile.omit_public),
            private_template=private,
        )

    def public(self, found: Any) -> bytes | None:
        return points.point(Kind.P256, read(found, Attribute.EC_POINT) or b"")

    def encapsulate(self, public: bytes) -> tuple[bytes, bytes]:
        ephemeral = ec.generate_private_key(ec.SECP256R1())
        header = ephemeral.public_key().public_bytes(
            serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
        )
        return header, ephemeral.exchange(ec.ECDH(), _on_curve(public))

    def decapsulate(self, private: Any, header: bytes) -> bytes:
        _on_curve(header)  # a point off the curve could draw bits of the key out of a token
        derived = private.derive_key(
            KeyType.GENERIC_SECRET,
            256,
            capabilities=0,
            mechanism=Mechanism.ECDH1_DERIVE,
            mechanism_param=(pkcs11.KDF.NULL, None, header),
            template={Attribute.SENSITIVE: False, Attribute.EXTRACTABLE: True},
        )
        try:
            return bytes(derived[Attribute.VALUE])
        finally:
            destroy(derived)  # YubiHSM holds 255 of them


def _on_curve(point: bytes) -> ec.EllipticCurvePublicKey:
    if len(point) != 65:
        raise ValueError("not an uncompressed P-256 point")
    return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)


class RsaOaep:
    """A random secret under RSA-2048 OAEP; the header is its ciphertext. No label: tpm2-pkcs11
    knows none."""

    needs = frozenset({Mechanism.RSA_PKCS_KEY_PAIR_GEN, Mechanism.RSA_PKCS_OAEP})

    def __init__(
        self, name: str, digest: hashes.HashAlgorithm, mechanism: Mechanism, mgf: MGF
    ) -> None:
        self.name = name
        self._padding = padding.OAEP(padding.MGF1(digest), digest, None)
        self._parameters = (mechanism, mgf, None)

    def generate(self, session: Any, key_id: bytes, profile: Profile, label: str = LABEL) -> None:
        public = {Attribute.ENCRYPT: True} | _omitted(profile.omit_public)
        omitted = [name for name in profile.omit_private if name != "DECRYPT"]
        session.generate_keypair(
            KeyType.RSA,
            _RSA_BITS,
            id=key_id,
            label=label,
            store=True,
            mechanism=Mechanism.RSA_PKCS_KEY_PAIR_GEN,
            capabilities=0,
            public_template=public,
            private_template={Attribute.DECRYPT: True} | _INSIDE | _omitted(omitted),
        )

    def public(self, found: Any) -> bytes | None:
        n, e = read(found, Attribute.MODULUS), read(found, Attribute.PUBLIC_EXPONENT)
        if not n or not e:
            return None
        numbers = rsa.RSAPublicNumbers(int.from_bytes(e, "big"), int.from_bytes(n, "big"))
        return numbers.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def encapsulate(self, public: bytes) -> tuple[bytes, bytes]:
        key = serialization.load_der_public_key(public)
        if not isinstance(key, rsa.RSAPublicKey):
            raise ValueError("not an RSA key")
        shared = os.urandom(_KEY)
        return key.encrypt(shared, self._padding), shared

    def decapsulate(self, private: Any, header: bytes) -> bytes:
        if len(header) != _RSA_BITS // 8:
            raise ValueError("not as long as the modulus")
        return bytes(
            private.decrypt(
                header, mechanism=Mechanism.RSA_PKCS_OAEP, mechanism_param=self._parameters
            )
        )


def _omitted(names: Sequence[str]) -> dict[Attribute, Any]:
    return {Attribute[name]: OMIT for name in names}


# The order to try them in. Elliptic curves are quicker and need less of the token; SHA-1 is no
# weakness inside OAEP, but the last one to have to explain.
SUITES: tuple[Suite, ...] = (
    EcdhP256(),
    RsaOaep("rsa-oaep-sha256", hashes.SHA256(), Mechanism.SHA256, MGF.SHA256),
    RsaOaep("rsa-oaep-sha1", hashes.SHA1(), Mechanism.SHA_1, MGF.SHA1),
)


class _Held(NamedTuple):
    """The seal key, found on the token: good for one generation of the login."""

    suite: Suite
    private: Any
    public: bytes

    @property
    def digest(self) -> bytes:
        return hashlib.sha256(self.public).digest()


class Sealing:
    """The seal key of one token: made once and explicitly, then used to seal and unseal."""

    def __init__(self, login: TokenLogin) -> None:
        self._login = login
        self._held: _Held | None = None
        self._held_in = -1

    def seal(self, secret: bytes, aad: bytes) -> bytes:
        """The secret, sealed, and opened again before anybody relies on it. NoSealKey without
        one."""
        with self._login.logged_in() as session:
            held = self._hold(session)
            try:
                header, shared = held.suite.encapsulate(held.public)
            except ValueError:
                raise Refused(f"{self._login.name} shows no usable public key {LABEL!r}") from None
            blob = Blob(held.suite.name, held.digest, header, os.urandom(_NONCE), b"")
            with _kek(shared, blob.head) as kek:
                blob = blob._replace(box=AESGCM(kek).encrypt(blob.nonce, secret, aad))
            if not hmac.compare_digest(self._opened(held, blob, aad), secret):
                raise Refused(f"{self._login.name} does not give back what was sealed")
        return blob.encode()

    def unseal(self, blob: bytes, aad: bytes) -> bytes:
        """What was sealed with the same `aad`. Locked where this is not the key it was sealed with,
        Refused where the blob is damaged or of something else."""
        parts = Blob.decode(blob)
        with self._login.logged_in() as session:
            held = self._hold(session)
            if parts.key != held.digest or parts.suite != held.suite.name:
                raise Locked(
                    f"this was sealed with the key {parts.key[:8].hex()}…; "
                    f"the seal key of {self._login.name} is {held.digest[:8].hex()}…",
                    hint="plug in the token it was sealed with, or restore what was sealed",
                )
            return self._opened(held, parts, aad)

    def provision(self, suites: Sequence[Suite] = SUITES) -> str:
        """The name of the seal key's suite. Where there is no such key it is made, with the first
        suite that passes a test; one that is there is tested, and never replaced."""
        with self._login.logged_in() as session:
            sure = session if self._login.view_is_good() else self._login.renew()
            if self._pair(sure):
                return self._tested(sure)
            can = sure.token.slot.get_mechanisms()
        able = [suite for suite in suites if suite.needs <= can]
        failures = []
        for suite in able:
            try:
                return self._made(suite)
            except (Unsupported, Refused, DeviceGone) as error:
                failures.append(f"{suite.name}: {error}")
        tried = "; ".join(failures) or "it has none of the mechanisms"
        raise Unsupported(f"{self._login.name} cannot seal ({tried})")

    # --- provisioning

    def _made(self, suite: Suite) -> str:
        """A new key, which is destroyed again if it does not seal."""
        try:
            with self._login.logged_in() as session:
                suite.generate(session, self._id(suite), self._login.profile)
                if self._login.profile.one_generation:
                    self._login.drop()
            self._test()
        except (Unsupported, Refused, DeviceGone):
            with self._login.logged_in() as session:  # DeviceGone from here is the end of it
                for one in self._pair(session):
                    destroy(one)
            self._held = None
            raise
        return suite.name

    def _tested(self, session: Any) -> str:
        try:
            held = self._hold(session)
            self._test()
        except (Unsupported, Refused, Misconfigured) as error:
            raise Refused(
                f"{self._login.name} has a key {LABEL!r} that cannot seal: {error}",
                hint="if nothing was sealed with it, delete it and try again; "
                "it is never replaced by itself",
            ) from error
        return held.suite.name

    def _test(self) -> None:
        secret, aad = os.urandom(_KEY), b"self-test"
        blob = self.seal(secret, aad)  # opens it again, too
        try:
            self.unseal(blob, b"another " + aad)
        except Refused:
            return
        raise Refused(f"{self._login.name} opens what it should not")

    # --- the key

    def _id(self, suite: Suite) -> bytes:
        return points.key_id(f"{LABEL} {suite.name}", self._login.profile.id_length)

    def _pair(self, session: Any) -> list[Any]:
        both = (ObjectClass.PRIVATE_KEY, ObjectClass.PUBLIC_KEY)
        return [one for what in both for one in search(session, what, label=LABEL)]

    def _hold(self, session: Any) -> _Held:
        if self._held is None or self._held_in != self._login.generation:
            self._held = self._look_up(session)
            self._held_in = self._login.generation
        return self._held

    def _look_up(self, session: Any) -> _Held:
        found = search(session, ObjectClass.PRIVATE_KEY, label=LABEL)
        if not found and not self._login.view_is_good():
            session = self._login.renew()
            found = search(session, ObjectClass.PRIVATE_KEY, label=LABEL)
        if not found:
            raise NoSealKey(
                f"{self._login.name} has no seal key {LABEL!r}",
                hint="make one: ockam-edge vault seal NAME",
            )
        if len(found) > 1:
            raise Misconfigured(
                f"{self._login.name} has {len(found)} keys {LABEL!r}",
                hint="delete those that nothing was sealed with",
            )
        return self._checked(session, found[0])

    def _checked(self, session: Any, private: Any) -> _Held:
        if read(private, Attribute.EXTRACTABLE) or read(private, Attribute.SENSITIVE) is False:
            raise Refused(f"key {LABEL!r} can be read out of {self._login.name}")
        key_id = read(private, Attribute.ID)
        suite = next((one for one in SUITES if self._id(one) == key_id), None)
        if suite is None:
            raise Refused(f"key {LABEL!r} in {self._login.name} was not made for sealing")
        near = search(session, ObjectClass.PUBLIC_KEY, id=key_id)
        public = {value for one in near if (value := suite.public(one))}
        if len(public) != 1:
            raise Refused(f"{self._login.name} has {len(public) or 'no'} public keys for {LABEL!r}")
        return _Held(suite, private, public.pop())

    def _opened(self, held: _Held, blob: Blob, aad: bytes) -> bytes:
        """One operation of the token, and the rest."""
        with (
            self._answers(),
            _kek(held.suite.decapsulate(held.private, blob.header), blob.head) as kek,
        ):
            return AESGCM(kek).decrypt(blob.nonce, blob.box, aad)

    @contextmanager
    def _answers(self) -> Iterator[None]:
        """What can be wrong with a blob, as an error of it and not of the token."""
        try:
            yield
        except (InvalidTag, ValueError, *_BAD_HEADER):
            raise _damaged() from None
        except _CANNOT as error:
            raise Unsupported(f"{self._login.name}: {type(error).__name__}") from None


def _damaged() -> VaultError:
    return Refused(
        "the sealed secret does not open: it was changed, or sealed for something else",
        hint="restore it from a backup",
    )


@contextmanager
def _kek(shared: bytes, head: bytes) -> Iterator[bytearray]:
    """The key-encryption key, overwritten at the end of the block. The shared secret is an
    immutable object of the library that made it, and goes when nobody holds it."""
    kek = bytearray(_KEY)
    try:
        HKDF(hashes.SHA256(), _KEY, salt=None, info=_PURPOSE + head).derive_into(shared, kek)
        yield kek
    finally:
        kek[:] = bytes(_KEY)
