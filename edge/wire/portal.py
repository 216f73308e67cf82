"""Portal messages: what an inlet and an outlet say to each other.

Source: 03 §1.1. Between two ockam-edge nodes there is more, which a stock node ignores, because it
ignores what follows the tag of Ping and Pong: the receive window of the sender there (an
announcement), and, once both sides have announced, END and CREDIT.
"""

from __future__ import annotations

import struct
from typing import TypeAlias

from edge.errors import DecodeError
from edge.wire import leb128

PING, PONG, DISCONNECT, PAYLOAD = 0, 1, 2, 3
END, CREDIT = 4, 5
"""Ours: no more data comes in this direction; so many more bytes may be sent."""

DISCONNECT_MESSAGE = b"\x02"
END_MESSAGE = b"\x04"

_ANNOUNCEMENT = struct.Struct(">B4sBI")
_MARK, _MARK_VERSION = b"edge", 1
_CREDIT = struct.Struct(">BI")
_NOTHING = memoryview(b"")

Decoded: TypeAlias = tuple[int, memoryview, int | None]


def encode_ping(window: int | None = None) -> bytes:
    """Ping, announcing a receive window of so many bytes if one is given."""
    return _announcing(PING, window)


def encode_pong(window: int | None = None) -> bytes:
    """Pong, announcing a receive window of so many bytes if one is given."""
    return _announcing(PONG, window)


def _announcing(kind: int, window: int | None) -> bytes:
    if window is None:
        return bytes((kind,))
    return _ANNOUNCEMENT.pack(kind, _MARK, _MARK_VERSION, window)


def encode_credit(count: int) -> bytes:
    return _CREDIT.pack(CREDIT, count)


def payload_start(size: int) -> bytes:
    """What comes before the data in a Payload. Nothing comes after it: we send no counter."""
    return b"\x03" + leb128.encode(size)


def encode_payload(data: bytes | bytearray | memoryview, counter: int | None = None) -> bytes:
    """A whole Payload; with a counter, little-endian, if one is given."""
    end = b"" if counter is None else b"\x01" + struct.pack("<H", counter)
    return b"".join((payload_start(len(data)), data, end))


def decode(view: memoryview) -> Decoded:
    """Kind, data of a Payload, and its counter or the amount of a CREDIT."""
    if not len(view):
        raise DecodeError("an empty portal message")
    kind = view[0]
    if kind == PAYLOAD:
        return _payload(view)
    if kind == CREDIT:
        if len(view) < _CREDIT.size:
            raise DecodeError("a credit is cut off")
        return CREDIT, _NOTHING, _CREDIT.unpack_from(view)[1]
    if kind > CREDIT:
        raise DecodeError(f"a portal message of unknown kind {kind}")
    return kind, _NOTHING, None


def _payload(view: memoryview) -> Decoded:
    size, start = leb128.decode(view, 1)
    end = start + size
    if end > len(view):
        raise DecodeError("portal data is cut off")
    counter = None
    if len(view) - end >= 3 and view[end] == 1:
        counter = view[end + 1] | view[end + 2] << 8
    return PAYLOAD, view[start:end], counter


def window_of(view: memoryview) -> int | None:
    """The receive window that a Ping or Pong announces, if its sender is one of ours."""
    if len(view) < _ANNOUNCEMENT.size:
        return None
    kind, mark, version, window = _ANNOUNCEMENT.unpack_from(view)
    ours = kind in (PING, PONG) and mark == _MARK and version == _MARK_VERSION
    return int(window) if ours else None
