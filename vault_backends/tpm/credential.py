"""Challenge a TPM to prove that two keys are in it (TPM2_MakeCredential, in software).

A secret is encrypted so that only the TPM with the endorsement key can read it, and only while the
attestation key of that name is loaded beside it (TPM 2.0 part 1, §24; EK Credential Profile §2)."""

import hmac
from typing import NamedTuple

from vault_backends.tpm.kdf import aes_cfb, kdfa, share
from vault_backends.tpm.structures import DIGEST_BYTES, HASHES, Public, sized
from vault_backends.vault import Refused


class Credential(NamedTuple):
    """What TPM2_ActivateCredential takes: a TPM2B_ID_OBJECT and a TPM2B_ENCRYPTED_SECRET, both
    without their outer size."""

    blob: bytes
    seed: bytes


def make_credential(ek: Public, ak_name: bytes, secret: bytes) -> Credential:
    """Encrypt `secret`, at most a digest long, to the TPM with `ek` and the key named `ak_name`."""
    algorithm, bits = ek.name_algorithm, ek.symmetric_bits
    size = DIGEST_BYTES[algorithm]
    if not bits:
        raise Refused("the endorsement key is no storage key: it has no cipher")
    if not 0 < len(secret) <= size:
        raise Refused(f"the secret of a challenge has 1 to {size} bytes, not {len(secret)}")
    seed, encrypted = share(ek, "IDENTITY")
    key = kdfa(algorithm, seed, "STORAGE", ak_name, b"", bits)
    sealed = aes_cfb(key, bytes(16), sized(secret))
    mac_key = kdfa(algorithm, seed, "INTEGRITY", b"", b"", 8 * size)
    mac = hmac.digest(mac_key, sealed + ak_name, HASHES[algorithm])
    return Credential(sized(mac) + sealed, encrypted)
