"""The encodings that tokens disagree about: points, curve names, signatures, key ids.

`cryptography` is imported where it is used: the process of a vault apart goes without it."""

import hashlib

from vault_backends.pkcs11.profiles import ED25519_NAME, ED25519_OID, P256_OID
from vault_backends.vault import Kind

SELF_TEST = b"ockam-edge self-test of a key\0"
"""What a key signs, with something random behind it, before its public half is believed."""

_LENGTHS = {Kind.ED25519: 32, Kind.P256: 65}
_CURVES = {
    ED25519_NAME: Kind.ED25519,
    ED25519_OID: Kind.ED25519,
    P256_OID: Kind.P256,
}


def curve(ec_params: bytes) -> Kind | None:
    """The kind behind CKA_EC_PARAMS. Needed beside the key type: SoftHSM keeps X25519 keys as
    Edwards."""
    return _CURVES.get(bytes(ec_params))


def point(kind: Kind, value: bytes) -> bytes | None:
    """The bare point in CKA_EC_POINT, bare or in a DER OCTET STRING; None if it is neither."""
    length = _LENGTHS[kind]
    if len(value) == length + 2 and value[:2] == bytes((4, length)):
        value = value[2:]
    if len(value) != length or (kind is Kind.P256 and value[0] != 4):
        return None
    return bytes(value)


def signature(kind: Kind, value: bytes) -> bytes:
    """r || s, also from a token that answers in DER. Whatever else comes is left for `verifies`."""
    if kind is Kind.P256 and len(value) != 64:
        from cryptography.hazmat.primitives.asymmetric import utils  # noqa: PLC0415

        try:
            r, s = utils.decode_dss_signature(value)
            return r.to_bytes(32, "big") + s.to_bytes(32, "big")
        except (ValueError, OverflowError):
            return value
    return value


def verifies(kind: Kind, public: bytes, data: bytes, signed: bytes) -> bool:
    if len(signed) != 64:
        return False
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415
    from cryptography.hazmat.primitives import hashes  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, utils  # noqa: PLC0415

    try:
        if kind is Kind.ED25519:
            ed25519.Ed25519PublicKey.from_public_bytes(public).verify(signed, data)
        else:
            r, s = int.from_bytes(signed[:32], "big"), int.from_bytes(signed[32:], "big")
            ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), public).verify(
                utils.encode_dss_signature(r, s), data, ec.ECDSA(hashes.SHA256())
            )
    except (InvalidSignature, ValueError):
        return False
    return True


def key_id(label: str, length: int) -> bytes:
    """CKA_ID from the label, so that making a key twice collides instead of making two. Never zero,
    which YubiHSM takes for "choose one"."""
    made = hashlib.sha256(b"ockam-edge key id\0" + label.encode()).digest()[:length]
    return made if any(made) else b"\1" * length
