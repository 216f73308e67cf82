"""Addresses and routes, interned by the bytes they arrive in.

Source: 01 §1.3 (encoding and what is tolerated), §1.5 (kinds and text). A peer's route is met again
in every message of a stream, so a known one costs one look into a dictionary. The limits on count
and length are ours (01 §1.2).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, NamedTuple

from edge.errors import ConfigError, DecodeError
from edge.wire import cbor

LOCAL, TCP, UDP = 0, 1, 2
"""Kinds of address (01 §1.5)."""
MAX_ADDRESSES = 64
MAX_ADDRESS_BYTES = 255
KNOWN_ROUTES = 2048
KNOWN_BYTES = 512
"""Only routes no longer than this are remembered: strangers choose what we see."""
NEIGHBOURS = 16
"""How many pushed and joined routes each route remembers."""


class Address(NamedTuple):
    """One hop: a kind of transport and a value that only the owner understands."""

    kind: int
    value: bytes

    @staticmethod
    def local(name: str | bytes) -> Address:
        return Address(LOCAL, name.encode() if isinstance(name, str) else name)

    @staticmethod
    def parse(text: str) -> Address:
        """`0#echo`, `1#host:port`, or a bare name of kind 0 (01 §1.5)."""
        kind, sign, name = text.rpartition("#")
        if not sign and name:
            kind = str(LOCAL)
        if not (kind.isascii() and kind.isdigit() and len(kind) <= 3 and int(kind) <= 255):
            raise ConfigError(f"{text!r} is not an address", hint="write NAME, or KIND#NAME")
        return Address(int(kind), _typed(name))

    @property
    def encoded(self) -> bytes:
        return b"\x82" + cbor.head(cbor.UINT, self.kind) + cbor.encode(self.value)

    def __str__(self) -> str:
        text = self.value.decode("utf-8", "backslashreplace")
        printable = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
        return f"{self.kind}#{printable}"


def _typed(name: str) -> bytes:
    """The value of an address that somebody typed."""
    try:
        value = name.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{name!a} is not UTF-8") from None
    if len(value) > MAX_ADDRESS_BYTES:
        raise ConfigError(f"the address {name!r} is longer than {MAX_ADDRESS_BYTES} bytes")
    return value


class Route:
    """A list of addresses; immutable. Equal encodings are equal routes, and mostly one object."""

    __slots__ = ("_joined", "_pushed", "_rest", "addresses", "encoded", "first", "last")

    EMPTY: ClassVar[Route]

    def __init__(self, addresses: tuple[Address, ...], encoded: bytes) -> None:
        """For this file only: use `of`, `decode` or `parse`."""
        self.addresses = addresses
        self.encoded = encoded
        self.first = addresses[0] if addresses else None
        self.last = addresses[-1] if addresses else None
        self._rest: Route | None = None
        self._pushed: dict[Address, Route] = {}
        self._joined: dict[Route, Route] = {}

    @staticmethod
    def of(*addresses: Address | str | bytes) -> Route:
        """The route of these hops; a name alone is a local address, whatever signs are in it."""
        return _interned(
            tuple(a if isinstance(a, Address) else Address.local(a) for a in addresses)
        )

    @staticmethod
    def decode(encoded: bytes) -> Route:
        """The route in these bytes, which are nothing but it. `encoded` of the result is our own
        form of it."""
        found = _known.get(encoded)
        return _decoded(encoded) if found is None else found

    @staticmethod
    def parse(text: str) -> Route:
        """`0#a => 0#b`; the empty text is the empty route."""
        names = [name.strip() for name in text.split("=>")] if text.strip() else []
        if len(names) > MAX_ADDRESSES:
            raise ConfigError(f"a route has at most {MAX_ADDRESSES} addresses")
        return _interned(tuple(Address.parse(name) for name in names))

    @property
    def rest(self) -> Route:
        """The route without its first address; the empty one stays empty."""
        if self._rest is None:
            self._rest = _interned(self.addresses[1:])
        return self._rest

    def pushed(self, address: Address) -> Route:
        """The route with `address` in front."""
        found = self._pushed.get(address)
        if found is None:
            found = _interned((address, *self.addresses))
            if len(self._pushed) >= NEIGHBOURS:
                self._pushed.clear()
            self._pushed[address] = found
        return found

    def appended(self, address: Address) -> Route:
        """The route with `address` behind."""
        return _interned((*self.addresses, address))

    def joined(self, other: Route) -> Route:
        """The route with `other` behind."""
        found = self._joined.get(other)
        if found is None:
            found = _interned(self.addresses + other.addresses)
            if len(self._joined) >= NEIGHBOURS:
                self._joined.clear()
            self._joined[other] = found
        return found

    def __len__(self) -> int:
        return len(self.addresses)

    def __bool__(self) -> bool:
        return bool(self.addresses)

    def __iter__(self) -> Iterator[Address]:
        return iter(self.addresses)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Route):
            return NotImplemented
        return self is other or self.encoded == other.encoded

    def __hash__(self) -> int:
        return hash(self.encoded)

    def __str__(self) -> str:
        return " => ".join(map(str, self.addresses))

    def __repr__(self) -> str:
        return f"<Route {self}>"


_known: dict[bytes, Route] = {}
"""Routes by the bytes of their encodings, canonical or as they arrived."""


def _remember(encoded: bytes, route: Route) -> None:
    if len(encoded) <= KNOWN_BYTES and len(route.encoded) <= KNOWN_BYTES:
        if len(_known) >= KNOWN_ROUTES:
            _known.clear()
            _known[Route.EMPTY.encoded] = Route.EMPTY
        _known[encoded] = route


def _interned(addresses: tuple[Address, ...]) -> Route:
    if len(addresses) > MAX_ADDRESSES:
        raise DecodeError(f"a route of more than {MAX_ADDRESSES} addresses")
    encoded = cbor.head(cbor.ARRAY, len(addresses)) + b"".join(a.encoded for a in addresses)
    found = _known.get(encoded)
    if found is None:
        found = Route(addresses, encoded)
        _remember(encoded, found)
    return found


def _decoded(encoded: bytes) -> Route:
    route = from_value(cbor.decode(encoded))
    _remember(encoded, route)
    return route


def from_value(value: object) -> Route:
    """The route in a decoded item."""
    return _interned(tuple(_address(item) for item in cbor.as_list(value)))


def _address(item: object) -> Address:
    """An address of two items; more are skipped (01 §1.3)."""
    kind, value = cbor.as_list(item, 2)[:2]
    address = Address(cbor.as_int(kind, 255), cbor.as_bytes(value))
    if len(address.value) > MAX_ADDRESS_BYTES:
        raise DecodeError(f"an address of more than {MAX_ADDRESS_BYTES} bytes")
    return address


Route.EMPTY = Route.of()
