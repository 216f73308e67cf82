"""The two layouts that every byte of a tunnel passes: transport message and channel plaintext.

Source: 01 §1.3 and §1.4 (transport), 02 §2 and §7.1 (channel). Both begin with a *head*, the
encodings of the onward and the return route one after the other. The usual form is read by hand;
everything else that is accepted goes through the CBOR decoder.

A message is written in pieces so that a payload is never copied for it: what `transport_parts` or
`payload_start` gives, the payload, and TRANSPORT_TAIL or PAYLOAD_END.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import ClassVar, NamedTuple, TypeAlias

from edge.errors import DecodeError, ProtocolError
from edge.wire import cbor
from edge.wire.frame import MAX_FRAME
from edge.wire.route import KNOWN_BYTES, KNOWN_ROUTES, Route, from_value

Buffer: TypeAlias = bytes | bytearray | memoryview

PAYLOAD, REFRESH, CLOSE = 0, 1, 2
"""Kinds of channel message."""
TRANSPORT_TAIL = b"\x62{}"
"""The tracing context `{}`, as a node without tracing writes it (01 §1.4)."""
PAYLOAD_END = b"\x40"
"""The empty padding."""
CLOSE_MESSAGE = bytes.fromhex("8282028040")

_TRANSPORT_FRONT = b"\x84"
_PAYLOAD_FRONT = bytes.fromhex("8282008183")
_REFRESH_FRONT = bytes.fromhex("82820181")
_START = struct.Struct(">IB")
_U16, _U32 = struct.Struct(">H"), struct.Struct(">I")
_NOTHING = memoryview(b"")


class Head(NamedTuple):
    """Where a message goes, and where answers go."""

    onward: Route
    back: Route


Transport: TypeAlias = tuple[Route, Route, memoryview]
Channel: TypeAlias = tuple[int, Route, Route, memoryview]


# -- out


def transport_parts(head: bytes, size: int) -> bytes:
    """What comes before a payload of `size` bytes in a frame: length, array, head, string head."""
    string = cbor.head(cbor.BYTES, size)
    total = 1 + len(head) + len(string) + size + len(TRANSPORT_TAIL)
    if total > MAX_FRAME:
        raise ProtocolError(f"a message of {total} bytes is more than a frame may have")
    return _START.pack(total, 0x84) + head + string


def encode_transport(onward: Route, back: Route, payload: Buffer) -> bytes:
    """A whole frame, with its length (01 §1.2, §1.3)."""
    start = transport_parts(onward.encoded + back.encoded, len(payload))
    return b"".join((start, payload, TRANSPORT_TAIL))


def payload_start(head: bytes, size: int) -> bytes:
    """What comes before a payload of `size` bytes in a channel message (02 §7.1)."""
    return _PAYLOAD_FRONT + head + cbor.head(cbor.BYTES, size)


def encode_payload(onward: Route, back: Route, payload: Buffer) -> bytes:
    """A whole channel message of kind PAYLOAD, to be sealed."""
    start = payload_start(onward.encoded + back.encoded, len(payload))
    return b"".join((start, payload, PAYLOAD_END))


def encode_refresh(history: bytes, credentials: Sequence[bytes]) -> bytes:
    """A channel message of kind REFRESH; history and credentials are encoded already (02 §7.5)."""
    body = [cbor.Raw(history), [cbor.Raw(credential) for credential in credentials]]
    return _REFRESH_FRONT + cbor.encode(body) + PAYLOAD_END


# -- in

_Front: TypeAlias = tuple[Route, Route, int]
_fronts: dict[bytes, _Front] = {}
"""Routes and end of the head, by everything up to there."""
SIZES = 4


class _Reader:
    """Finds the head of a message, mostly by looking up the bytes in front of its payload.

    No encoding of a head is the beginning of another one, so the same bytes in front mean the same
    routes, and the payload in the same place. Only the few sizes of head seen last are tried.
    """

    __slots__ = ("_sizes",)
    FRONT: ClassVar[bytes]
    """What comes before the head in the usual form."""

    def __init__(self) -> None:
        self._sizes: tuple[int, ...] = ()

    def _front(self, view: memoryview) -> _Front | None:
        """The head of `view`, or None if it is not of the usual form. Raises IndexError too."""
        for size in self._sizes:
            found = _fronts.get(bytes(view[:size]))
            if found is not None:
                return found
        return self._learn(view)

    def _learn(self, view: memoryview) -> _Front | None:
        start = len(self.FRONT)
        if view[:start] != self.FRONT:
            return None
        middle = _route_end(view, start)
        end = middle and _route_end(view, middle)
        if not end:
            return None
        onward = Route.decode(bytes(view[start:middle]))
        front = onward, Route.decode(bytes(view[middle:end])), end
        if end <= KNOWN_BYTES:
            self._sizes = (end, *[size for size in self._sizes if size != end][: SIZES - 1])
            if len(_fronts) >= KNOWN_ROUTES:
                _fronts.clear()
            _fronts[bytes(view[:end])] = front
        return front


class TransportReader(_Reader):
    """Reads the transport messages of one link."""

    __slots__ = ()
    FRONT = _TRANSPORT_FRONT

    def read(self, view: memoryview) -> Transport:
        """Onward route, return route, payload. Raises DecodeError."""
        try:
            front = self._front(view)
            if front is not None:
                onward, back, size = front
                start, end = _string(view, size)
                if end:
                    if view[end:] != TRANSPORT_TAIL:
                        _check_tracing(view, end)
                    return onward, back, view[start:end]
        except (IndexError, struct.error):
            pass
        return _tolerant_transport(view)


class ChannelReader(_Reader):
    """Reads the plaintexts of one channel."""

    __slots__ = ()
    FRONT = _PAYLOAD_FRONT

    def read(self, view: memoryview) -> Channel:
        """Kind, onward route, return route, payload. Raises DecodeError.

        REFRESH and CLOSE have empty routes. The payload of REFRESH is the encoded array of history
        and credentials, that of CLOSE is empty.
        """
        try:
            front = self._front(view)
            if front is not None:
                onward, back, size = front
                start, end = _string(view, size)
                if end:
                    if view[end] != 0x40:
                        cbor.as_bytes(cbor.decode_prefix(view, end)[0])  # padding
                    return PAYLOAD, onward, back, view[start:end]
        except (IndexError, struct.error):
            pass
        return _tolerant_channel(view)


def parse_transport(view: memoryview) -> Transport:
    """One transport message by itself; for many, keep a TransportReader."""
    return TransportReader().read(view)


def parse_channel(view: memoryview) -> Channel:
    """One channel message by itself; for many, keep a ChannelReader."""
    return ChannelReader().read(view)


def _route_end(view: memoryview, at: int) -> int:
    """Where the route that begins at `at` ends, or 0 if it is not of the usual form.

    Raises IndexError where the view ends early. The end may lie behind that of the view: then the
    bytes between are no route.
    """
    count = view[at] - 0x80
    if not 0 <= count < 24:
        return 0
    at += 1
    for _ in range(count):
        if view[at] != 0x82 or view[at + 1] > 23:
            return 0
        size = view[at + 2]
        if size == 0x58:
            at += 4 + view[at + 3]
        elif 0x40 <= size < 0x58:
            at += size - 0x3D
        else:
            return 0
    return at


def _string(view: memoryview, at: int) -> tuple[int, int]:
    """The bounds of the byte string at `at`; the end is 0 if that is not of the usual form."""
    first = view[at]
    if 0x40 <= first < 0x58:
        start = at + 1
        end = start + first - 0x40
    elif first == 0x58:
        start = at + 2
        end = start + view[at + 1]
    elif first == 0x59:
        start = at + 3
        end = start + int(_U16.unpack_from(view, at + 1)[0])
    elif first == 0x5A:
        start = at + 5
        end = start + int(_U32.unpack_from(view, at + 1)[0])
    else:
        return 0, 0
    if end >= len(view):  # something always follows
        raise DecodeError("the message is cut off")
    return start, end


def _check_tracing(view: memoryview, at: int) -> None:
    """The fourth item: a text or null, and nobody reads it (01 §1.3, §1.4)."""
    tracing, _ = cbor.decode_prefix(view, at)
    if tracing is not None:
        cbor.as_text(tracing)


def _tolerant_transport(view: memoryview) -> Transport:
    """Every form that 01 §1.3 accepts."""
    items = cbor.as_list(cbor.decode_prefix(view)[0], 3)
    if len(items) > 3 and items[3] is not None:
        cbor.as_text(items[3])
    return from_value(items[0]), from_value(items[1]), memoryview(cbor.as_bytes(items[2]))


def _tolerant_channel(view: memoryview) -> Channel:
    """Every form that 02 §2 accepts, and every kind."""
    message, padding = cbor.as_list(cbor.decode_prefix(view)[0], 2)[:2]
    cbor.as_bytes(padding)
    kind, fields = cbor.variant(message)
    if kind == CLOSE:
        return CLOSE, Route.EMPTY, Route.EMPTY, _NOTHING
    if kind == PAYLOAD:
        items = cbor.as_list(cbor.as_list(fields, 1)[0], 3)
        payload = memoryview(cbor.as_bytes(items[2]))
        return PAYLOAD, from_value(items[0]), from_value(items[1]), payload
    if kind == REFRESH:
        body = cbor.as_list(cbor.as_list(fields, 1)[0], 2)
        return REFRESH, Route.EMPTY, Route.EMPTY, memoryview(cbor.encode(body))
    raise DecodeError(f"a channel message of unknown kind {kind}")
