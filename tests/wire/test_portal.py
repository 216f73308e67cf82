"""Portal messages: the table of 03 §1.1, our own additions, and any bytes at all."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import DecodeError
from edge.wire import portal


def decode(text: str) -> tuple[int, bytes, int | None]:
    kind, data, number = portal.decode(memoryview(bytes.fromhex(text)))
    return kind, bytes(data), number


@pytest.mark.parametrize(
    ("encoded", "expected"),
    [
        ("00", (portal.PING, b"", None)),
        ("01", (portal.PONG, b"", None)),
        ("02", (portal.DISCONNECT, b"", None)),
        ("00ffff", (portal.PING, b"", None)),
        ("030568656c6c6f", (portal.PAYLOAD, b"hello", None)),
        ("030568656c6c6f017b00", (portal.PAYLOAD, b"hello", 123)),
        ("030568656c6c6f013412ff", (portal.PAYLOAD, b"hello", 0x1234)),
        ("030568656c6c6f00", (portal.PAYLOAD, b"hello", None)),
        ("030568656c6c6f017b", (portal.PAYLOAD, b"hello", None)),
        ("030568656c6c6f027b00", (portal.PAYLOAD, b"hello", None)),
        ("0300", (portal.PAYLOAD, b"", None)),
        ("04", (portal.END, b"", None)),
        ("0500010000", (portal.CREDIT, b"", 65536)),
    ],
)
def test_examples(encoded: str, expected: tuple[int, bytes, int | None]) -> None:
    assert decode(encoded) == expected


@pytest.mark.parametrize("size", [0, 5, 200, 49152, 131072])
def test_payload(size: int) -> None:
    start = portal.payload_start(size)
    assert start.hex() == {0: "0300", 5: "0305", 200: "03c801", 49152: "03808003"}.get(
        size, "03808008"
    )
    assert portal.encode_payload(bytes(size)) == start + bytes(size)


def test_counter_is_little_endian() -> None:
    assert portal.encode_payload(b"hello", 123).hex() == "030568656c6c6f017b00"


@pytest.mark.parametrize(
    "encoded", ["", "03", "0305", "0305686565", "03" + "ff" * 10, "05", "05000000", "06", "ff"]
)
def test_refused(encoded: str) -> None:
    with pytest.raises(DecodeError):
        decode(encoded)


def test_windows_are_announced_where_stock_looks_away() -> None:
    assert portal.encode_ping() == b"\x00"
    assert portal.encode_pong() == b"\x01"
    assert portal.encode_ping(65536).hex() == "00" + "65646765" + "01" + "00010000"
    for kind, encoded in ((0, portal.encode_ping(7)), (1, portal.encode_pong(7))):
        assert portal.decode(memoryview(encoded)) == (kind, b"", None)
        assert portal.window_of(memoryview(encoded)) == 7
        assert portal.window_of(memoryview(encoded + b"more")) == 7
        assert portal.window_of(memoryview(encoded[:-1])) is None


@pytest.mark.parametrize(
    "encoded", ["", "00", "006564676502" + "00000007", "00" * 10, "02656467650100000007"]
)
def test_no_window(encoded: str) -> None:
    assert portal.window_of(memoryview(bytes.fromhex(encoded))) is None


def test_end_and_credit() -> None:
    assert portal.decode(memoryview(portal.END_MESSAGE))[0] == portal.END
    assert portal.decode(memoryview(portal.encode_credit(9))) == (portal.CREDIT, b"", 9)
    assert portal.decode(memoryview(portal.DISCONNECT_MESSAGE))[0] == portal.DISCONNECT


@given(st.binary(max_size=300), st.none() | st.integers(0, 65535))
def test_round_trip(data: bytes, counter: int | None) -> None:
    encoded = portal.encode_payload(data, counter)
    assert portal.decode(memoryview(encoded)) == (portal.PAYLOAD, data, counter)


@given(st.binary(max_size=40))
def test_any_bytes(data: bytes) -> None:
    portal.window_of(memoryview(data))
    for start in (b"", b"\x03"):
        with contextlib.suppress(DecodeError):
            portal.decode(memoryview(start + data))
