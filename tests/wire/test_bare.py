"""BARE strings and data: the examples of 01 §4.1 and 03 §3.2, and any bytes at all."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import DecodeError
from edge.wire import bare


@pytest.mark.parametrize(
    ("text", "encoded"),
    [
        ("hello", "0568656c6c6f"),
        ("", "00"),
        ("x", "0178"),
        ("register", "087265676973746572"),
        ("forward_to_x", "0c666f72776172645f746f5f78"),
        ("HELLO", "0548454c4c4f"),
    ],
)
def test_examples(text: str, encoded: str) -> None:
    data = bytes.fromhex(encoded)
    assert bare.encode_string(text) == data
    assert bare.decode_string(data) == text
    assert bare.encode_data(text.encode()) == data
    assert bare.decode_data(memoryview(data)) == (text.encode(), len(data))


def test_what_follows_is_ignored() -> None:
    assert bare.decode_string(b"\x01xyz") == "x"
    assert bare.decode_data(b"..\x01xyz", 2) == (b"x", 4)


@pytest.mark.parametrize("data", [b"", b"\x02x", b"\x80", b"\xff" * 9 + b"\x01"])
def test_cut_off(data: bytes) -> None:
    with pytest.raises(DecodeError):
        bare.decode_data(data)


def test_not_utf8() -> None:
    with pytest.raises(DecodeError):
        bare.decode_string(b"\x01\xff")


@given(st.text(st.characters(codec="utf-8")))
def test_round_trip(text: str) -> None:
    assert bare.decode_string(memoryview(bare.encode_string(text))) == text


@given(st.binary())
def test_any_bytes(data: bytes) -> None:
    try:
        text = bare.decode_string(data)
    except DecodeError:
        return
    assert len(text) <= len(data)
