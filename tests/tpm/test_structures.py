"""Structures of a TPM: any bytes are a value or Malformed, and a value is written as it was read."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tpm import forge
from vault_backends.tpm.bundle import Bundle
from vault_backends.tpm.structures import (
    ECDSA,
    P256_ORDER,
    RSA,
    SHA1,
    SHA256,
    Attestation,
    EcdsaSignature,
    Malformed,
    Public,
    Reader,
    Selection,
    encode_selections,
    read_selections,
    sized,
    u16,
    u32,
)

# TPMT_PUBLIC of a key that tpm2-pkcs11 1.9.0 made in swtpm.
MADE = bytes.fromhex(
    "0023000b0004007200000010001000030010002023b4790971228b7ff759e4beb69c8e2d95deb1859ce3ed856e84"
    "71833b3f56350020e019e3b2456a8da9e64805e15bba9f019a1f838ea332b64077f9c1673f019d8b"
)
# Its name, as tpm2_readpublic prints it.
NAME = "000b3f2fe4ef0c70d2d0de53902eca03a09b763bc810aa94df995c518c10b9ca482b"


def test_a_public_area_of_a_tpm_is_read() -> None:
    key = Public.decode(MADE)
    assert key.words() == [
        "fixedtpm", "fixedparent", "sensitivedataorigin", "userwithauth", "sign",
    ]  # fmt: skip
    assert key.name.hex() == NAME
    assert key.point()[:3].hex() == "0423b4"
    assert key.encode() == MADE


GOOD = forge.Forge().bundle()
READERS: list[tuple[Callable[[bytes], Public | Attestation], list[bytes]]] = [
    (Public.decode, [MADE, GOOD.ek_public, GOOD.ak_public]),
    (Attestation.decode, [GOOD.certify, GOOD.quote]),
]


@pytest.mark.parametrize(("read", "seeds"), READERS, ids=["public", "attestation"])
@given(data=st.data())
def test_bytes_are_a_value_or_malformed(
    read: Callable[[bytes], Public | Attestation], seeds: list[bytes], data: st.DataObject
) -> None:
    base = bytearray(data.draw(st.sampled_from(seeds)))
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(base) - 1))
        base[at] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(base)) | st.just(len(base)))
    tail = data.draw(st.binary(max_size=4))
    _value_or_malformed(read, bytes(base[:end]) + tail)


@pytest.mark.parametrize("read", [Public.decode, Attestation.decode], ids=["public", "attestation"])
@given(data=st.binary(max_size=300))
def test_random_bytes_are_a_value_or_malformed(
    read: Callable[[bytes], Public | Attestation], data: bytes
) -> None:
    _value_or_malformed(read, data)


def _value_or_malformed(read: Callable[[bytes], Public | Attestation], data: bytes) -> None:
    try:
        found = read(data)
    except Malformed:
        return
    if isinstance(found, Public):
        assert found.encode() == data
        assert found.name[2:]
        with contextlib.suppress(Malformed):
            found.public_key()


@given(st.binary(max_size=80))
def test_a_signature_is_read_or_malformed(data: bytes) -> None:
    head = u16(ECDSA) + u16(SHA256)
    for one in (data, head + data, head + sized(data[:32]) + sized(data[32:64])):
        try:
            found = EcdsaSignature.decode(one)
        except Malformed:
            continue
        assert (len(found.r), len(found.s)) == (32, 32)


def test_of_two_signatures_that_verify_the_lower_is_kept() -> None:
    high = P256_ORDER - 5
    read = EcdsaSignature.decode(
        u16(ECDSA) + u16(SHA256) + sized(b"\x01") + sized(high.to_bytes(32, "big"))
    )
    assert read == EcdsaSignature((1).to_bytes(32, "big"), (5).to_bytes(32, "big"))
    assert read.is_low
    assert not read._replace(s=high.to_bytes(32, "big")).is_low


def test_selections_are_written_as_a_tpm_has_them() -> None:
    chosen = (Selection(SHA1, (0, 23)), Selection(SHA256, (7, 8)))
    written = encode_selections(chosen)
    assert written.hex() == "00000002" + "000403010080" + "000b03800100"
    assert read_selections(Reader(written)) == chosen


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (MADE[:-1], "ends 1 bytes early"),
        (MADE + b"\0", "1 bytes after"),
        (u16(8) + MADE[2:], "neither an RSA nor an ECC key"),
        (MADE[:2] + u16(0x12) + MADE[4:], "hash algorithm"),
        (MADE[:4] + u32(0x80040072) + MADE[8:], "reserved"),
        (u16(RSA) + MADE[2:14] + u16(1024) + u32(0) + sized(bytes(128)), "1024 bits"),
        (MADE[:14] + u16(9) + MADE[16:], "curve"),
    ],
)
def test_what_is_wrong_is_said(data: bytes, why: str) -> None:
    with pytest.raises(Malformed, match=why):
        Public.decode(data)


def test_a_point_off_its_curve_is_no_key() -> None:
    with pytest.raises(Malformed, match="no usable key"):
        Public.decode(MADE[:-1] + b"\0").public_key()


@given(st.binary(max_size=200))
def test_a_file_is_evidence_or_malformed(data: bytes) -> None:
    with pytest.raises(Malformed):
        Bundle.decode(data)
