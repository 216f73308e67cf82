"""The receiving side of TCP framing: a version byte, then frames of a 4-byte length and a body.

Source: 01 §1.1, §1.2. No input or output is done here: the caller asks where the next bytes go, has
them written there, and says how many came.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from edge.errors import DecodeError

MAX_FRAME = 16 * 1024 * 1024
VERSION = 1
FIRST_BUFFER = 256 * 1024
"""What an announced frame is given at first; more only as bytes really come."""
_LENGTH = struct.Struct(">I")


class Frames:
    """The frames of one connection.

    All connections of a process read into one shared buffer. What a frame leaves unfinished there
    moves to a private buffer of that frame, and the next bytes go directly behind it, never further
    than the end of the frame. A length that is itself cut off is kept apart and copied in front of
    the next bytes.

    Between `get_buffer` and the end of the iteration over `filled`, the shared buffer belongs to
    this connection. The bodies are views, valid until somebody's next `get_buffer`.
    """

    __slots__ = ("_body", "_fill", "_shared", "_size", "_start", "_started", "_wrong")

    def __init__(self) -> None:
        self._started = False  # whether the version byte has come
        self._wrong = ""
        self._start = b""
        self._shared = memoryview(b"")
        self._body: bytearray | None = None
        self._fill = 0
        self._size = 0

    @property
    def pending(self) -> int:
        """Bytes of memory that an unfinished frame holds."""
        return len(self._start) if self._body is None else len(self._body)

    def get_buffer(self, shared: memoryview) -> memoryview:
        """Where the next bytes go. Asking again without `filled` gives the same place."""
        if self._body is not None:
            return self._private(self._body)
        self._shared = shared
        kept = len(self._start)
        if kept:
            shared[:kept] = self._start
        return shared[kept:]

    def filled(self, n: int) -> Iterator[memoryview]:
        """The bodies of the frames that these `n` bytes complete. Good frames before a wrong one
        still come; then, and ever after, DecodeError is raised."""
        if self._wrong:
            raise DecodeError(self._wrong)
        if self._body is None:
            yield from self._split(self._shared[: len(self._start) + n])
            return
        self._fill += n
        if self._fill == self._size:
            body, self._body = self._body, None
            yield memoryview(body)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The same for bytes at hand, with copies of the bodies."""
        shared = memoryview(bytearray(max(len(data), 8)))
        while data:
            room = self.get_buffer(shared)
            count = min(len(room), len(data))
            room[:count] = data[:count]
            data = data[count:]
            for body in self.filled(count):
                yield bytes(body)

    def _private(self, body: bytearray) -> memoryview:
        if self._fill == len(body):
            grown = bytearray(min(self._size, 2 * len(body)))
            grown[: self._fill] = body
            self._body = body = grown
        return memoryview(body)[self._fill :]

    def _split(self, view: memoryview) -> Iterator[memoryview]:
        self._start = b""
        at, end = self._version(view), len(view)
        while end - at >= 4:
            (size,) = _LENGTH.unpack_from(view, at)
            if not 0 < size <= MAX_FRAME:
                self._fail(f"a frame of {size} bytes")
            at += 4
            if at + size > end:
                self._keep(view[at:], size)
                return
            yield view[at : at + size]
            at += size
        self._start = bytes(view[at:])

    def _version(self, view: memoryview) -> int:
        """Check the version byte if it is still to come; how many bytes it takes in `view`."""
        if self._started or not len(view):
            return 0
        if view[0] != VERSION:
            self._fail(f"the version byte {view[0]:02x}")
        self._started = True
        return 1

    def _keep(self, part: memoryview, size: int) -> None:
        self._size, self._fill = size, len(part)
        self._body = bytearray(min(size, max(FIRST_BUFFER, 2 * len(part))))
        self._body[: len(part)] = part

    def _fail(self, what: str) -> None:
        self._wrong = what
        raise DecodeError(what)
