"""Reading what a request or the store says: each field of the kind it must be, and no others."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any, NamedTuple

from edge.errors import ConfigError, DecodeError
from edge.identity.history import Identifier
from edge.wire.multiaddr import Multiaddr

HOSTS = ("ip4", "ip6", "dnsaddr")


class Fields:
    """A map from texts to values. Everything raises ConfigError, naming the field."""

    def __init__(self, values: object, known: tuple[str, ...]) -> None:
        if not isinstance(values, Mapping):
            raise ConfigError("the body must be a map")
        self._values = values
        for name in values:
            if name not in known:
                raise ConfigError(f"the field {name!r} is not known", hint=", ".join(known))

    def text(self, name: str) -> str:
        found = self.optional_text(name)
        if found is None:
            raise ConfigError(f"the field {name!r} is missing")
        return found

    def optional_text(self, name: str) -> str | None:
        found = self._get(name, str)
        return None if found is None else str(found)

    def flag(self, name: str, otherwise: bool) -> bool:
        found = self._get(name, bool)
        return otherwise if found is None else bool(found)

    def seconds(self, name: str, otherwise: float) -> float:
        """A number of milliseconds in the request, seconds here; a day at most."""
        found = self._get(name, int)
        if found is None:
            return otherwise
        return min(max(float(found) / 1000, 0.0), 86_400.0)

    def data(self, name: str) -> bytes:
        found = self._get(name, bytes)
        return b"" if found is None else bytes(found)

    def identifier(self, name: str) -> str | None:
        text = self.optional_text(name)
        return None if text is None else str(identifier(text))

    def identifiers(self, name: str) -> list[str]:
        """One or several, or nothing."""
        found = self._values.get(name)
        texts = [found] if isinstance(found, str) else found or []
        if not isinstance(texts, list):
            raise ConfigError(f"the field {name!r} must be a list of identifiers")
        return [str(identifier(text)) for text in texts]

    def maps(self, name: str) -> list[Any]:
        """A list of maps, or nothing."""
        found = self._values.get(name, [])
        if not isinstance(found, list) or not all(isinstance(one, Mapping) for one in found):
            raise ConfigError(f"the field {name!r} must be a list of maps")
        return found

    def route(self, name: str) -> str:
        return str(Multiaddr.parse(self.text(name)))

    def _get(self, name: str, kind: type) -> Any:
        found = self._values.get(name)
        if found is not None and (
            not isinstance(found, kind) or isinstance(found, bool) > (kind is bool)
        ):
            raise ConfigError(f"the field {name!r} must be of the kind {kind.__name__}")
        return found


def identifier(text: object) -> Identifier:
    """Raises ConfigError."""
    try:
        return Identifier.parse(str(text))
    except DecodeError:
        raise ConfigError(
            f"{str(text)[:80]!r} is no identifier", hint="one is I and 64 hexadecimal digits"
        ) from None


class HostPort(NamedTuple):
    """A TCP address; an IPv6 host without its brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def loopback(self) -> bool:
        return is_loopback(self.host)


def host_port(text: str) -> HostPort:
    """`host:port`, `[v6]:port`, or a port at 127.0.0.1. Raises ConfigError."""
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (port.isascii() and port.isdigit()) or int(port) > 65535 or "/" in host or " " in host:
        raise ConfigError(f"{text[:80]!r} is no address", hint="write HOST:PORT")
    return HostPort(host or "127.0.0.1", int(port))


def is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_proved(to: Multiaddr, authorized: object, hub_authorized: object = None) -> None:
    """Refuse to name identities that no channel of the route would prove. Raises ConfigError."""
    channels = sum(name == "secure" for name, _ in to.components)
    for option, given, needed in (
        ("--authorized", authorized, 1),
        ("--hub-authorized", hub_authorized, 2),
    ):
        if given and channels < needed:
            raise ConfigError(
                f"{to} has no channel that could prove the identity named with {option}",
                hint=f"add /secure/api to the route, or leave {option} out",
            )


def leaves_the_machine(route: str) -> bool:
    """Whether a route goes to another machine, as far as it says."""
    parts = Multiaddr.parse(route).components
    if parts[:1] and parts[0][0] == "project":
        return True
    hosts = [value for name, value in parts if name in HOSTS]
    return any(not is_loopback(host) for host in hosts)
