"""Key derivation of TPM 2.0 (part 1, §11.4.10 and annex C), and sharing a seed with a key of a TPM."""

import hmac
import os
from typing import NamedTuple

from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES

from vault_backends.tpm.structures import (
    CURVES,
    DIGEST_BYTES,
    HASHES,
    SHA1,
    SHA256,
    SHA384,
    SHA512,
    Ecc,
    Public,
    digest,
    sized,
    u32,
)

_OAEP_HASHES: dict[int, hashes.HashAlgorithm] = {
    SHA1: hashes.SHA1(), SHA256: hashes.SHA256(), SHA384: hashes.SHA384(), SHA512: hashes.SHA512(),
}  # fmt: skip


def kdfa(algorithm: int, key: bytes, label: str, u: bytes, v: bytes, bits: int) -> bytes:
    """SP800-108 in counter mode with HMAC; for whole bytes."""
    tail = label.encode() + b"\0" + u + v + u32(bits)
    rounds = range(1, bits // 8 // DIGEST_BYTES[algorithm] + 2)
    out = b"".join(hmac.digest(key, u32(n) + tail, HASHES[algorithm]) for n in rounds)
    return out[: bits // 8]


def kdfe(algorithm: int, z: bytes, label: str, u: bytes, v: bytes, bits: int) -> bytes:
    """SP800-56A concatenation; for whole bytes."""
    tail = z + label.encode() + b"\0" + u + v
    rounds = range(1, bits // 8 // DIGEST_BYTES[algorithm] + 2)
    return b"".join(digest(algorithm, u32(n) + tail) for n in rounds)[: bits // 8]


def aes_cfb(key: bytes, iv: bytes, data: bytes, *, decrypt: bool = False) -> bytes:
    cipher = Cipher(AES(key), CFB(iv))
    context = cipher.decryptor() if decrypt else cipher.encryptor()
    return context.update(data) + context.finalize()


class Shared(NamedTuple):
    """A seed, and what tells it to the owner of the key alone (TPM2B_ENCRYPTED_SECRET, unsized)."""

    seed: bytes
    encrypted: bytes


def share(key: Public, label: str) -> Shared:
    """A fresh seed for the TPM that holds the private half of `key` (part 1, annexes B.10, C.6)."""
    algorithm, public = key.name_algorithm, key.public_key()
    size = DIGEST_BYTES[algorithm]
    if isinstance(public, rsa.RSAPublicKey):
        seed, how = os.urandom(size), _OAEP_HASHES[algorithm]
        oaep = padding.OAEP(padding.MGF1(how), how, label.encode() + b"\0")
        return Shared(seed, public.encrypt(seed, oaep))
    assert isinstance(key.key, Ecc)
    mine = ec.generate_private_key(CURVES[key.key.curve])
    x, y = _coordinates(mine.public_key())
    theirs, _ = _coordinates(public)
    z = mine.exchange(ec.ECDH(), public)
    return Shared(kdfe(algorithm, z, label, x, theirs, 8 * size), sized(x) + sized(y))


def _coordinates(public: ec.EllipticCurvePublicKey) -> tuple[bytes, bytes]:
    numbers, size = public.public_numbers(), (public.key_size + 7) // 8
    return numbers.x.to_bytes(size, "big"), numbers.y.to_bytes(size, "big")
