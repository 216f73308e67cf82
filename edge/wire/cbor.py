"""CBOR: the subset the protocols use, definite and shortest out, bounded and strict in.

Source: 01 §8 and 02 §2. A decoder takes non-shortest integers and lengths, and arrays and maps of
indefinite length. It refuses tags, `undefined` and other simple values, strings in chunks, and map
keys other than integers and strings. Map keys that repeat: the last one wins.

The `as_…` functions say which type an item must have; `variant` takes an enumeration apart.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import TypeAlias, cast

from edge.errors import DecodeError, StateError

MAX_DEPTH = 16
MAX_ITEMS = 65536
"""Items in one decoding, nested ones included."""

Key: TypeAlias = int | str | bytes
Value: TypeAlias = "bool | int | float | str | bytes | list[Value] | dict[Key, Value] | None"
Buffer: TypeAlias = bytes | bytearray | memoryview

UINT, NINT, BYTES, TEXT, ARRAY, MAP, TAG, OTHER = range(8)
"""Major types."""
_FALSE, _TRUE, _NULL = 20, 21, 22
_INDEFINITE, _BREAK = 31, 0xFF
_LIMIT = 1 << 64
_FLOATS = {25: struct.Struct(">e"), 26: struct.Struct(">f"), 27: struct.Struct(">d")}
_SIZES = {24: 1, 25: 2, 26: 4, 27: 8}


class Raw(bytes):
    """An item that is encoded already: `encode` copies it verbatim."""


class IndefiniteList(list[Value]):
    """A list that arrived with indefinite length, and is encoded so again: no enumeration."""


# -- out


def head(major: int, n: int) -> bytes:
    """The head of an item, in its shortest form."""
    major <<= 5
    if n < 24:
        return bytes((major | n,))
    if n < 0x100:
        return bytes((major | 24, n))
    if n < 0x1_0000:
        return struct.pack(">BH", major | 25, n)
    if n < 0x1_0000_0000:
        return struct.pack(">BI", major | 26, n)
    if n < _LIMIT:
        return struct.pack(">BQ", major | 27, n)
    raise StateError("CBOR integers have 64 bits here")


def encode(value: object) -> bytes:
    """One item. Integers, strings, None, bool, float, sequences and mappings in their order;
    bytearray and memoryview as byte strings."""
    out = bytearray()
    _write(out, value)
    return bytes(out)


def _write(out: bytearray, value: object) -> None:
    if isinstance(value, Raw):
        out += value
    elif isinstance(value, bytes | bytearray | memoryview):
        out += head(BYTES, len(value))
        out += value
    elif isinstance(value, str):
        _write_text(out, value)
    elif isinstance(value, IndefiniteList):
        out.append(ARRAY << 5 | _INDEFINITE)
        for item in value:
            _write(out, item)
        out.append(_BREAK)
    elif isinstance(value, Mapping):
        out += head(MAP, len(value))
        for key, item in value.items():
            _write(out, key)
            _write(out, item)
    elif isinstance(value, Sequence):
        out += head(ARRAY, len(value))
        for item in value:
            _write(out, item)
    else:
        out += _scalar(value)


def _write_text(out: bytearray, value: str) -> None:
    text = value.encode()
    out += head(TEXT, len(text))
    out += text


def _scalar(value: object) -> bytes:
    if value is None:
        return b"\xf6"
    if isinstance(value, bool):  # an int too, in Python
        return b"\xf5" if value else b"\xf4"
    if isinstance(value, int):
        return head(UINT, value) if value >= 0 else head(NINT, -1 - value)
    if isinstance(value, float):
        return struct.pack(">Bd", OTHER << 5 | 27, value)
    raise StateError(f"{type(value).__name__} has no CBOR form here")


# -- in


def decode(data: Buffer, *, depth: int = MAX_DEPTH, byte_keys: bool = False) -> Value:
    """Exactly one item, with nothing after it, nested at most `depth` deep. With `byte_keys`, map
    keys that are arrays of bytes-as-integers are read as byte strings (05 §1.3)."""
    reader = _Reader(data, 0, depth, byte_keys)
    value = reader.item(0)
    if reader.at != len(data):
        raise DecodeError("there are bytes after the CBOR item")
    return value


def decode_prefix(data: Buffer, start: int = 0) -> tuple[Value, int]:
    """One item, and where it ends; what follows is the caller's."""
    reader = _Reader(data, start)
    value = reader.item(0)
    return value, reader.at


class _Reader:
    """Reads items from a place in a buffer."""

    __slots__ = ("_byte_keys", "_data", "_deepest", "_left", "at")

    def __init__(
        self, data: Buffer, at: int, deepest: int = MAX_DEPTH, byte_keys: bool = False
    ) -> None:
        self.at = at
        self._deepest = deepest
        self._byte_keys = byte_keys
        self._data = memoryview(data)
        self._left = MAX_ITEMS

    def item(self, depth: int) -> Value:
        self._left -= 1
        if self._left < 0:
            raise DecodeError(f"more than {MAX_ITEMS} CBOR items")
        first = self._take(1)[0]
        major, info = first >> 5, first & 31
        if major == OTHER:
            return self._other(info)
        if major in (ARRAY, MAP):
            return self._container(major, info, depth + 1)
        n = self._argument(info)
        if major == UINT:
            return n
        if major == NINT:
            return -1 - n
        if major == BYTES:
            return bytes(self._take(n))
        if major == TEXT:
            return self._text(n)
        raise DecodeError("a CBOR tag")

    def _take(self, size: int) -> memoryview:
        end = self.at + size
        if end > len(self._data):
            raise DecodeError("the CBOR item is cut off")
        taken = self._data[self.at : end]
        self.at = end
        return taken

    def _argument(self, info: int) -> int:
        if info < 24:
            return info
        size = _SIZES.get(info)
        if size is None:
            raise DecodeError("a CBOR length that is not allowed here")
        return int.from_bytes(self._take(size), "big")

    def _text(self, size: int) -> str:
        try:
            return str(self._take(size), "utf-8")
        except UnicodeDecodeError:
            raise DecodeError("CBOR text that is not UTF-8") from None

    def _other(self, info: int) -> Value:
        if info == _NULL:
            return None
        if info in (_FALSE, _TRUE):
            return info == _TRUE
        layout = _FLOATS.get(info)
        if layout is None:
            raise DecodeError("a CBOR simple value that is not allowed here")
        return cast(float, layout.unpack(self._take(layout.size))[0])

    def _container(self, major: int, info: int, depth: int) -> Value:
        if depth > self._deepest:
            raise DecodeError(f"CBOR nested deeper than {self._deepest}")
        count = None if info == _INDEFINITE else self._argument(info)
        if count is not None and count > len(self._data) - self.at:
            raise DecodeError("the CBOR item is cut off")
        return self._array(count, depth) if major == ARRAY else self._map(count, depth)

    def _array(self, count: int | None, depth: int) -> list[Value]:
        if count is not None:
            return [self.item(depth) for _ in range(count)]
        found = IndefiniteList()
        while not self._broken():
            found.append(self.item(depth))
        return found

    def _map(self, count: int | None, depth: int) -> dict[Key, Value]:
        found: dict[Key, Value] = {}
        while not self._broken() if count is None else count > 0:
            key = self.item(depth)
            if self._byte_keys and isinstance(key, list):
                key = as_byte_array(key)
            if isinstance(key, bool) or not isinstance(key, int | str | bytes):
                raise DecodeError("a CBOR map key that is neither integer nor string")
            found[key] = self.item(depth)
            count = None if count is None else count - 1
        return found

    def _broken(self) -> bool:
        """Whether the break comes next; it is consumed."""
        if self.at < len(self._data) and self._data[self.at] == _BREAK:
            self.at += 1
            return True
        return False


# -- what an item must be


def as_int(value: object, maximum: int = _LIMIT - 1, minimum: int = 0) -> int:
    """An integer within the limits; never a boolean."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise DecodeError("an integer was expected")
    if not minimum <= value <= maximum:
        raise DecodeError("an integer is out of range")
    return value


def as_bool(value: object) -> bool:
    if not isinstance(value, bool):
        raise DecodeError("a boolean was expected")
    return value


def as_bytes(value: object, size: int | None = None) -> bytes:
    """A byte string, of exactly `size` bytes if that is given."""
    if not isinstance(value, bytes):
        raise DecodeError("a byte string was expected")
    if size is not None and len(value) != size:
        raise DecodeError(f"a byte string of {size} bytes was expected")
    return value


def as_byte_array(value: object) -> bytes:
    """Bytes written as an array of integers, as stock writes some of its bytes (05 §0.3)."""
    return bytes(as_int(item, 255) for item in as_list(value))


def as_text(value: object) -> str:
    if not isinstance(value, str):
        raise DecodeError("a text was expected")
    return value


def as_list(value: object, minimum: int = 0) -> list[Value]:
    """An array of at least so many items; those beyond what the caller knows are his to ignore."""
    if not isinstance(value, list) or len(value) < minimum:
        raise DecodeError(f"an array of at least {minimum} items was expected")
    return value


def as_map(value: object) -> dict[Key, Value]:
    if not isinstance(value, dict):
        raise DecodeError("a map was expected")
    return value


def variant(value: object) -> tuple[int, list[Value]]:
    """An enumeration with data, `[index, [fields]]`: a definite array of exactly two (02 §2).

    A variant without fields may have anything in the second place (01 §8.2); that gives no fields.
    """
    if not isinstance(value, list) or isinstance(value, IndefiniteList) or len(value) != 2:
        raise DecodeError("an enumeration was expected")
    fields = value[1]
    return as_int(value[0], 0xFFFF_FFFF), fields if isinstance(fields, list) else []
