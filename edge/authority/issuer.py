"""Issuer: makes credentials with a credential key, which the identity key has attested (05 §1.6).

The key is either fresh in memory at every start, and then costs the vault one signature per start, or a
key of the vault, and then every credential costs the vault a signature.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge.identity.credential import Credential, issue
from edge.identity.history import ChangeHistory
from edge.identity.keys import KeyKind, PublicKey
from edge.identity.purpose import Attestation, attest_credential_key
from edge.keyring import Keyring
from vault_backends.vault import Key

LIFETIME = 30 * 24 * 3600
"""Of a credential, as stock has it."""
KEY_LIFETIME = 5 * 365 * 24 * 3600
"""Of the attestation of the credential key: no credential outlives it (02 §5.4, 7)."""


class Signs(Protocol):
    """How a credential is signed: in memory at once, or in the vault's thread."""

    public: PublicKey

    async def issue(self, make: Callable[[Callable[[bytes], bytes]], Credential]) -> Credential: ...


class InMemory:
    """A fresh Ed25519 key, which dies with the process."""

    def __init__(self) -> None:
        key = Ed25519PrivateKey.generate()
        self.public = PublicKey(KeyKind.ED25519, key.public_key().public_bytes_raw())
        self._sign = key.sign

    async def issue(self, make: Callable[[Callable[[bytes], bytes]], Credential]) -> Credential:
        return make(self._sign)


class InVault:
    """A key of the vault; use `open`."""

    def __init__(self, keyring: Keyring, key: Key, public: PublicKey) -> None:
        self.public = public
        self._keyring, self._key = keyring, key

    @classmethod
    async def open(cls, keyring: Keyring, key: Key) -> InVault:
        return cls(keyring, key, await keyring.public(key))

    async def issue(self, make: Callable[[Callable[[bytes], bytes]], Credential]) -> Credential:
        return await self._keyring.run(make, self._keyring.signer(self._key))


class Issuer:
    """Says what members are, in the name of the authority `history`."""

    def __init__(
        self,
        history: ChangeHistory,
        signs: Signs,
        *,
        clock: Callable[[], int],
        lifetime: int = LIFETIME,
        extra: Mapping[bytes, bytes] | None = None,
    ) -> None:
        """`extra` goes into every credential, and yields to what the member has."""
        self.history = history
        self.lifetime = lifetime
        self._signs, self._clock = signs, clock
        self._extra = dict(extra or {})
        self._attestation: Attestation | None = None

    async def start(self, keyring: Keyring, key: Key) -> None:
        """Let the identity key attest the credential key: one signature."""
        await self.adopt(keyring, key, self.history)

    async def adopt(self, keyring: Keyring, key: Key, history: ChangeHistory) -> None:
        """The authority was rotated: let the new key attest. What was issued before does not hold with
        those who have seen the new history (02 §4.3). If the vault fails, nothing changes."""
        attest = partial(attest_credential_key, now=self._clock(), lifetime=KEY_LIFETIME)
        self._attestation = await keyring.run(
            attest, history, self._signs.public, keyring.signer(key)
        )
        self.history = history

    async def issue(
        self, subject: ChangeHistory, attributes: Mapping[bytes, bytes], *, after: int = 0
    ) -> Credential:
        """One made later than `after`, when the subject became what it is: whoever hears of that takes
        nothing made until then. Raises VaultError where the key of a vault cannot sign now."""
        assert self._attestation is not None, "start() comes first"
        return await self._signs.issue(
            partial(
                _issue,
                subject,
                self._extra | dict(attributes),
                self._attestation,
                max(self._clock(), after + 1),
                self.lifetime,
            )
        )


def _issue(
    subject: ChangeHistory,
    attributes: Mapping[bytes, bytes],
    attestation: Attestation,
    now: int,
    lifetime: int,
    sign: Callable[[bytes], bytes],
) -> Credential:
    return issue(subject, attributes, attestation, sign, now=now, lifetime=lifetime)
