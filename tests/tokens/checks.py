"""Signatures, verified by others than our own code."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, utils
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.tokens.processes import run
from vault_backends.vault import Kind


def _key(kind: Kind, public: bytes) -> ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey:
    if kind is Kind.ED25519:
        return ed25519.Ed25519PublicKey.from_public_bytes(public)
    return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), public)


def _der(signature: bytes) -> bytes:
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    return utils.encode_dss_signature(r, s)


def check(kind: Kind, public: bytes, signature: bytes, data: bytes) -> None:
    """Raises InvalidSignature."""
    assert len(signature) == 64
    key = _key(kind, public)
    if isinstance(key, ed25519.Ed25519PublicKey):
        key.verify(signature, data)
    else:
        key.verify(_der(signature), data, ec.ECDSA(hashes.SHA256()))


def openssl_verifies(
    folder: Path, kind: Kind, public: bytes, signature: bytes, data: bytes
) -> bool:
    """What the command openssl says of it."""
    pem = _key(kind, public).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (folder / "public.pem").write_bytes(pem)
    (folder / "signature").write_bytes(signature if kind is Kind.ED25519 else _der(signature))
    (folder / "data").write_bytes(data)
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", folder / "public.pem"]
    command += ["-sigfile", folder / "signature", "-rawin", "-in", folder / "data"]
    if kind is Kind.P256:
        command += ["-digest", "sha256"]
    return run(command, check=False).returncode == 0
