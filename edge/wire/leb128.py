"""LEB128: unsigned integers of at most 64 bits in seven-bit groups, lowest first (01 §4.1)."""

from __future__ import annotations

from edge.errors import DecodeError, StateError

MAX_BYTES = 10


def encode(n: int) -> bytes:
    """The shortest form of `n`."""
    if not 0 <= n < 1 << 64:
        raise StateError("LEB128 integers have 64 bits here")
    out = bytearray()
    while n > 0x7F:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)


def decode(view: bytes | memoryview, start: int = 0) -> tuple[int, int]:
    """The integer, and where it ends. Longer forms than the shortest are taken; ten bytes are the
    most, and the tenth must be 01 (03 §1.1)."""
    n = 0
    for index, byte in enumerate(view[start : start + MAX_BYTES]):
        if index == MAX_BYTES - 1 and byte != 1:
            break
        n |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return n, start + index + 1
    raise DecodeError("a LEB128 integer is cut off or too long")
