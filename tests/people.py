"""Identities for tests: software keys of both kinds, and what they present."""

from dataclasses import dataclass, replace
from hashlib import sha256

from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP256R1,
    EllipticCurvePrivateKey,
    derive_private_key,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from edge.channel.handshake import Presentation
from edge.channel.noise import public_key
from edge.identity.history import KEY_LIFETIME, ChangeHistory, Identifier, create
from edge.identity.keys import KeyKind, PublicKey, Sign
from edge.identity.purpose import attest_channel_key

NOW = 1_700_000_100
WEEK = 604_800


@dataclass(frozen=True)
class SoftKey:
    """A signing key in memory."""

    public: PublicKey
    sign: Sign


def ed25519(seed: bytes) -> SoftKey:
    key = Ed25519PrivateKey.from_private_bytes(seed)
    return SoftKey(PublicKey(KeyKind.ED25519, key.public_key().public_bytes_raw()), key.sign)


def p256(scalar: bytes) -> SoftKey:
    key = derive_private_key(int.from_bytes(scalar, "big"), SECP256R1())
    point = key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    return SoftKey(PublicKey(KeyKind.P256, point), lambda data: _sign_p256(key, data))


def _sign_p256(key: EllipticCurvePrivateKey, data: bytes) -> bytes:
    r, s = decode_dss_signature(key.sign(data, ECDSA(SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


@dataclass(frozen=True)
class Person:
    """An identity with its keys."""

    key: SoftKey
    history: ChangeHistory
    secret: bytes

    @property
    def identifier(self) -> Identifier:
        return self.history.identifier

    def present(self, credential: bytes | None = None, now: int = NOW) -> Presentation:
        attestation = attest_channel_key(
            self.history, public_key(self.secret), self.key.sign, now=now, lifetime=WEEK
        )
        return Presentation(self.history, attestation, self.secret, credential)

    def rotate(self, key: SoftKey, now: int = NOW) -> "Person":
        history = self.history.rotated(
            key.public,
            key.sign,
            self.key.sign,
            valid_from=now,
            valid_until=now + KEY_LIFETIME,
        )
        return replace(self, key=key, history=history)


def seed(text: str) -> bytes:
    return sha256(text.encode()).digest()


def person(name: str, kind: str = "ed25519") -> Person:
    """Somebody whose keys follow from the name. The kind is ed25519, p256, or rotated."""
    if kind == "rotated":
        return person(name, "ed25519").rotate(p256(seed(f"{name} rotated")))
    key = (p256 if kind == "p256" else ed25519)(seed(f"{name} identity"))
    history = create(key.public, key.sign, valid_from=NOW, valid_until=NOW + KEY_LIFETIME)
    return Person(key, history, seed(f"{name} x25519"))


KINDS = ("ed25519", "p256", "rotated")
