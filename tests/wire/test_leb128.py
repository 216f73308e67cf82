"""LEB128: the examples of 01 §4.1, and any bytes at all."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import DecodeError, StateError
from edge.wire import leb128


@pytest.mark.parametrize(
    ("n", "encoded"),
    [
        (0, "00"),
        (127, "7f"),
        (128, "8001"),
        (200, "c801"),
        (300, "ac02"),
        (49152, "808003"),
        (131072, "808008"),
        (62526, "bee803"),
        (2**64 - 1, "ffffffffffffffffff01"),
    ],
)
def test_examples(n: int, encoded: str) -> None:
    assert leb128.encode(n).hex() == encoded
    assert leb128.decode(bytes.fromhex(encoded)) == (n, len(encoded) // 2)


def test_longer_forms_are_read() -> None:
    assert leb128.decode(bytes.fromhex("ff8500"), 1) == (5, 3)
    assert leb128.decode(memoryview(bytes.fromhex("80808080808080808001"))) == (2**63, 10)


@pytest.mark.parametrize(
    "data", ["", "80", "ffffffffffffffffff02", "80808080808080808000", "80" * 11]
)
def test_refused(data: str) -> None:
    with pytest.raises(DecodeError):
        leb128.decode(bytes.fromhex(data))


@pytest.mark.parametrize("n", [-1, 2**64])
def test_no_form(n: int) -> None:
    with pytest.raises(StateError):
        leb128.encode(n)


@given(st.integers(0, 2**64 - 1), st.binary(max_size=12))
def test_round_trip(n: int, rest: bytes) -> None:
    encoded = leb128.encode(n)
    assert leb128.decode(encoded + rest) == (n, len(encoded))


@given(st.binary(max_size=12))
def test_any_bytes(data: bytes) -> None:
    try:
        n, end = leb128.decode(data)
    except DecodeError:
        return
    assert n < 2**64
    assert end <= len(data)
