"""Multi-addresses: `/dnsaddr/host/tcp/4000/service/api` and its binary form.

Source: 01 §6.1 to §6.4. What a user typed wrongly is a ConfigError; bytes that are no multi-address
are a DecodeError. Empty values, which stock takes, are refused in both forms.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from edge.errors import ConfigError, DecodeError
from edge.wire import leb128

MAX_COMPONENTS = 64
SELF = "/secure/api"
"""What the word `self` stands for."""

_MAX_CODE_BYTES = 5
_PORT = re.compile(r"\+?0*([0-9]{1,5})", re.ASCII)


class _Protocol(NamedTuple):
    """How the value of one protocol is written. Both functions raise ValueError."""

    code: int
    size: int | None
    """Bytes of the binary value; None: a length stands in front."""
    pack: Callable[[str], bytes]
    unpack: Callable[[bytes], str]


def _pack_ip4(text: str) -> bytes:
    return ipaddress.IPv4Address(text).packed


def _unpack_ip4(data: bytes) -> str:
    return str(ipaddress.IPv4Address(data))


def _pack_ip6(text: str) -> bytes:
    if "%" in text:
        raise ValueError("a scope is not part of an address")
    return ipaddress.IPv6Address(text).packed


def _unpack_ip6(data: bytes) -> str:
    address = ipaddress.IPv6Address(data)
    mapped = address.ipv4_mapped  # printed differently by different versions of Python
    return str(address) if mapped is None else f"::ffff:{mapped}"


def _pack_port(text: str) -> bytes:
    match = _PORT.fullmatch(text)
    if match is None or int(match[1]) > 0xFFFF:
        raise ValueError("a port is a number of at most 65535")
    return int(match[1]).to_bytes(2, "big")


def _unpack_port(data: bytes) -> str:
    return str(int.from_bytes(data, "big"))


def _pack_text(text: str) -> bytes:
    if not text:
        raise ValueError("the value is missing")
    if "/" in text:
        raise ValueError("a value cannot contain a slash")
    return text.encode()


def _unpack_text(data: bytes) -> str:
    text = data.decode()
    _pack_text(text)
    return text


def _text(code: int) -> _Protocol:
    return _Protocol(code, None, _pack_text, _unpack_text)


_PROTOCOLS = {
    "ip4": _Protocol(4, 4, _pack_ip4, _unpack_ip4),
    "tcp": _Protocol(6, 2, _pack_port, _unpack_port),
    "ip6": _Protocol(41, 16, _pack_ip6, _unpack_ip6),
    "dnsaddr": _text(56),
    "udp": _Protocol(273, 2, _pack_port, _unpack_port),
    "service": _text(62526),
    "node": _text(72526),
    "project": _text(82526),
    "space": _text(92526),
    "secure": _text(99526),
    "worker": _text(102526),
}
_NAMES = {protocol.code: name for name, protocol in _PROTOCOLS.items()}


@dataclass(frozen=True, slots=True)
class Multiaddr:
    """A list of protocols with their values, the values in the form they are printed in."""

    components: tuple[tuple[str, str], ...]

    @staticmethod
    def of(*components: tuple[str, str]) -> Multiaddr:
        """Of names and values that a user gave; ConfigError where one is wrong."""
        if len(components) > MAX_COMPONENTS:
            raise ConfigError(f"a multiaddr has at most {MAX_COMPONENTS} parts")
        return Multiaddr(tuple(_normal(name, value) for name, value in components))

    @staticmethod
    def parse(text: str) -> Multiaddr:
        """The text form (01 §6.3): the first slash may be missing, and `self` is a shorthand."""
        if text == "self":
            text = SELF
        parts = text.removeprefix("/").split("/")
        if not text:
            raise ConfigError("the multiaddr is empty", hint=f"write one such as {SELF}")
        pairs = zip(parts[::2], [*parts[1::2], ""], strict=False)
        return Multiaddr.of(*pairs)

    @staticmethod
    def decode(data: bytes) -> Multiaddr:
        """The binary form (01 §6.2); no bytes are an empty multiaddr."""
        found: list[tuple[str, str]] = []
        at = 0
        while at < len(data):
            if len(found) == MAX_COMPONENTS:
                raise DecodeError(f"a multiaddr of more than {MAX_COMPONENTS} parts")
            component, at = _component(data, at)
            found.append(component)
        return Multiaddr(tuple(found))

    def encode(self) -> bytes:
        """The binary form. Two multiaddrs are equal where this is."""
        out = bytearray()
        for name, value in self.components:
            protocol = _PROTOCOLS[name]
            packed = protocol.pack(value)
            out += leb128.encode(protocol.code)
            if protocol.size is None:
                out += leb128.encode(len(packed))
            out += packed
        return bytes(out)

    def __str__(self) -> str:
        return "".join(f"/{name}/{value}" for name, value in self.components)


def _normal(name: str, value: str) -> tuple[str, str]:
    protocol = _PROTOCOLS.get(name)
    if protocol is None:
        known = ", ".join(_PROTOCOLS)
        raise ConfigError(f"/{name!s} is not known in a multiaddr", hint=f"known are {known}")
    try:
        return name, protocol.unpack(protocol.pack(value))
    except ValueError as error:
        raise ConfigError(f"/{name}/{value} is wrong in a multiaddr: {error}") from None


def _component(data: bytes, at: int) -> tuple[tuple[str, str], int]:
    code, at = _shortest(data, at, _MAX_CODE_BYTES)
    name = _NAMES.get(code)
    if name is None:
        raise DecodeError(f"a multiaddr with the unknown protocol {code}")
    protocol = _PROTOCOLS[name]
    size = protocol.size
    if size is None:
        size, at = _shortest(data, at, leb128.MAX_BYTES)
    end = at + size
    if end > len(data):
        raise DecodeError("a multiaddr is cut off")
    try:
        return (name, protocol.unpack(data[at:end])), end
    except ValueError as error:
        raise DecodeError(f"a multiaddr with a wrong value of {name}: {error}") from None


def _shortest(data: bytes, at: int, limit: int) -> tuple[int, int]:
    """A variable-length integer in its shortest form and of at most `limit` bytes."""
    n, end = leb128.decode(data, at)
    if end - at > limit or (end - at > 1 and data[end - 1] == 0):
        raise DecodeError("a multiaddr with a number that is not in its shortest form")
    return n, end
