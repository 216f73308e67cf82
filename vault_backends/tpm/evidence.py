"""Verifying what a TPM said, without a TPM, network or clock of one's own: all of it is arguments.

`verify` shows that an attestation key says, now (the nonce) and with these PCRs, that a key was made in
a TPM and cannot leave it; and that the certificate in the file leads to a trusted maker. That the
attestation key is in the TPM of that certificate, and so in any TPM at all, only an answered challenge
proves: `challenge`, then `settled` with what the machine's `attest.answer` returns. Without it whoever
has the certificate of some TPM, which is no secret, can make all the rest in software."""

import hmac
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from vault_backends.tpm.bundle import Answer, Bundle, Challenge, Pcrs, certify_nonce, pcr_digest
from vault_backends.tpm.chain import certificate, check_chain
from vault_backends.tpm.credential import make_credential
from vault_backends.tpm.structures import (
    ATTRIBUTES,
    DECRYPT,
    FIXED_PARENT,
    FIXED_TPM,
    P256,
    RESTRICTED,
    SENSITIVE_DATA_ORIGIN,
    SHA256,
    SHA384,
    SHA512,
    SIGN,
    USER_WITH_AUTH,
    Attestation,
    Certified,
    Clock,
    Ecc,
    EcdsaSignature,
    Public,
    Quoted,
    u16,
    u32,
)
from vault_backends.vault import Refused

__all__ = ["Check", "Evidence", "Verdict", "challenge", "examine", "settled", "verify"]

_ENDORSEMENT = 0x4000000B  # TPM_RH_ENDORSEMENT
_BORN_HERE = FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN
_SECRET_BYTES = 32
_EK_NAMED_BY = {SHA256, SHA384, SHA512}

History = Callable[[str, bytes, bytes], str]
"""Identifier, change history and public key of the evidence -> what was found, or Refused. Ockam is not
known here."""


class Check(NamedTuple):
    """One thing that was looked at. `said` is what was found, or why it was refused."""

    name: str
    passed: bool
    said: str


@dataclass(frozen=True)
class Evidence:
    """What good evidence says. `digest` is the SHA-256 of its file."""

    identifier: str
    public_key: bytes
    history: bytes
    ek_certificate: x509.Certificate
    ek: Public
    ak: Public
    pcrs: Pcrs
    clock: Clock
    firmware: int
    digest: bytes


class Verdict(NamedTuple):
    """All checks in their order, and the evidence if every one passed."""

    checks: list[Check]
    evidence: Evidence | None

    @property
    def failed(self) -> list[Check]:
        return [check for check in self.checks if not check.passed]


def verify(
    data: bytes,
    ca: Sequence[x509.Certificate],
    nonce: bytes,
    *,
    now: datetime,
    pcrs: Mapping[tuple[str, int], bytes] | None = None,
    identifier: str | None = None,
    history: History | None = None,
) -> Evidence:
    """The evidence in the file `data`. Refused, with the names of the checks that failed, unless the
    EK's certificate leads to one of `ca`, it was made for `nonce`, and the PCRs have the values that
    `pcrs` demands, such as {("sha256", 7): value}. `identifier` is whose it must be, and `history`
    verifies the change history in it."""
    verdict = examine(data, ca, nonce, now=now, pcrs=pcrs, identifier=identifier, history=history)
    if verdict.evidence is None:
        failed = "; ".join(f"{check.name}: {check.said}" for check in verdict.failed)
        raise Refused(f"the evidence is refused: {failed}")
    return verdict.evidence


def examine(
    data: bytes,
    ca: Sequence[x509.Certificate],
    nonce: bytes,
    *,
    now: datetime,
    pcrs: Mapping[tuple[str, int], bytes] | None = None,
    identifier: str | None = None,
    history: History | None = None,
) -> Verdict:
    """As `verify`, but every check runs and is listed, whatever the others say."""
    try:
        read = _Read.of(data)
    except Refused as error:
        return Verdict([Check("encoding", False, str(error))], None)
    steps = [*_steps(read, ca, nonce, now), *_demands(read.bundle, pcrs, identifier, history)]
    checks = [Check("encoding", True, f"{len(data)} bytes in canonical form")]
    checks += [_checked(name, step) for name, step in steps]
    good = all(check.passed for check in checks)
    return Verdict(checks, read.evidence(data) if good else None)


def challenge(evidence: Evidence) -> tuple[bytes, bytes]:
    """The file of a challenge for the machine that the evidence is of, and the file of the answer
    that it must give; keep the second secret."""
    secret, name = os.urandom(_SECRET_BYTES), evidence.ak.name
    made = make_credential(evidence.ek, name, secret)
    blob = Challenge(evidence.ek.encode(), name, made.blob, made.seed)
    return blob.encode(), Answer(name, secret).encode()


def settled(evidence: Evidence, kept: bytes, answer: bytes) -> bool:
    """Whether `answer` is the one kept with the challenge, and both are about this evidence."""
    mine = Answer.decode(kept)
    return mine.ak_name == evidence.ak.name and hmac.compare_digest(kept, answer)


class _Read(NamedTuple):
    """A bundle whose parts could be read; nothing of it is proven yet."""

    bundle: Bundle
    ek: Public
    ak: Public
    key: Public
    certify: Attestation
    quote: Attestation

    @classmethod
    def of(cls, data: bytes) -> "_Read":
        bundle = Bundle.decode(data)
        return cls(
            bundle,
            ek=Public.decode(bundle.ek_public),
            ak=Public.decode(bundle.ak_public),
            key=Public.decode(bundle.key_public),
            certify=Attestation.decode(bundle.certify),
            quote=Attestation.decode(bundle.quote),
        )

    def evidence(self, data: bytes) -> Evidence:
        return Evidence(
            identifier=self.bundle.identifier,
            public_key=self.bundle.public_key,
            history=self.bundle.history,
            ek_certificate=certificate(self.bundle.ek_certificate),
            ek=self.ek,
            ak=self.ak,
            pcrs=self.bundle.pcrs,
            clock=self.quote.clock,
            firmware=self.quote.firmware,
            digest=sha256(data).digest(),
        )


def _checked(name: str, step: Callable[[], str]) -> Check:
    try:
        return Check(name, True, step())
    except Refused as error:
        said = f"{error} ({error.hint})" if error.hint else str(error)
        return Check(name, False, said)


_Steps = Iterator[tuple[str, Callable[[], str]]]


def _steps(read: _Read, ca: Sequence[x509.Certificate], nonce: bytes, now: datetime) -> _Steps:
    bundle = read.bundle
    yield "nonce", lambda: _nonce(bundle, nonce)
    yield "ek-chain", lambda: _ek_chain(bundle, ca, now)
    yield "ek-public", lambda: _ek_public(read)
    yield "ak-attributes", lambda: _ak_attributes(read.ak)
    yield "certify-signature", lambda: _signature(read.ak, bundle.certify, bundle.certify_signature)
    yield "certify", lambda: _certify(read, nonce)
    yield "key-attributes", lambda: _key_attributes(read.key)
    yield "key-public", lambda: _key_public(read)
    yield "quote-signature", lambda: _signature(read.ak, bundle.quote, bundle.quote_signature)
    yield "quote", lambda: _quote(read)
    yield "pcr-digest", lambda: _pcr_digest(read)


def _demands(
    bundle: Bundle,
    pcrs: Mapping[tuple[str, int], bytes] | None,
    identifier: str | None,
    history: History | None,
) -> _Steps:
    """What only this verifier asks for."""
    if pcrs:
        yield "pcr-values", lambda: _pcr_values(bundle.pcrs, pcrs)
    if identifier is not None:
        yield "identifier", lambda: _identifier(bundle, identifier)
    if history is not None:
        yield "history", lambda: history(bundle.identifier, bundle.history, bundle.public_key)


def _nonce(bundle: Bundle, nonce: bytes) -> str:
    if not hmac.compare_digest(bundle.nonce, nonce):
        raise Refused("made for another nonce")
    return nonce.hex()


def _ek_chain(bundle: Bundle, ca: Sequence[x509.Certificate], now: datetime) -> str:
    chain = check_chain(bundle.ek_certificate, bundle.ek_chain, ca, now)
    return " <- ".join(one.subject.rfc4514_string() or "(no subject)" for one in chain)


def _ek_public(read: _Read) -> str:
    """The EK is the certified key, and one that can only decrypt what was made for this TPM."""
    good = read.ek.has(_BORN_HERE | RESTRICTED | DECRYPT, SIGN) and read.ek.symmetric_bits
    if not good or read.ek.name_algorithm not in _EK_NAMED_BY:
        raise Refused(f"not the attributes of an endorsement key: {_words(read.ek)}")
    certified = certificate(read.bundle.ek_certificate).public_key()
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if certified.public_bytes(*form) != read.ek.public_key().public_bytes(*form):
        raise Refused("the endorsement key is not the one in its certificate")
    return "the key in the certificate"


def _ak_attributes(ak: Public) -> str:
    """Restricted: it signs only what the TPM itself made, never data from outside that looks so."""
    if not ak.has(_BORN_HERE | RESTRICTED | SIGN, DECRYPT):
        raise Refused(f"not the attributes of an attestation key: {_words(ak)}")
    if not isinstance(ak.key, Ecc) or (ak.key.curve, ak.signs_with) != (P256, SHA256):
        raise Refused("the attestation key is not P-256 for ECDSA over SHA-256")
    if ak.name_algorithm != SHA256:
        raise Refused("the attestation key is not named by SHA-256")
    return _words(ak)


def _signature(ak: Public, said: bytes, signature: bytes) -> str:
    found = EcdsaSignature(signature[:32], signature[32:])
    if len(signature) != 64 or not found.is_low:
        raise Refused("not a signature in its canonical form")
    key = ak.public_key()
    try:
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise InvalidSignature
        key.verify(found.der(), said, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise Refused("not signed by the attestation key") from None
    return "by the attestation key"


def _certify(read: _Read, nonce: bytes) -> str:
    said = read.certify
    if not isinstance(said.attested, Certified):
        raise Refused("a statement of another type")
    _check_signer(read.ak, said)
    if said.extra_data != certify_nonce(nonce):
        raise Refused("made for another nonce")
    if said.attested.name != read.key.name:
        raise Refused("it certifies another key")
    return f"name {read.key.name.hex()}"


def _check_signer(ak: Public, said: Attestation) -> None:
    """The AK is a primary key of the endorsement hierarchy (part 1, §16: qualified names)."""
    qualified = u16(SHA256) + sha256(u32(_ENDORSEMENT) + ak.name).digest()
    if said.qualified_signer != qualified:
        raise Refused("the signer is no primary key of the endorsement hierarchy")


def _key_attributes(key: Public) -> str:
    wanted = _BORN_HERE | USER_WITH_AUTH | SIGN
    if not key.has(wanted):
        missing = [word for bit, word in ATTRIBUTES.items() if wanted & bit & ~key.attributes]
        raise Refused(
            f"the key could leave the TPM, or was not made there: not {', '.join(missing)}"
        )
    if key.has(RESTRICTED):  # an attestation key, which vouches for itself and signs no identity
        raise Refused(
            f"the key is a restricted one, which signs nothing of an identity: {_words(key)}"
        )
    return _words(key)


def _key_public(read: _Read) -> str:
    key = read.key.key
    if not isinstance(key, Ecc) or key.curve != P256:
        raise Refused("the certified key is not on P-256")
    if read.key.point() != read.bundle.public_key:
        raise Refused("the certified key is not the identity's")
    return read.bundle.public_key.hex()


def _quote(read: _Read) -> str:
    said = read.quote
    if not isinstance(said.attested, Quoted):
        raise Refused("a statement of another type")
    _check_signer(read.ak, said)
    if said.extra_data != read.bundle.bound():
        raise Refused("the file is not the one that was signed: something in it was changed")
    return "covers the whole file"


def _pcr_digest(read: _Read) -> str:
    quoted, pcrs = read.quote.attested, read.bundle.pcrs
    if not isinstance(quoted, Quoted) or quoted.selections != read.bundle.selections():
        raise Refused("other PCRs were quoted than are listed")
    if quoted.digest != pcr_digest(pcrs):
        raise Refused("the listed PCR values are not those that were quoted")
    return "+".join(f"{bank}:{','.join(map(str, sorted(pcrs[bank])))}" for bank in sorted(pcrs))


def _pcr_values(found: Pcrs, wanted: Mapping[tuple[str, int], bytes]) -> str:
    wrong = [
        f"{bank}:{index} is {found.get(bank, {}).get(index, b'').hex() or 'not quoted'}"
        for (bank, index), value in wanted.items()
        if found.get(bank, {}).get(index) != value
    ]
    if wrong:
        raise Refused("; ".join(wrong))
    return f"{len(wanted)} as demanded"


def _identifier(bundle: Bundle, wanted: str) -> str:
    if bundle.identifier != wanted:
        raise Refused(f"it is about {bundle.identifier or 'a key without an identity'}")
    return wanted


def _words(key: Public) -> str:
    return "|".join(key.words())
