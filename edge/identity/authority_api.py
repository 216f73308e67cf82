"""What is said to an authority and what it answers: the bodies of 05 §1.3 to §1.7.

The odd forms are stock's: the attributes of a member travel as arrays of bytes-as-integers, those
of a request as texts, those of a credential as byte strings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from edge.errors import DecodeError
from edge.identity.history import Identifier
from edge.wire import cbor

CODE_BYTES = 32
MAX_ATTRIBUTES = 128
MAX_ATTRIBUTE_BYTES = 16 * 1024
"""Of all names and values of one member together: a credential must fit a handshake message."""
_IDENTIFIER_BYTES = 32


class AddMember(NamedTuple):
    """Make `identifier` a member, or replace its attributes."""

    identifier: Identifier
    attributes: dict[str, str]

    def encode(self) -> bytes:
        return cbor.encode({1: self.identifier, 2: _sorted(self.attributes)})

    @classmethod
    def decode(cls, body: bytes | None) -> AddMember:
        fields = _fields(body)
        return cls(_identifier(fields.get(1)), _attributes(fields.get(2)))


class CreateToken(NamedTuple):
    """A one-time code for a member to be. `lifetime` in seconds; None leaves it to the authority."""

    attributes: dict[str, str]
    lifetime: int | None = None
    uses: int | None = None

    def encode(self) -> bytes:
        fields: dict[int, object] = {1: _sorted(self.attributes)}
        if self.lifetime is not None:
            fields[2] = self.lifetime
        if self.uses is not None:
            fields[3] = self.uses
        return cbor.encode(fields)

    @classmethod
    def decode(cls, body: bytes | None) -> CreateToken:
        fields = _fields(body)
        return cls(_attributes(fields.get(1)), _optional(fields.get(2)), _optional(fields.get(3)))


class MemberEntry(NamedTuple):
    """What the authority keeps of a member (`attributes-entry`). Times in seconds since 1970."""

    attributes: dict[bytes, bytes]
    added_at: int
    added_by: Identifier | None = None
    expires_at: int | None = None

    @property
    def value(self) -> dict[int, object]:
        """The CBOR map, to be put into an answer."""
        fields: dict[int, object] = {1: _integers(self.attributes), 2: self.added_at}
        if self.expires_at is not None:
            fields[3] = self.expires_at
        if self.added_by is not None:
            fields[4] = self.added_by
        return fields

    def encode(self) -> bytes:
        return cbor.encode(self.value)

    @classmethod
    def decode(cls, body: bytes | None) -> MemberEntry:
        return cls.from_value(_decoded(body))

    @classmethod
    def from_value(cls, value: object) -> MemberEntry:
        fields = cbor.as_map(value)
        attributes = {
            _bytes(name): cbor.as_byte_array(item)
            for name, item in cbor.as_map(fields.get(1)).items()
        }
        added_by = fields.get(4)
        return cls(
            attributes,
            cbor.as_int(fields.get(2)),
            None if added_by is None else _identifier(added_by),
            _optional(fields.get(3)),
        )


def encode_code(code: bytes) -> bytes:
    """`one-time-code`."""
    return cbor.encode({1: code})


def decode_code(body: bytes | None) -> bytes:
    return cbor.as_bytes(_fields(body).get(1), CODE_BYTES)


def encode_members(members: Mapping[Identifier, MemberEntry]) -> bytes:
    return cbor.encode({identifier: entry.value for identifier, entry in members.items()})


def decode_members(body: bytes | None) -> dict[Identifier, MemberEntry]:
    return {
        _identifier(key): MemberEntry.from_value(value)
        for key, value in cbor.as_map(_decoded(body)).items()
    }


def encode_identifiers(identifiers: list[Identifier]) -> bytes:
    return cbor.encode(identifiers)


def decode_identifiers(body: bytes | None) -> list[Identifier]:
    return [_identifier(item) for item in cbor.as_list(_decoded(body))]


def _integers(attributes: Mapping[bytes, bytes]) -> cbor.Raw:
    """A map whose keys and values are arrays of integers."""
    out = bytearray(cbor.head(cbor.MAP, len(attributes)))
    for name, value in sorted(attributes.items()):
        out += cbor.encode(list(name)) + cbor.encode(list(value))
    return cbor.Raw(out)


def _decoded(body: bytes | None) -> cbor.Value:
    if body is None:
        raise DecodeError("a body was expected")
    return cbor.decode(body, byte_keys=True)


def _fields(body: bytes | None) -> dict[cbor.Key, cbor.Value]:
    return cbor.as_map(_decoded(body))


def _identifier(value: object) -> Identifier:
    return Identifier(cbor.as_bytes(value, _IDENTIFIER_BYTES))


def _optional(value: object) -> int | None:
    return None if value is None else cbor.as_int(value)


def _bytes(key: object) -> bytes:
    """A name: an array of integers became bytes; a text would be another release's."""
    return key.encode() if isinstance(key, str) else cbor.as_bytes(key)


def _attributes(value: object) -> dict[str, str]:
    found = {cbor.as_text(key): cbor.as_text(item) for key, item in cbor.as_map(value).items()}
    size = sum(len(name.encode()) + len(text.encode()) for name, text in found.items())
    if len(found) > MAX_ATTRIBUTES or size > MAX_ATTRIBUTE_BYTES:
        raise DecodeError(f"more than {MAX_ATTRIBUTES} attributes, or {MAX_ATTRIBUTE_BYTES} bytes")
    return found


def _sorted(attributes: Mapping[str, str]) -> dict[str, str]:
    return dict(sorted(attributes.items()))
