"""Whether an endorsement key's certificate leads to a certificate authority that the operator named.

The path of authorities is checked by `cryptography`'s verifier. The certificate at its end is checked
here: it names no host, and may have critical extensions that a verifier for the web refuses, such as
the directory attributes with the TPM's specification (TCG EK Credential Profile 2.5, §3)."""

from collections.abc import Sequence
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID
from cryptography.x509.verification import (
    Criticality,
    ExtensionPolicy,
    Policy,
    PolicyBuilder,
    Store,
    VerificationError,
)

from vault_backends.vault import Misconfigured, Refused

EK_CERTIFICATE = x509.ObjectIdentifier("2.23.133.8.1")  # tcg-kp-EKCertificate
_CHAIN_LONGEST = 8
# What `cryptography` raises for bytes that are no good certificate; much of it only when a field is
# looked at.
UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
_GOOD_HASHES = {"sha256", "sha384", "sha512"}
# Critical extensions that are understood here, or that say nothing about what the key may do: who
# made the TPM (alternative name, directory attributes), and under which policy.
_UNDERSTOOD = {
    ExtensionOID.BASIC_CONSTRAINTS,
    ExtensionOID.KEY_USAGE,
    ExtensionOID.EXTENDED_KEY_USAGE,
    ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
    ExtensionOID.SUBJECT_DIRECTORY_ATTRIBUTES,
    ExtensionOID.CERTIFICATE_POLICIES,
}


def authorities(pem: bytes) -> list[x509.Certificate]:
    """The certificates of a CA file, each of them trusted. Misconfigured if there is none."""
    try:
        found = x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise Misconfigured(
            "the CA file holds no certificates in PEM",
            hint="put the root of the TPM's maker there; openssl x509 -inform DER converts",
        ) from None
    return found


def given_certificates(data: bytes) -> list[bytes]:
    """The certificates of a file, PEM or DER, as DER. Misconfigured if there is none."""
    try:
        if b"-----BEGIN" in data:
            found = x509.load_pem_x509_certificates(data)
        else:
            found = [x509.load_der_x509_certificate(data)]
        return [one.public_bytes(Encoding.DER) for one in found]
    except UNREADABLE as error:
        raise Misconfigured(f"the file holds no certificate: {error}") from None


def certificate(der: bytes) -> x509.Certificate:
    """One certificate, alone; Refused if it is none. From NV space, cut it with `trimmed` first."""
    try:
        found = x509.load_der_x509_certificate(der)
        _ = found.version, found.subject, found.issuer, found.public_key()
        _ = found.not_valid_before_utc, found.not_valid_after_utc
    except UNREADABLE as error:
        raise Refused(f"not a certificate that can be read: {error}") from None
    return found


def trimmed(data: bytes) -> list[bytes]:
    """The DER sequences at the front of `data`, until padding or anything else starts."""
    found: list[bytes] = []
    while len(data) > 4 and data[:2] == b"\x30\x82":
        size = 4 + int.from_bytes(data[2:4], "big")
        if size > len(data):
            break
        found.append(data[:size])
        data = data[size:]
    return found


def check_chain(
    der: bytes, between: Sequence[bytes], trusted: Sequence[x509.Certificate], now: datetime
) -> list[x509.Certificate]:
    """The path from the endorsement certificate to one of `trusted`; Refused if there is none."""
    leaf = certificate(der)
    _check_leaf(leaf, now)
    others = [certificate(one) for one in between]
    why = "no certificate of its issuer was given"
    for issuer in (*trusted, *others):
        if issuer.subject != leaf.issuer:
            continue
        try:
            leaf.verify_directly_issued_by(issuer)
            path = [leaf, *_authority_path(issuer, others, trusted, now)]
            _check_lengths(path)
            return path
        except (*UNREADABLE, InvalidSignature, VerificationError) as error:
            why = str(error) or "the signature does not verify"
    raise Refused(
        f"the endorsement certificate does not lead to the CA file: {why}",
        hint=f"it was issued by {leaf.issuer.rfc4514_string()}",
    )


def _authority_path(
    issuer: x509.Certificate,
    between: Sequence[x509.Certificate],
    trusted: Sequence[x509.Certificate],
    now: datetime,
) -> list[x509.Certificate]:
    """From an authority to a trusted one. ValueError or VerificationError if there is no way."""
    rules = ExtensionPolicy.webpki_defaults_ca().may_be_present(
        x509.ExtendedKeyUsage, Criticality.AGNOSTIC, _for_eks
    )
    first = (
        ExtensionPolicy.permit_all()
        .require_present(x509.BasicConstraints, Criticality.AGNOSTIC, _is_authority)
        .may_be_present(x509.KeyUsage, Criticality.AGNOSTIC, _signs_certificates)
        .may_be_present(x509.ExtendedKeyUsage, Criticality.AGNOSTIC, _for_eks)
        .require_not_present(x509.NameConstraints)  # would have to be held against the leaf
    )
    policy = PolicyBuilder().store(Store(list(trusted))).time(now).max_chain_depth(_CHAIN_LONGEST)
    policy = policy.extension_policies(ca_policy=rules, ee_policy=first)
    return policy.build_client_verifier().verify(issuer, list(between)).chain


def _is_authority(_: Policy, __: x509.Certificate, found: x509.BasicConstraints) -> None:
    if not found.ca:
        raise ValueError("its issuer is no authority")


def _signs_certificates(_: Policy, __: x509.Certificate, found: x509.KeyUsage | None) -> None:
    if found is not None and not found.key_cert_sign:
        raise ValueError("its issuer may not sign certificates")


def _for_eks(_: Policy, __: x509.Certificate, usage: x509.ExtendedKeyUsage | None) -> None:
    """An authority of TPM makers may say that it is for EK certificates only, and for nothing less."""
    anything = ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE
    if usage is not None and EK_CERTIFICATE not in usage and anything not in usage:
        raise ValueError("its issuer is not for endorsement certificates")


def _check_lengths(path: Sequence[x509.Certificate]) -> None:
    """How many authorities each allows below itself (RFC 5280, §4.2.1.9)."""
    for below, authority in enumerate(path[1:]):
        constraints = authority.extensions.get_extension_for_class(x509.BasicConstraints).value
        if constraints.path_length is not None and constraints.path_length < below:
            raise ValueError("the path has more authorities than one of them allows")


def _check_leaf(leaf: x509.Certificate, now: datetime) -> None:
    if not leaf.not_valid_before_utc <= now <= leaf.not_valid_after_utc:
        raise Refused("the endorsement certificate is not valid at this time")
    try:
        how, found = leaf.signature_hash_algorithm, {one.oid: one for one in leaf.extensions}
    except UNREADABLE as error:
        raise Refused(f"the endorsement certificate cannot be read: {error}") from None
    if how is None or how.name not in _GOOD_HASHES:
        raise Refused("the endorsement certificate is signed over a hash that is not trusted")
    for oid, one in found.items():
        if one.critical and oid not in _UNDERSTOOD:
            raise Refused(
                f"the endorsement certificate has a critical extension {oid.dotted_string}"
            )
    constraints = found.get(ExtensionOID.BASIC_CONSTRAINTS)
    if constraints is not None and constraints.value.ca:
        raise Refused("the endorsement certificate is one of an authority")
    usage = found.get(ExtensionOID.EXTENDED_KEY_USAGE)
    if usage is not None and EK_CERTIFICATE not in usage.value:
        raise Refused("the certificate is not for an endorsement key (extended key usage)")
    key_usage = found.get(ExtensionOID.KEY_USAGE)
    if key_usage is not None and not (
        key_usage.value.key_encipherment or key_usage.value.key_agreement
    ):
        raise Refused("the certificate is not for a key that receives secrets, so not for an EK")
