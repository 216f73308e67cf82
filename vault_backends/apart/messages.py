"""What the two processes say to each other: bounded messages with their length in front.

A message is JSON of null, booleans, integers, texts, lists and maps; bytes travel as {"hex": text}.
Each side checks what it receives: the module in the other process is foreign code.
"""

import json
import select
import socket
import struct
import time
from typing import Any

from vault_backends.vault import Refused

LONGEST = 1 << 20
"""Bytes of a message at most, in both directions."""
_LENGTH = struct.Struct(">I")
_PART = 65_536


class Ended(Exception):
    """The other side has gone."""


class Late(Exception):
    """Nothing came in time."""


class Broken(Exception):
    """The other side said something that is no message."""


class Conversation:
    """One end of the socket. Not for two threads at once."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def send(self, value: Any, until: float | None = None) -> None:
        """Raises Ended, Late, and Refused for what is too long to be sent."""
        data = json.dumps(value, default=_hex, separators=(",", ":")).encode()
        if len(data) > LONGEST:
            raise Refused(
                f"{len(data)} bytes are too many for one call to a vault in a process of its own",
                hint=f"at most {LONGEST // 2} bytes of data fit",
            )
        rest = memoryview(_LENGTH.pack(len(data)) + data)
        while rest:
            self._wait(select.POLLOUT, until)
            try:
                rest = rest[self.sock.send(rest, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT) :]
            except BlockingIOError:
                continue
            except OSError:
                raise Ended from None

    def receive(self, until: float | None = None) -> Any:
        """The next message; `until` is a moment of time.monotonic(). Raises Ended, Late, Broken."""
        (length,) = _LENGTH.unpack(self._read(_LENGTH.size, until))
        if length > LONGEST:
            raise Broken(f"a message of {length} bytes")
        return _decoded(self._read(length, until))

    def close(self) -> None:
        self.sock.close()

    def _read(self, count: int, until: float | None) -> bytes:
        data = bytearray()
        while len(data) < count:
            self._wait(select.POLLIN, until)
            try:
                part = self.sock.recv(min(count - len(data), _PART), socket.MSG_DONTWAIT)
            except BlockingIOError:
                continue
            except OSError:
                raise Ended from None
            if not part:
                raise Ended
            data += part
        return bytes(data)

    def _wait(self, event: int, until: float | None) -> None:
        ready = select.poll()
        ready.register(self.sock, event)
        left = None if until is None else max(0.0, until - time.monotonic())
        if not ready.poll(None if left is None else left * 1000):
            raise Late


def _decoded(data: bytes) -> Any:
    try:
        return json.loads(data, object_hook=_plain, parse_float=_never, parse_constant=_never)
    except (ValueError, TypeError, RecursionError):  # its text would show the data
        raise Broken("bytes that are no message") from None


def _hex(value: Any) -> dict[str, str]:
    return {"hex": bytes(value).hex()}


def _plain(found: dict[str, Any]) -> Any:
    return bytes.fromhex(found["hex"]) if found.keys() == {"hex"} else found


def _never(text: str) -> None:
    raise ValueError(text)
