"""The file that evidence travels in: JSON in one canonical form, everything in it under one signature.

A file is read only if writing what was read gives the same bytes. The quote signs a hash over all of
it but itself, so no byte of the file can be changed, added or taken away unnoticed."""

import hashlib
import json
import re
from dataclasses import dataclass, fields
from typing import Any

from vault_backends.tpm.structures import DIGEST_BYTES, HASH_NUMBERS, PCR_LAST, Malformed, Selection

FORMAT = "ockam-edge tpm evidence 1"
LONGEST = 256 * 1024  # bytes of a file; certificates are the most of it, and chips hold little
_QUOTE_DOMAIN = b"ockam-edge tpm quote 1\0"
_CERTIFY_DOMAIN = b"ockam-edge tpm certify 1\0"
_IDENTIFIER = re.compile(r"(I[0-9a-f]{64})?")
_OUTSIDE = ("quote", "quote_signature")
NONCE_BYTES = range(16, 65)

Pcrs = dict[str, dict[int, bytes]]


@dataclass(frozen=True)
class Bundle:
    """What a TPM and its machine say. `*_public` are TPMT_PUBLIC, `certify` and `quote` TPMS_ATTEST,
    signatures 64 bytes `r || s` of P-256 with the lower `s`; certificates are DER."""

    nonce: bytes
    identifier: str  # of the Ockam identity; empty for a bare key
    history: bytes  # its change history, which whoever knows Ockam verifies; may be empty
    public_key: bytes  # the key's uncompressed point
    key_public: bytes
    ek_certificate: bytes
    ek_chain: tuple[bytes, ...]
    ek_public: bytes
    ak_public: bytes
    certify: bytes
    certify_signature: bytes
    pcrs: Pcrs
    quote: bytes = b""
    quote_signature: bytes = b""

    def encode(self) -> bytes:
        return _canonical({"format": FORMAT, **_plain(self)})

    def bound(self) -> bytes:
        """What the quote must carry: a hash over everything else."""
        rest = {name: value for name, value in _plain(self).items() if name not in _OUTSIDE}
        signed = _canonical({"format": FORMAT, **rest})
        return hashlib.sha256(_QUOTE_DOMAIN + signed).digest()

    def selections(self) -> tuple[Selection, ...]:
        return selections(self.pcrs)

    @classmethod
    def decode(cls, data: bytes) -> "Bundle":
        """Malformed unless `data` is exactly what `encode` writes."""
        found = _object(data, FORMAT, {one.name for one in fields(cls)})
        chain, pcrs = found.pop("ek_chain"), _read_pcrs(found.pop("pcrs"))
        identifier = found.pop("identifier")
        if not isinstance(chain, list) or not isinstance(identifier, str):
            raise Malformed("a field of the evidence has the wrong type")
        if not _IDENTIFIER.fullmatch(identifier):
            raise Malformed("the identifier in the evidence is none")
        octets = {name: _unhex(value) for name, value in found.items()}
        bundle = cls(identifier=identifier, ek_chain=tuple(map(_unhex, chain)), pcrs=pcrs, **octets)
        if bundle.encode() != data:
            raise Malformed("the evidence is not in its canonical form")
        return bundle


def certify_nonce(nonce: bytes) -> bytes:
    """What TPM2_Certify must carry for this nonce of the verifier."""
    return hashlib.sha256(_CERTIFY_DOMAIN + nonce).digest()


def selections(pcrs: Pcrs) -> tuple[Selection, ...]:
    return tuple(Selection(HASH_NUMBERS[bank], tuple(sorted(pcrs[bank]))) for bank in sorted(pcrs))


def pcr_digest(pcrs: Pcrs) -> bytes:
    """The hash that a quote by a SHA-256 key has over these values."""
    values = b"".join(pcrs[bank][index] for bank in sorted(pcrs) for index in sorted(pcrs[bank]))
    return hashlib.sha256(values).digest()


@dataclass(frozen=True)
class Challenge:
    """For the machine with the TPM: a secret only it can read (see credential.py)."""

    FORMAT = "ockam-edge tpm challenge 1"
    ek_public: bytes
    ak_name: bytes
    credential: bytes
    seed: bytes

    def encode(self) -> bytes:
        return _canonical({"format": self.FORMAT, **_plain(self)})

    @classmethod
    def decode(cls, data: bytes) -> "Challenge":
        return cls(**_octets(data, cls.FORMAT, {one.name for one in fields(cls)}))


@dataclass(frozen=True)
class Answer:
    """The secret of a challenge, and the name of the AK it was made for. The verifier keeps one; the
    machine, if it can, sends the same."""

    FORMAT = "ockam-edge tpm answer 1"
    ak_name: bytes
    secret: bytes

    def encode(self) -> bytes:
        return _canonical({"format": self.FORMAT, **_plain(self)})

    @classmethod
    def decode(cls, data: bytes) -> "Answer":
        return cls(**_octets(data, cls.FORMAT, {one.name for one in fields(cls)}))


def _canonical(value: dict[str, Any]) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=True).encode() + b"\n"


def _plain(value: Any) -> dict[str, Any]:
    return {one.name: _plain_value(getattr(value, one.name)) for one in fields(value)}


def _plain_value(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple):
        return [_plain_value(one) for one in value]
    if isinstance(value, dict):
        return {str(key): _plain_value(one) for key, one in value.items()}
    return value


def _object(data: bytes, wanted: str, names: set[str]) -> dict[str, Any]:
    if len(data) > LONGEST:
        raise Malformed(f"more than {LONGEST} bytes: not what this command reads")
    try:
        found = json.loads(data.decode("ascii"))
    except (ValueError, RecursionError):
        raise Malformed("not JSON in ASCII") from None
    if not isinstance(found, dict) or found.pop("format", None) != wanted:
        raise Malformed(f"not of the format {wanted!r}")
    if found.keys() != names:
        raise Malformed("fields are missing, or there are others")
    return found


def _octets(data: bytes, wanted: str, names: set[str]) -> dict[str, bytes]:
    found = {name: _unhex(value) for name, value in _object(data, wanted, names).items()}
    again = {"format": wanted, **{name: value.hex() for name, value in found.items()}}
    if _canonical(again) != data:
        raise Malformed("not in the canonical form")
    return found


def _unhex(value: Any) -> bytes:
    if not isinstance(value, str):
        raise Malformed("a field has the wrong type")
    try:
        return bytes.fromhex(value)
    except ValueError:
        raise Malformed("a field is not in hex") from None


def _read_pcrs(value: Any) -> Pcrs:
    """At least one PCR, each value as long as its bank's hash."""
    if not isinstance(value, dict) or not value or not value.keys() <= HASH_NUMBERS.keys():
        raise Malformed("the evidence names no PCR bank that is known here")
    pcrs: Pcrs = {}
    for bank, values in value.items():
        if not isinstance(values, dict) or not values:
            raise Malformed("a PCR bank without values")
        pcrs[bank] = {_index(text): _unhex(one) for text, one in values.items()}
        size = DIGEST_BYTES[HASH_NUMBERS[bank]]
        if any(len(one) != size for one in pcrs[bank].values()):
            raise Malformed(f"a PCR of {bank} does not have {size} bytes")
    return pcrs


def _index(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,2}", text) or int(text) > PCR_LAST:
        raise Malformed("there is no such PCR")
    return int(text)
