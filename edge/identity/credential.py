"""Credentials: what an authority says of another identity (02 §5)."""

from collections.abc import Container, Mapping
from typing import NamedTuple, Self

from edge.errors import DecodeError, TrustError
from edge.identity.history import ChangeHistory, Identifier
from edge.identity.keys import Sign, Signature, signed
from edge.identity.known import Known
from edge.identity.purpose import Attestation, check_time
from edge.identity.versioned import (
    HASH_BYTES,
    items,
    read_structure,
    read_versioned,
    versioned_data,
)
from edge.wire import cbor

PROJECT_MEMBER = 1
"""The schema number of project member credentials; nobody checks it (02 §5.2)."""

_CREDENTIAL = 3  # the type number of versioned data


class Credential(NamedTuple):
    """A credential and the attestation of the key that signed it; `encoded` is the pair."""

    encoded: bytes
    data: bytes
    signature: Signature
    attestation: Attestation
    subject: Identifier | None
    change_hash: bytes | None
    schema: int
    attributes: dict[bytes, bytes]
    created_at: int
    expires_at: int

    @property
    def issuer(self) -> Identifier:
        return self.attestation.subject

    @classmethod
    def decode(cls, encoded: bytes) -> Self:
        """Read `credential-and-purpose-key` (02 §2.1)."""
        pair = items(encoded)
        if len(pair) < 2:
            raise DecodeError("a credential comes with the attestation of the key that signed it")
        signed_data, signature = read_structure(pair[0], 2)[:2]
        data = cbor.as_bytes(signed_data)
        subject, change_hash, attributes, created_at, expires_at = read_versioned(data, _CREDENTIAL)
        schema, values = cbor.as_list(attributes, 2)[:2]
        return cls(
            encoded=bytes(encoded),
            data=data,
            signature=Signature.read(signature),
            attestation=Attestation.decode(pair[1]),
            subject=None if subject is None else Identifier(cbor.as_bytes(subject, HASH_BYTES)),
            change_hash=None if change_hash is None else cbor.as_bytes(change_hash, HASH_BYTES),
            schema=cbor.as_int(schema),
            attributes=_read_attributes(values),
            created_at=cbor.as_int(created_at),
            expires_at=cbor.as_int(expires_at),
        )

    def verify(
        self,
        subject: Identifier,
        authorities: Container[Identifier],
        known: Known,
        now: int,
        *,
        allow_future: bool = False,
    ) -> None:
        """Raise TrustError unless one of the authorities says this of `subject` now (02 §5.4)."""
        attestation = self.attestation
        # 1. The issuer attests the key; its history must be known already.
        history = known.get(self.issuer)
        if history is None:
            raise TrustError(f"the history of the authority {self.issuer} is not known")
        attestation.verify(history, now, allow_future=allow_future)
        # 2. The issuer is one whose word counts here.
        if self.issuer not in authorities:
            raise TrustError(f"{self.issuer} is not an authority here")
        # 3. The attested key is one for signing credentials.
        key = attestation.credential_key
        if key is None:
            raise TrustError("the attested key is not for signing credentials")
        # 4. That key signed the credential.
        self.signature.check(key, self.data, "credential")
        # 5: done by decode(). 6. It says of whom it speaks, and that is the one expected.
        if self.subject is None or self.subject != subject:
            raise TrustError(f"the credential is of {self.subject}, not of {subject}")
        # 7. It lies inside the life of the key that signed it.
        if self.created_at < attestation.created_at or self.expires_at > attestation.expires_at:
            raise TrustError("the credential is not inside the life of the key that signed it")
        # 8. It is valid now.
        check_time("credential", self.created_at, self.expires_at, now, allow_future)


def issue(
    subject: ChangeHistory | Identifier,
    attributes: Mapping[bytes, bytes],
    attestation: Attestation,
    sign: Sign,
    *,
    now: int,
    lifetime: int,
    schema: int = PROJECT_MEMBER,
) -> Credential:
    """Say something of `subject`, with the credential key of `attestation` (02 §5.1); not for
    longer than that key lives. Attributes are written in plain lexicographic order (02 §2). The latest
    change of a subject is left open where we do not have its history."""
    key = attestation.credential_key
    if key is None:
        raise TrustError("the attested key is not for signing credentials")
    known = subject if isinstance(subject, ChangeHistory) else None
    body: list[object] = [
        subject if known is None else known.identifier,
        None if known is None else known.latest.hash,
        [schema, dict(sorted(attributes.items()))],
        max(now, attestation.created_at),
        min(now + lifetime, attestation.expires_at),
    ]
    data = versioned_data(_CREDENTIAL, body)
    signature = signed(key, sign, data, "credential")
    pair = [[data, signature.structure()], cbor.Raw(attestation.encoded)]
    return Credential.decode(cbor.encode(pair))


def _read_attributes(value: object) -> dict[bytes, bytes]:
    if not isinstance(value, dict):
        raise DecodeError("a map of attributes was expected")
    return {cbor.as_bytes(key): cbor.as_bytes(attribute) for key, attribute in value.items()}
