"""BARE strings and data: a LEB128 length and that many bytes (01 §4.1)."""

from __future__ import annotations

from edge.errors import DecodeError
from edge.wire import leb128


def encode_data(data: bytes | bytearray | memoryview) -> bytes:
    return leb128.encode(len(data)) + bytes(data)


def decode_data(view: bytes | memoryview, start: int = 0) -> tuple[bytes, int]:
    """The bytes, and where they end; what follows is the caller's."""
    size, begin = leb128.decode(view, start)
    end = begin + size
    if end > len(view):
        raise DecodeError("BARE data is cut off")
    return bytes(view[begin:end]), end


def encode_string(text: str) -> bytes:
    return encode_data(text.encode())


def decode_string(view: bytes | memoryview) -> str:
    """The text. Bytes after it are ignored."""
    data, _ = decode_data(view)
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise DecodeError("a BARE string that is not UTF-8") from None
