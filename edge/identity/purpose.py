"""Attestations: what an identity key says of the keys it has made for a purpose (02 §4)."""

from typing import NamedTuple, Self

from edge.errors import DecodeError, TrustError
from edge.identity.history import ChangeHistory, Identifier
from edge.identity.keys import PublicKey, Sign, Signature, signed
from edge.identity.versioned import HASH_BYTES, read_versioned, versioned_data
from edge.wire import cbor

CLOCK_ALLOWANCE = 60
"""How far ahead of our clock an issuer's may be, in seconds; at expiry there is none (02 §4.3)."""

LIFETIME = 157_680_000
"""Five years of 365 days: upstream's default. Ours should be much shorter (02 §4.2)."""

_ATTESTATION = 2  # the type number of versioned data
_CHANNEL, _CREDENTIAL = 0, 1


class Attestation(NamedTuple):
    """A purpose key, and the identity that vouches for it. `key` is the 32 bytes of an X25519 key
    for channels, or the PublicKey that signs credentials."""

    encoded: bytes
    data: bytes
    signature: Signature
    subject: Identifier
    change_hash: bytes
    key: bytes | PublicKey
    created_at: int
    expires_at: int

    @property
    def channel_key(self) -> bytes | None:
        return None if isinstance(self.key, PublicKey) else self.key

    @property
    def credential_key(self) -> PublicKey | None:
        return self.key if isinstance(self.key, PublicKey) else None

    @classmethod
    def decode(cls, encoded: bytes) -> Self:
        """Step 1 of verification (02 §4.3): version and type are ours, it decodes."""
        value, end = cbor.decode_prefix(encoded)
        signed_data, signature = cbor.as_list(value, 2)[:2]
        data = cbor.as_bytes(signed_data)
        subject, change_hash, key, created_at, expires_at = read_versioned(data, _ATTESTATION)
        return cls(
            encoded=bytes(encoded[:end]),
            data=data,
            signature=Signature.read(signature),
            subject=Identifier(cbor.as_bytes(subject, HASH_BYTES)),
            change_hash=cbor.as_bytes(change_hash, HASH_BYTES),
            key=_read_key(key),
            created_at=cbor.as_int(created_at),
            expires_at=cbor.as_int(expires_at),
        )

    def verify(self, history: ChangeHistory, now: int, *, allow_future: bool = False) -> None:
        """Raise TrustError unless the owner of `history` attests this key now (02 §4.3).
        `allow_future` is for a clock that is not set yet: then step 7 says nothing."""
        # 1: done by decode(). 2, 3: the subject is the owner of the history we know.
        if self.subject != history.identifier:
            raise TrustError(f"the attestation is of {self.subject}, not of {history.identifier}")
        latest = history.latest
        # 4. The key that attests is the latest one.
        if self.change_hash != latest.hash:
            raise TrustError("the attestation is not by the latest key of its identity")
        # 5, 6. It lies inside the time in which that key may attest.
        if self.expires_at > latest.valid_until:
            raise TrustError("the attestation outlives the key that made it")
        if self.created_at < latest.valid_from:
            raise TrustError("the attestation is older than the key that made it")
        # 7, 8. It is valid now.
        check_time("attestation", self.created_at, self.expires_at, now, allow_future)
        # 9. The key really made it.
        self.signature.check(latest.key, self.data, "attestation")


def check_time(
    what: str, created_at: int, expires_at: int, now: int, allow_future: bool = False
) -> None:
    """An issuer's clock may be a minute ahead of ours; at expiry nothing is allowed (02 §4.3)."""
    if created_at > now + CLOCK_ALLOWANCE and not allow_future:
        raise TrustError(f"the {what} was made in the future: is the clock right?")
    if expires_at < now:
        raise TrustError(f"the {what} has expired")


def attest_channel_key(
    history: ChangeHistory, x25519_public: bytes, sign: Sign, *, now: int, lifetime: int
) -> Attestation:
    """Attest the static key of secure channels: one signature of the identity key (02 §4.2)."""
    return _attest(history, [_CHANNEL, [x25519_public]], sign, now, lifetime)


def attest_credential_key(
    history: ChangeHistory, key: PublicKey, sign: Sign, *, now: int, lifetime: int
) -> Attestation:
    """Attest a key that signs credentials: one signature of the identity key (02 §4.2)."""
    return _attest(history, [_CREDENTIAL, [key.structure()]], sign, now, lifetime)


def _attest(
    history: ChangeHistory, key: list[object], sign: Sign, now: int, lifetime: int
) -> Attestation:
    """Clamped to the time in which the identity key may attest, else everyone would refuse it. One
    that would not be valid, because that time is over, is refused before anything is signed."""
    latest = history.latest
    created_at = max(now, latest.valid_from)
    expires_at = min(now + lifetime, latest.valid_until)
    check_time("identity key", created_at, expires_at, now, allow_future=True)
    body: list[object] = [history.identifier, latest.hash, key, created_at, expires_at]
    data = versioned_data(_ATTESTATION, body)
    signature = signed(latest.key, sign, data, "attestation")
    return Attestation.decode(cbor.encode([data, signature.structure()]))


def _read_key(value: object) -> bytes | PublicKey:
    kind, fields = cbor.variant(value)
    if not fields or kind not in (_CHANNEL, _CREDENTIAL):
        raise DecodeError("an unknown kind of purpose key")
    return cbor.as_bytes(fields[0], 32) if kind == _CHANNEL else PublicKey.read(fields[0])
