"""Public keys and signatures as identities use them (02 §1.2, §1.3)."""

from collections.abc import Callable
from enum import StrEnum
from hashlib import sha256
from typing import NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP256R1,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from edge.errors import DecodeError, TrustError
from edge.wire import cbor

SIGNATURE_BYTES = 64

Sign = Callable[[bytes], bytes]
"""Sign the 32-byte hash given, and return 64 bytes; what a vault key does. A P-256 key hashes the
32 bytes again (02 §1.3)."""


class KeyKind(StrEnum):
    ED25519 = "ed25519"
    P256 = "p256"


_VARIANTS = {KeyKind.ED25519: 0, KeyKind.P256: 1}
_KINDS = {number: kind for kind, number in _VARIANTS.items()}
_KEY_BYTES = {KeyKind.ED25519: 32, KeyKind.P256: 65}


class PublicKey(NamedTuple):
    """A signing key's public half: 32 bytes of Ed25519, or 65 of an uncompressed P-256 point."""

    kind: KeyKind
    value: bytes

    def verify(self, signature: bytes, data: bytes) -> bool:
        """Is `signature` this key's over `data`? Anything wrong with either is a no."""
        if len(signature) != SIGNATURE_BYTES:
            return False
        try:
            if self.kind is KeyKind.ED25519:
                Ed25519PublicKey.from_public_bytes(self.value).verify(signature, data)
            else:
                _verify_p256(self.value, signature, data)
        except (InvalidSignature, ValueError):
            return False
        return True

    def structure(self) -> list[object]:
        """The key as it is encoded: `[variant, [bytes]]`."""
        return [_VARIANTS[self.kind], [self.value]]

    @classmethod
    def read(cls, value: object) -> "PublicKey":
        kind, fields = _kind_and_fields(value)
        key = cbor.as_bytes(fields[0], _KEY_BYTES[kind])
        if kind is KeyKind.P256 and key[0] != 4:
            raise DecodeError("a P-256 key must be an uncompressed point")
        return cls(kind, key)


class Signature(NamedTuple):
    """A signature says by which kind of key it was made; its bytes are `R || S` or `r || s`."""

    kind: KeyKind
    value: bytes

    def structure(self) -> list[object]:
        return [_VARIANTS[self.kind], [self.value]]

    @classmethod
    def read(cls, value: object) -> "Signature":
        kind, fields = _kind_and_fields(value)
        return cls(kind, cbor.as_bytes(fields[0], SIGNATURE_BYTES))

    def check(self, key: PublicKey, data: bytes, what: str) -> None:
        """Raise TrustError unless `key` made this over the hash of `data` (02 §1.3)."""
        if self.kind is not key.kind:
            raise TrustError(f"{what}: a signature of one kind and a key of the other")
        if not key.verify(self.value, sha256(data).digest()):
            raise TrustError(f"{what}: the signature does not verify")


def signed(key: PublicKey, sign: Sign, data: bytes, what: str) -> Signature:
    """Have the hash of `data` signed, and check what came back: a bad signature that is kept is
    permanent damage (02 §1.7)."""
    signature = Signature(key.kind, sign(sha256(data).digest()))
    signature.check(key, data, what)
    return signature


def _kind_and_fields(value: object) -> tuple[KeyKind, list[cbor.Value]]:
    number, fields = cbor.variant(value)
    if number not in _KINDS or not fields:
        raise DecodeError("an unknown kind of key")
    return _KINDS[number], fields


def _verify_p256(point: bytes, signature: bytes, data: bytes) -> None:
    """ECDSA with SHA-256 of `data`, from `r || s`; a high `s` is as good as a low one."""
    key = EllipticCurvePublicKey.from_encoded_point(SECP256R1(), point)
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    key.verify(encode_dss_signature(r, s), data, ECDSA(SHA256()))
