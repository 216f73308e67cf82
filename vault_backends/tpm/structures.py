"""The structures of TPM 2.0 that evidence is made of, read strictly and written back byte for byte.

Layouts and numbers: TPM 2.0 Library, part 2 (Structures). Everything is big-endian; a sized buffer
(TPM2B) is a u16 and as many bytes. A reader takes exactly what it was given: what is left over,
missing or unknown raises Malformed."""

import hashlib
import struct
from collections.abc import Iterable
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from vault_backends.vault import Refused

# TPM_ALG_ID
RSA, SHA1, AES, SHA256, SHA384, SHA512, NULL = 0x01, 0x04, 0x06, 0x0B, 0x0C, 0x0D, 0x10
ECDSA, ECC, CFB, KEYEDHASH = 0x18, 0x23, 0x43, 0x08
HASHES = {SHA1: "sha1", SHA256: "sha256", SHA384: "sha384", SHA512: "sha512"}
HASH_NUMBERS = {name: number for number, name in HASHES.items()}
DIGEST_BYTES = {SHA1: 20, SHA256: 32, SHA384: 48, SHA512: 64}

# TPMA_OBJECT
FIXED_TPM, FIXED_PARENT, SENSITIVE_DATA_ORIGIN = 1 << 1, 1 << 4, 1 << 5
USER_WITH_AUTH, ADMIN_WITH_POLICY, NO_DA = 1 << 6, 1 << 7, 1 << 10
RESTRICTED, DECRYPT, SIGN = 1 << 16, 1 << 17, 1 << 18
ATTRIBUTES = {
    FIXED_TPM: "fixedtpm", FIXED_PARENT: "fixedparent",
    SENSITIVE_DATA_ORIGIN: "sensitivedataorigin", USER_WITH_AUTH: "userwithauth",
    ADMIN_WITH_POLICY: "adminwithpolicy", NO_DA: "noda", 1 << 2: "stclear",
    1 << 11: "encryptedduplication", RESTRICTED: "restricted", DECRYPT: "decrypt",
    SIGN: "sign", 1 << 19: "x509sign",
}  # fmt: skip
_RESERVED = 0xFFFFFFFF & ~sum(ATTRIBUTES)

P256, P384, P521 = 3, 4, 5  # TPM_ECC_CURVE
CURVES: dict[int, ec.EllipticCurve] = {
    P256: ec.SECP256R1(), P384: ec.SECP384R1(), P521: ec.SECP521R1(),
}  # fmt: skip
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551

GENERATED = 0xFF544347  # TPM_GENERATED_VALUE: the TPM made this itself
CERTIFY, QUOTE = 0x8017, 0x8018  # TPM_ST_ATTEST_*
PCR_LAST = 31


class Malformed(Refused):
    """These bytes are not such a structure."""


class Reader:
    """Takes bytes from the front of a buffer."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, count: int) -> bytes:
        part = self._data[self._at : self._at + count]
        if len(part) != count:
            raise Malformed(f"a TPM structure ends {count - len(part)} bytes early")
        self._at += count
        return part

    def u8(self) -> int:
        return self.take(1)[0]

    def u16(self) -> int:
        return int.from_bytes(self.take(2), "big")

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "big")

    def u64(self) -> int:
        return int.from_bytes(self.take(8), "big")

    def sized(self, longest: int = 0xFFFF) -> bytes:
        size = self.u16()
        if size > longest:
            raise Malformed(f"a TPM buffer of {size} bytes, where {longest} are the most")
        return self.take(size)

    def rest(self) -> bytes:
        return self.take(len(self._data) - self._at)

    def end(self) -> None:
        if self._at != len(self._data):
            raise Malformed(f"{len(self._data) - self._at} bytes after a TPM structure")


def u16(value: int) -> bytes:
    return value.to_bytes(2, "big")


def u32(value: int) -> bytes:
    return value.to_bytes(4, "big")


def sized(data: bytes) -> bytes:
    return u16(len(data)) + data


def digest(algorithm: int, data: bytes) -> bytes:
    return hashlib.new(HASHES[algorithm], data).digest()


def _hash_algorithm(reader: Reader) -> int:
    algorithm = reader.u16()
    if algorithm not in HASHES:
        raise Malformed(f"TPM hash algorithm {algorithm:#06x} is not known here")
    return algorithm


class Rsa(NamedTuple):
    """RSA parameters and modulus; exponent 0 means 65537, as the TPM writes it."""

    bits: int
    exponent: int
    modulus: bytes


class Ecc(NamedTuple):
    curve: int
    x: bytes
    y: bytes


class Public(NamedTuple):
    """TPMT_PUBLIC of an RSA or ECC key. `symmetric_bits` is of AES in CFB mode, 0 for none;
    `signs_with` is the hash of the one ECDSA scheme the key may use, 0 for any or none."""

    name_algorithm: int
    attributes: int
    policy: bytes
    symmetric_bits: int
    signs_with: int
    key: Rsa | Ecc

    @classmethod
    def decode(cls, data: bytes) -> "Public":
        reader = Reader(data)
        kind, name_algorithm, attributes = reader.u16(), _hash_algorithm(reader), reader.u32()
        if attributes & _RESERVED:
            raise Malformed(f"reserved TPM object attributes are set: {attributes:#010x}")
        if kind not in (RSA, ECC):
            raise Malformed(f"TPM object of type {kind:#06x}: neither an RSA nor an ECC key")
        policy = reader.sized(64)
        symmetric, scheme = _read_symmetric(reader), _read_scheme(reader)
        key = _read_rsa(reader) if kind == RSA else _read_ecc(reader)
        reader.end()
        return cls(name_algorithm, attributes, policy, symmetric, scheme, key)

    def encode(self) -> bytes:
        aes = u16(AES) + u16(self.symmetric_bits) + u16(CFB) if self.symmetric_bits else u16(NULL)
        scheme = u16(ECDSA) + u16(self.signs_with) if self.signs_with else u16(NULL)
        if isinstance(self.key, Rsa):
            kind, details = RSA, u16(self.key.bits) + u32(self.key.exponent)
            details += sized(self.key.modulus)
        else:
            kind, details = ECC, u16(self.key.curve) + u16(NULL)
            details += sized(self.key.x) + sized(self.key.y)
        head = u16(kind) + u16(self.name_algorithm) + u32(self.attributes) + sized(self.policy)
        return head + aes + scheme + details

    @property
    def name(self) -> bytes:
        """The TPM's name of the object: what it certifies, and what a credential is bound to."""
        return u16(self.name_algorithm) + digest(self.name_algorithm, self.encode())

    def has(self, wanted: int, unwanted: int = 0) -> bool:
        return self.attributes & wanted == wanted and not self.attributes & unwanted

    def words(self) -> list[str]:
        return [word for bit, word in ATTRIBUTES.items() if self.attributes & bit]

    def public_key(self) -> rsa.RSAPublicKey | ec.EllipticCurvePublicKey:
        """The key for use in software. Malformed if it is none, such as a point off its curve."""
        try:
            if isinstance(self.key, Rsa):
                modulus = int.from_bytes(self.key.modulus, "big")
                return rsa.RSAPublicNumbers(self.key.exponent or 65537, modulus).public_key()
            x, y = int.from_bytes(self.key.x, "big"), int.from_bytes(self.key.y, "big")
            return ec.EllipticCurvePublicNumbers(x, y, CURVES[self.key.curve]).public_key()
        except ValueError as error:
            raise Malformed(f"the TPM public area holds no usable key: {error}") from None

    def point(self) -> bytes:
        """The uncompressed point, 65 bytes on P-256. Malformed for RSA."""
        if isinstance(self.key, Rsa):
            raise Malformed("an RSA key has no point")
        size = (CURVES[self.key.curve].key_size + 7) // 8
        return b"\x04" + self.key.x.rjust(size, b"\0") + self.key.y.rjust(size, b"\0")


def _read_symmetric(reader: Reader) -> int:
    """Bits of the AES key, 0 for none."""
    algorithm = reader.u16()
    if algorithm == NULL:
        return 0
    bits, mode = reader.u16(), reader.u16()
    if algorithm != AES or bits not in (128, 192, 256) or mode != CFB:
        raise Malformed("a TPM storage key with another cipher than AES in CFB mode")
    return bits


def _read_scheme(reader: Reader) -> int:
    scheme = reader.u16()
    if scheme == NULL:
        return 0
    if scheme != ECDSA:
        raise Malformed(f"TPM key scheme {scheme:#06x}: only ECDSA is known here")
    return _hash_algorithm(reader)


def _read_rsa(reader: Reader) -> Rsa:
    bits, exponent, modulus = reader.u16(), reader.u32(), reader.sized(512)
    if bits not in (2048, 3072, 4096) or len(modulus) not in (0, bits // 8):
        raise Malformed(f"an RSA key of {bits} bits with a modulus of {len(modulus)} bytes")
    return Rsa(bits, exponent, modulus)


def _read_ecc(reader: Reader) -> Ecc:
    curve, kdf = reader.u16(), reader.u16()
    if curve not in CURVES or kdf != NULL:
        raise Malformed(f"TPM curve {curve:#06x} with key derivation {kdf:#06x} is not known here")
    size = (CURVES[curve].key_size + 7) // 8
    return Ecc(curve, reader.sized(size), reader.sized(size))


class Selection(NamedTuple):
    """The PCRs chosen in one bank, in rising order."""

    algorithm: int
    indices: tuple[int, ...]


def encode_selections(selections: Iterable[Selection]) -> bytes:
    """TPML_PCR_SELECTION; each map has at least the three bytes that every TPM has."""
    parts = [u16(one.algorithm) + _bitmap(one.indices) for one in selections]
    return u32(len(parts)) + b"".join(parts)


def _bitmap(indices: tuple[int, ...]) -> bytes:
    value = sum(1 << index for index in indices)
    size = max(3, (value.bit_length() + 7) // 8)
    return bytes([size]) + value.to_bytes(size, "little")


def read_selections(reader: Reader) -> tuple[Selection, ...]:
    count = reader.u32()
    if count > len(HASHES):
        raise Malformed(f"{count} PCR banks")
    found = []
    for _ in range(count):
        algorithm, size = _hash_algorithm(reader), reader.u8()
        if size > 4:
            raise Malformed(f"a PCR map of {size} bytes")
        value = int.from_bytes(reader.take(size), "little")
        found.append(Selection(algorithm, tuple(i for i in range(8 * size) if value >> i & 1)))
    return tuple(found)


class Clock(NamedTuple):
    """TPMS_CLOCK_INFO: milliseconds powered, resets and restarts, whether it was stopped orderly."""

    milliseconds: int
    resets: int
    restarts: int
    safe: bool


class Certified(NamedTuple):
    name: bytes
    qualified_name: bytes


class Quoted(NamedTuple):
    selections: tuple[Selection, ...]
    digest: bytes


class Attestation(NamedTuple):
    """TPMS_ATTEST, as TPM2_Certify and TPM2_Quote make it; what the AK signs."""

    qualified_signer: bytes
    extra_data: bytes
    clock: Clock
    firmware: int
    attested: Certified | Quoted

    @classmethod
    def decode(cls, data: bytes) -> "Attestation":
        reader = Reader(data)
        if reader.u32() != GENERATED:
            raise Malformed("an attestation without the TPM's own mark")
        kind = reader.u16()
        if kind not in (CERTIFY, QUOTE):
            raise Malformed(f"an attestation of type {kind:#06x}, neither certify nor quote")
        signer, extra = reader.sized(66), reader.sized(66)
        clock = Clock(reader.u64(), reader.u32(), reader.u32(), _yes_no(reader))
        firmware = reader.u64()
        attested: Certified | Quoted
        if kind == CERTIFY:
            attested = Certified(reader.sized(66), reader.sized(66))
        else:
            attested = Quoted(read_selections(reader), reader.sized(64))
        reader.end()
        return cls(signer, extra, clock, firmware, attested)

    def encode(self) -> bytes:
        kind = CERTIFY if isinstance(self.attested, Certified) else QUOTE
        head = u32(GENERATED) + u16(kind) + sized(self.qualified_signer) + sized(self.extra_data)
        clock, attested = struct.pack(">QIIBQ", *self.clock, self.firmware), self.attested
        if isinstance(attested, Certified):
            return head + clock + sized(attested.name) + sized(attested.qualified_name)
        return head + clock + encode_selections(attested.selections) + sized(attested.digest)


def _yes_no(reader: Reader) -> bool:
    value = reader.u8()
    if value > 1:
        raise Malformed(f"{value} is neither yes nor no")
    return value == 1


class EcdsaSignature(NamedTuple):
    """TPMT_SIGNATURE with ECDSA on P-256 over SHA-256: 32 bytes each. `s` is the lower one of the
    two that verify, so that nobody can change a signature into another good one."""

    r: bytes
    s: bytes

    @classmethod
    def decode(cls, data: bytes) -> "EcdsaSignature":
        """From a TPM, with an `s` of either kind."""
        reader = Reader(data)
        if (reader.u16(), reader.u16()) != (ECDSA, SHA256):
            raise Malformed("a TPM signature that is not ECDSA over SHA-256")
        r, s = reader.sized(32), int.from_bytes(reader.sized(32), "big")
        reader.end()
        return cls(r.rjust(32, b"\0"), min(s, abs(P256_ORDER - s)).to_bytes(32, "big"))

    @property
    def is_low(self) -> bool:
        return int.from_bytes(self.s, "big") <= P256_ORDER // 2

    def der(self) -> bytes:
        return encode_dss_signature(int.from_bytes(self.r, "big"), int.from_bytes(self.s, "big"))
