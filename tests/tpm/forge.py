"""A TPM of our own making, in software, with a maker's CA: for evidence that is wrong in one place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from vault_backends.tpm.bundle import Bundle, Pcrs, certify_nonce, pcr_digest, selections
from vault_backends.tpm.chain import EK_CERTIFICATE
from vault_backends.tpm.structures import (
    DECRYPT,
    FIXED_PARENT,
    FIXED_TPM,
    P256,
    P256_ORDER,
    RESTRICTED,
    SENSITIVE_DATA_ORIGIN,
    SHA256,
    SIGN,
    USER_WITH_AUTH,
    Attestation,
    Certified,
    Clock,
    Ecc,
    Public,
    Quoted,
    u16,
    u32,
)

NOW = datetime(2027, 1, 1, tzinfo=UTC)
NONCE = b"n" * 32
BORN = FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN
ECDH = x509.KeyUsage(False, False, False, False, True, False, False, False, False)
ISSUING = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
Extensions = list[tuple[x509.ExtensionType, bool]]


def private(number: int) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(number, ec.SECP256R1())


def area(key: ec.EllipticCurvePrivateKey, attributes: int, **given: Any) -> Public:
    numbers = key.public_key().public_numbers()
    point = Ecc(P256, numbers.x.to_bytes(32, "big"), numbers.y.to_bytes(32, "big"))
    return Public(SHA256, attributes, b"", 0, 0, point)._replace(**given)


def name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)] if text else [])


def issue(
    subject: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: str,
    by: ec.EllipticCurvePrivateKey,
    extensions: Extensions,
    *,
    until: datetime = NOW + timedelta(days=365),
) -> x509.Certificate:
    builder = x509.CertificateBuilder().subject_name(name(subject)).issuer_name(name(issuer))
    builder = builder.public_key(key.public_key()).serial_number(7)
    builder = builder.not_valid_before(NOW - timedelta(days=365)).not_valid_after(until)
    for one, critical in extensions:
        builder = builder.add_extension(one, critical=critical)
    return builder.sign(by, hashes.SHA256())


def authority_extensions(key: ec.EllipticCurvePrivateKey) -> Extensions:
    return [
        (x509.BasicConstraints(True, None), True),
        (ISSUING, True),
        (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
    ]


def leaf_extensions(issuer: ec.EllipticCurvePrivateKey) -> Extensions:
    who = x509.DirectoryName(name("id:00001014"))
    return [
        (x509.BasicConstraints(False, None), True),
        (ECDH, True),
        (x509.ExtendedKeyUsage([EK_CERTIFICATE]), False),
        (x509.SubjectAlternativeName([who]), True),
        # The maker's specification, critical although nobody else knows it.
        (x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.9"), b"\x30\x00"), True),
        (x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key()), False),
    ]


ROOT_KEY, MIDDLE_KEY, EK_KEY, AK_KEY, ID_KEY = map(private, range(1001, 1006))
ROOT = issue("root", ROOT_KEY, "root", ROOT_KEY, authority_extensions(ROOT_KEY))
MIDDLE_EXTENSIONS: Extensions = [
    *authority_extensions(MIDDLE_KEY),
    (x509.AuthorityKeyIdentifier.from_issuer_public_key(ROOT_KEY.public_key()), False),
    (x509.ExtendedKeyUsage([EK_CERTIFICATE]), False),
]
MIDDLE = issue("middle", MIDDLE_KEY, "root", ROOT_KEY, MIDDLE_EXTENSIONS)


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


def leaf(extensions: Extensions | None = None, **given: Any) -> x509.Certificate:
    """The certificate of the EK; its subject is empty, as the profile has it."""
    chosen = leaf_extensions(MIDDLE_KEY) if extensions is None else extensions
    return issue("", EK_KEY, "middle", MIDDLE_KEY, chosen, **given)


def sign(key: ec.EllipticCurvePrivateKey, data: bytes, *, high: bool = False) -> bytes:
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA256())))
    s = max(s, P256_ORDER - s) if high else min(s, P256_ORDER - s)
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


EK = area(EK_KEY, BORN | RESTRICTED | DECRYPT, symmetric_bits=128)
AK = area(AK_KEY, BORN | RESTRICTED | SIGN | USER_WITH_AUTH, signs_with=SHA256)
ID = area(ID_KEY, BORN | SIGN | USER_WITH_AUTH)
PCRS: Pcrs = {"sha256": {0: b"\x00" * 32, 7: b"\x07" * 32}}
AttestationChange = Callable[[Attestation], Attestation]


def unchanged(said: Attestation) -> Attestation:
    return said


@dataclass
class Forge:
    """Evidence that is right; each field is one way to make it wrong before it is signed."""

    nonce: bytes = NONCE
    ek: Public = EK
    ak: Public = AK
    key: Public = ID
    certificate: x509.Certificate = field(default_factory=leaf)
    chain: tuple[bytes, ...] = (der(MIDDLE),)
    public_key: bytes = ID.point()
    identifier: str = ""
    history: bytes = b""
    signer: ec.EllipticCurvePrivateKey = AK_KEY
    pcrs: Pcrs = field(default_factory=lambda: {bank: dict(PCRS[bank]) for bank in PCRS})
    change_certify: AttestationChange = unchanged
    change_quote: AttestationChange = unchanged
    high: bool = False

    def bundle(self) -> Bundle:
        certified = Certified(self.key.name, b"")
        certify = self.change_certify(self._said(certify_nonce(self.nonce), certified)).encode()
        bundle = Bundle(
            nonce=self.nonce,
            identifier=self.identifier,
            history=self.history,
            public_key=self.public_key,
            key_public=self.key.encode(),
            ek_certificate=der(self.certificate),
            ek_chain=self.chain,
            ek_public=self.ek.encode(),
            ak_public=self.ak.encode(),
            certify=certify,
            certify_signature=sign(self.signer, certify, high=self.high),
            pcrs=self.pcrs,
        )
        quoted = Quoted(selections(self.pcrs), pcr_digest(self.pcrs))
        quote = self.change_quote(self._said(bundle.bound(), quoted)).encode()
        signature = sign(self.signer, quote, high=self.high)
        return replace(bundle, quote=quote, quote_signature=signature)

    def file(self) -> bytes:
        return self.bundle().encode()

    def _said(self, extra: bytes, attested: Certified | Quoted) -> Attestation:
        signer = u16(SHA256) + sha256(u32(0x4000000B) + self.ak.name).digest()
        return Attestation(signer, extra, Clock(1000, 2, 3, True), 0x20191023, attested)
