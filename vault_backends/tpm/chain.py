"""Whether an endorsement key's certificate leads to a certificate authority that the operator named.

The path is checked by `cryptography`'s verifier with its web rules for authorities. For the
certificate at the end the web rules do not fit: it names no host and may hold critical extensions
that only the TPM world knows (TCG EK Credential Profile 2.5, §3). What it must say instead is below."""

from collections.abc import Sequence
from datetime import datetime

from cryptography import x509
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


def certificate(der: bytes) -> x509.Certificate:
    """One certificate, alone. NV space may be padded behind it: cut it with `trimmed` first."""
    try:
        return x509.load_der_x509_certificate(der)
    except ValueError as error:
        raise Refused(f"the endorsement certificate is no certificate: {error}") from None


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
    _check_leaf(leaf)
    policy = (
        PolicyBuilder()
        .store(Store(list(trusted)))
        .time(now)
        .max_chain_depth(_CHAIN_LONGEST)
        .extension_policies(ca_policy=_ca_policy(), ee_policy=ExtensionPolicy.permit_all())
    )
    try:
        return policy.build_client_verifier().verify(leaf, list(map(certificate, between))).chain
    except (VerificationError, ValueError) as error:
        raise Refused(
            f"the endorsement certificate does not lead to the CA file: {error}",
            hint=f"it was issued by {leaf.issuer.rfc4514_string()}",
        ) from None


def _ca_policy() -> ExtensionPolicy:
    """The web rules, but an authority of TPM makers may say it is for EK certificates only."""
    rules = ExtensionPolicy.webpki_defaults_ca()
    return rules.may_be_present(x509.ExtendedKeyUsage, Criticality.AGNOSTIC, _for_eks)


def _for_eks(_: Policy, __: x509.Certificate, usage: x509.ExtendedKeyUsage | None) -> None:
    anything = ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE
    if usage is not None and EK_CERTIFICATE not in usage and anything not in usage:
        raise ValueError("an authority that is not for endorsement certificates")


def _check_leaf(leaf: x509.Certificate) -> None:
    try:
        found = {one.oid: one for one in leaf.extensions}
    except ValueError as error:
        raise Refused(f"the endorsement certificate's extensions: {error}") from None
    for oid, one in found.items():
        if one.critical and oid not in _UNDERSTOOD:
            raise Refused(
                f"the endorsement certificate has a critical extension {oid.dotted_string}"
            )
    constraints = found.get(ExtensionOID.BASIC_CONSTRAINTS)
    if constraints is not None and constraints.value.ca:
        raise Refused("the endorsement certificate is one of an authority")
    usage = found.get(ExtensionOID.EXTENDED_KEY_USAGE)
    if usage is not None:
        _for_eks_leaf(usage.value)
    key_usage = found.get(ExtensionOID.KEY_USAGE)
    if key_usage is not None and not (
        key_usage.value.key_encipherment or key_usage.value.key_agreement
    ):
        raise Refused("the certificate is not for a key that receives secrets, so not for an EK")


def _for_eks_leaf(usage: x509.ExtendedKeyUsage) -> None:
    if EK_CERTIFICATE not in usage:
        raise Refused("the certificate is not for an endorsement key (extended key usage)")
