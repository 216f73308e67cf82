"""Requests and responses: a CBOR header and a CBOR body, together one BARE byte string.

Source: 01 §5.1 to §5.3.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple, TypeVar

from edge.errors import DecodeError
from edge.wire import bare, cbor

MAX_SEGMENTS = 5
MAX_TEXT = 1024
"""Characters of an error text that are shown."""
_U32 = 0xFFFF_FFFF
_ID, _PATH, _METHOD, _HAS_BODY = 1, 2, 3, 4
_RE, _STATUS = 2, 3


class Method(IntEnum):
    """What to do with a path."""

    GET = 0
    POST = 1
    PUT = 2
    DELETE = 3
    PATCH = 4


class Status(IntEnum):
    """How it went."""

    OK = 200
    BAD_REQUEST = 400
    UNAUTHORIZED = 401
    FORBIDDEN = 403
    NOT_FOUND = 404
    METHOD_NOT_ALLOWED = 405
    TIMEOUT = 408
    CONFLICT = 409
    INTERNAL_SERVER_ERROR = 500
    NOT_IMPLEMENTED = 501


_Enum = TypeVar("_Enum", Method, Status)


class Request(NamedTuple):
    """A request. The body is one encoded CBOR item; None where there is none."""

    id: int
    path: str
    method: Method | None
    body: bytes | None = None

    def encode(self) -> bytes:
        """The payload of the message. Stock nodes need the method, and die without (01 §5.1)."""
        fields: dict[int, object] = {_ID: self.id, _PATH: self.path}
        if self.method is not None:
            fields[_METHOD] = self.method
        return _enveloped(fields, self.body)

    @staticmethod
    def decode(payload: bytes | memoryview) -> Request:
        fields, body = _opened(payload)
        return Request(
            cbor.as_int(fields.get(_ID), _U32),
            cbor.as_text(fields.get(_PATH)),
            _optional(Method, fields.get(_METHOD)),
            body,
        )

    @property
    def segments(self) -> list[str]:
        """The path without its leading slashes, in at most five parts (01 §5.1)."""
        return self.path.lstrip("/").split("/", MAX_SEGMENTS - 1)


class Response(NamedTuple):
    """The response to the request `re`. A body of zero bytes is the stock form of nothing."""

    id: int
    re: int
    status: Status | None
    body: bytes | None = None

    def encode(self) -> bytes:
        """The payload of the message."""
        fields: dict[int, object] = {_ID: self.id, _RE: self.re}
        if self.status is not None:
            fields[_STATUS] = self.status
        return _enveloped(fields, self.body)

    @staticmethod
    def decode(payload: bytes | memoryview) -> Response:
        fields, body = _opened(payload)
        return Response(
            cbor.as_int(fields.get(_ID), _U32),
            cbor.as_int(fields.get(_RE), _U32),
            _optional(Status, fields.get(_STATUS)),
            body,
        )

    @property
    def error(self) -> str:
        """What the other side says went wrong; empty if it says nothing we understand (01 §5.3)."""
        try:
            value, _ = cbor.decode_prefix(self.body or b"")
            return _error_text(value)
        except (DecodeError, UnicodeDecodeError):
            return ""


class Failure(NamedTuple):
    """The body of a response that is not OK: `api-error` (01 §5.1)."""

    message: str | None = None
    path: str | None = None
    method: Method | None = None
    cause: Failure | None = None

    def encode(self) -> bytes:
        return cbor.encode(self._map())

    @staticmethod
    def from_value(value: object) -> Failure:
        """The failure in a decoded item."""
        fields = _checked(value)
        message, path, cause = fields.get(3), fields.get(1), fields.get(4)
        return Failure(
            None if message is None else cbor.as_text(message),
            None if path is None else cbor.as_text(path),
            _optional(Method, fields.get(2)),
            None if cause is None else Failure.from_value(cause),
        )

    def _map(self) -> dict[int, object]:
        cause = None if self.cause is None else self.cause._map()
        fields = {1: self.path, 2: self.method, 3: self.message, 4: cause}
        return {key: value for key, value in fields.items() if value is not None}

    def __str__(self) -> str:
        """The messages, from the outermost to the cause."""
        texts = [self.message] if self.message else []
        if self.cause is not None and str(self.cause):
            texts.append(str(self.cause))
        return ": ".join(texts)


def _enveloped(fields: dict[int, object], body: bytes | None) -> bytes:
    fields[_HAS_BODY] = body is not None
    return bare.encode_data(cbor.encode(fields) + (body or b""))


def _opened(payload: bytes | memoryview) -> tuple[dict[cbor.Key, cbor.Value], bytes | None]:
    """The header, and what follows it if it says that there is a body."""
    data, _ = bare.decode_data(payload)
    value, end = cbor.decode_prefix(data)
    fields = _checked(value)
    return fields, data[end:] if cbor.as_bool(fields.get(_HAS_BODY)) else None


def _checked(value: object) -> dict[cbor.Key, cbor.Value]:
    """A map with the keys of a structure: unsigned 32-bit integers (01 §8.4)."""
    fields = cbor.as_map(value)
    for key in fields:
        cbor.as_int(key, _U32)
    return fields


def _optional(kind: type[_Enum], value: object) -> _Enum | None:
    """A member of the enumeration; a value outside it is an error of the whole (01 §5.1)."""
    if value is None:
        return None
    try:
        return kind(cbor.as_int(value))
    except ValueError:
        raise DecodeError(f"an unknown {kind.__name__.lower()}") from None


def _error_text(value: object) -> str:
    if isinstance(value, bytes):
        value = value.decode()
    text = value if isinstance(value, str) else str(Failure.from_value(value))
    return "".join(c if c.isprintable() else " " for c in text[:MAX_TEXT])
