"""What a configuration asks a node to have: relays, outlets, inlets, services, policies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, ClassVar, TypeVar

from edge.config.document import Items, Table, Text, Value
from edge.config.mistakes import Place, nearest
from edge.config.reading import (
    ADDRESS,
    DURATION,
    FLAG,
    IDENTIFIER,
    IDENTIFIERS,
    INLET_TO,
    NAME,
    NODE,
    POLICY,
    ROUTE,
    TARGET,
    TEXT,
    Key,
    Keys,
    Kind,
    Reading,
    joined,
)
from edge.config.values import HostPort, inlet_route
from edge.policy.values import TYPES

ANY_PORT = HostPort("127.0.0.1", 0)


@dataclass(frozen=True)
class Resource:
    """Something by name. `key` and `place` are where the file says it."""

    key: str
    place: Place
    name: str
    _: KW_ONLY
    at: str | None = None
    kind: ClassVar[str]

    @property
    def body(self) -> dict[str, Any]:
        """As the node is asked for it."""
        raise NotImplementedError  # pragma: no cover


@dataclass(frozen=True)
class Relay(Resource):
    """Be reachable at a hub."""

    kind = "relay"
    hub: str = "/project/default"
    authorized: str | None = None
    relay_address: str | None = None
    no_wait: bool = False

    @property
    def body(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "at": self.hub,
            "relay_address": self.relay_address,
            "authorized": self.authorized,
            "wait": not self.no_wait,
        }


@dataclass(frozen=True)
class Outlet(Resource):
    """Where tunnels end."""

    kind = "tcp-outlet"
    to: HostPort | str
    tls: bool = False
    allow: str | None = None

    @property
    def body(self) -> dict[str, Any]:
        tls = self.tls or (isinstance(self.to, HostPort) and self.to.tls)
        return {"name": self.name, "to": str(self.to), "tls": tls, "allow": self.allow}


@dataclass(frozen=True)
class Inlet(Resource):
    """Where tunnels begin."""

    kind = "tcp-inlet"
    to: str
    listen: HostPort = ANY_PORT
    authorized: str | None = None
    hub_authorized: str | None = None
    allow: str | None = None
    connection_wait: int | None = None
    no_wait: bool = False

    @property
    def body(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "from": str(self.listen),
            "to": self.to,
            "authorized": self.authorized,
            "hub_authorized": self.hub_authorized,
            "allow": self.allow,
            "connection_wait": self.connection_wait,
            "wait": not self.no_wait,
        }


@dataclass(frozen=True)
class ChannelListener(Resource):
    """Where secure channels are accepted; the name is the address."""

    kind = "secure-channel-listener"
    authorized: tuple[str, ...] = ()

    @property
    def body(self) -> dict[str, Any]:
        return {"address": self.name, "authorized": list(self.authorized)}


@dataclass(frozen=True)
class Service(Resource):
    """A small worker; the name is the address."""

    kind = "service"
    type: str

    @property
    def body(self) -> dict[str, Any]:
        return {"type": self.type, "address": self.name}


@dataclass(frozen=True)
class Policy:
    """Of a resource by name, or of a type; the other one is None."""

    key: str
    place: Place
    resource: str | None
    type: str | None
    allow: str
    at: str | None = None

    @property
    def body(self) -> dict[str, Any]:
        return {"resource": self.resource, "type": self.type, "expression": self.allow}


R = TypeVar("R", bound=Resource)
NOT_HERE = "is not supported"
NO_EFFECT = "has no effect here"
TRIES_FOR_EVER = Key(TEXT, warning="has no effect here: it is tried again for ever")

PORTAL: dict[str, Key] = {
    "at": Key(NODE, "at"),
    "allow": Key(POLICY, "allow"),
    "expression": Key(POLICY, "allow"),
    "skip-handshake": Key(FLAG, refused=NOT_HERE),
    "enable-nagle": Key(FLAG, warning=NO_EFFECT),
    "privileged": Key(FLAG, refused=NOT_HERE),
    "ebpf": Key(FLAG, refused=NOT_HERE),
}
RELAY: Keys = {
    "at": Key(ROUTE, "hub"),
    "to": Key(NODE, "at"),
    "authorized": Key(IDENTIFIER, "authorized"),
    "relay-address": Key(NAME, "relay_address"),
    "project-relay": Key(TEXT, refused="is gone: give the relay a name, and the hub with at"),
    "no-connection-wait": Key(FLAG, "no_wait"),
    "retry": TRIES_FOR_EVER,
    "retry-count": TRIES_FOR_EVER,
    "retry-delay": TRIES_FOR_EVER,
    "no-retry": Key(FLAG, warning=TRIES_FOR_EVER.warning),
}
OUTLET: Keys = PORTAL | {
    "to": Key(TARGET, "to"),
    "from": Key(NAME, "name"),
    "tls": Key(FLAG, "tls"),
}
INLET: Keys = PORTAL | {
    "from": Key(ADDRESS, "listen"),
    "to": Key(INLET_TO, "to"),
    "via": Key(NAME, "via"),
    "authorized": Key(IDENTIFIER, "authorized"),
    "hub-authorized": Key(IDENTIFIER, "hub_authorized"),
    "alias": Key(NAME, "name"),
    "connection-wait": Key(DURATION, "connection_wait"),
    "no-connection-wait": Key(FLAG, "no_wait"),
    "identity": Key(TEXT, refused="is not supported: an inlet speaks as its node"),
    "retry-wait": Key(DURATION, warning=TRIES_FOR_EVER.warning),
    "timeout": Key(DURATION, warning=NO_EFFECT),
    "http-header": Key(TEXT._replace(many=True), refused=NOT_HERE),
    "udp": Key(FLAG, refused=NOT_HERE),
    "no-tcp-fallback": Key(FLAG, warning=NO_EFFECT),
    "tls": Key(FLAG, refused=NOT_HERE),
    "tls-certificate-provider": Key(TEXT, refused=NOT_HERE),
}


def _type(text: str) -> str:
    if text not in TYPES:
        raise ValueError(f"{text[:40]!r} is no type of resource{nearest(text, TYPES)}")
    return text


POLICIES: Keys = {
    "resource": Key(NAME, "resource"),
    "resource-type": Key(Kind(_type, f"one of {', '.join(TYPES)}"), "type"),
    "allow": Key(POLICY, "allow"),
    "expression": Key(POLICY, "allow"),
    "at": Key(NODE, "at"),
}
LISTENER: Keys = {
    "address": Key(NAME, "name"),
    "authorized-identifiers": Key(IDENTIFIERS, "authorized"),
    "disabled": Key(FLAG, "disabled"),
    "identity": Key(TEXT, refused="is not supported: a listener answers as its node"),
}
SMALL: Keys = {"address": Key(NAME, "name"), "disabled": Key(FLAG, "disabled")}
CONTROL_API: Keys = {
    "frontend": Key(FLAG, refused="the control API over HTTP is not supported"),
    "backend": Key(FLAG, refused="the control API over HTTP is not supported"),
} | {
    name: Key(TEXT, warning="has no effect here: there is no control API over HTTP")
    for name in (
        "http-bind-address", "authentication-token", "node-resolution", "node-resolution-relay-node",
        "node-resolution-pattern", "connection-node-port", "frontend-policy", "backend-policy",
    )
}  # fmt: skip


class Forms:
    """The forms of a section of resources: `name: {flags}`, or flags alone, or a list of either; where
    a `word` will do, also names alone."""

    def __init__(
        self,
        keys: Keys,
        make: Callable[..., R],
        *,
        unnamed: str,
        needed: tuple[str, ...] = (),
        word: bool = False,
    ) -> None:
        self._keys, self._make = keys, make
        self._unnamed, self._needed, self._word = unnamed, needed, word

    def read(self, reading: Reading, value: Value, where: str) -> tuple[Resource, ...]:
        found = list(self._all(reading, value, where))
        return tuple(one for one in found if one is not None)

    def _all(self, reading: Reading, value: Value, where: str) -> Iterator[Resource | None]:
        if isinstance(value, Items):
            if not value.items:
                reading.wrong(value.place, where, "is an empty list")
            for number, item in enumerate(value.items, 1):
                if isinstance(item, Items):
                    reading.wrong(item.place, where, "a list in a list")
                else:
                    yield from self._one(reading, item, where, number)
        else:
            yield from self._one(reading, value, where, 1)

    def _one(
        self, reading: Reading, value: Text | Table, where: str, number: int
    ) -> Iterator[Resource | None]:
        if isinstance(value, Table) and self._named(value):
            seen: dict[str, Place] = {}
            for name, flags in value.rows:
                if not reading.repeated(name, name.value, seen, where):
                    yield self._row(reading, name, flags, where)
        elif isinstance(value, Table):
            otherwise = self._unnamed if number == 1 else f"{self._unnamed}-{number}"
            inner = where if number == 1 else f"{where}[{number}]"
            yield self._made(reading, value, inner, value.place, otherwise)
        elif self._word:
            name = reading.text(NAME, value, where)
            if name is not None:
                yield self._make(joined(where, name), value.place, name)
        elif not value.broken:
            reading.wrong(value.place, where, "expected a map, or a list of maps")

    def _named(self, table: Table) -> bool:
        """Whether the keys are names, and not flags."""
        texts = [(key, value) for key, value in table.rows if not isinstance(value, Table)]
        if any(key.value in self._keys for key, _ in texts):
            return False
        if len(texts) < len(table.rows):
            return True
        return bool(texts) and all(isinstance(value, Text) and value.empty for _, value in texts)

    def _row(self, reading: Reading, name: Text, flags: Value, where: str) -> Resource | None:
        table = isinstance(flags, Table)
        if reading.is_section(name.value) and (not table or "-" in name.value):
            reading.unknown(name, (), where)
            return None
        found = reading.text(NAME, name, where)
        if found is None:
            return None
        if isinstance(flags, Text) and flags.empty:
            flags = Table((), name.place)
        if not isinstance(flags, Table):
            reading.wrong(flags.place, joined(where, found), "expected a map")
            return None
        return self._made(reading, flags, joined(where, found), name.place, found)

    def _made(
        self, reading: Reading, flags: Table, where: str, place: Place, name: str
    ) -> Resource | None:
        before = len(reading.mistakes)
        said = reading.fields(flags, self._keys, where)
        missing(reading, flags, where, *self._needed)
        if len(reading.mistakes) > before or not all(key in said for key in self._needed):
            return None
        said.setdefault("name", name)
        try:
            return self._make(where, place, **said)
        except ValueError as error:
            reading.wrong(place, where, str(error))
            return None


def missing(reading: Reading, table: Table, where: str, *needed: str) -> None:
    """A mistake for each key that is not there; `a|b` is one of two."""
    there = {key.value for key, _ in table.rows}
    for one in needed:
        if not there.intersection(one.split("|")):
            reading.wrong(table.place, where, f"{one.replace('|', ' or ')} is missing")


def _inlet(key: str, place: Place, to: str, via: str | None = None, **said: Any) -> Inlet:
    return Inlet(key, place, to=inlet_route(to, via), **said)


RELAYS = Forms(RELAY, Relay, unnamed="default", word=True)
OUTLETS = Forms(OUTLET, Outlet, unnamed="outlet", needed=("to",))
INLETS = Forms(INLET, _inlet, unnamed="inlet", needed=("to",))


def read_policies(reading: Reading, value: Value, where: str) -> tuple[Policy, ...]:
    """One map, or a list of them."""
    items = value.items if isinstance(value, Items) else (value,)
    found = []
    for number, item in enumerate(items, 1):
        inner = where if len(items) == 1 else f"{where}[{number}]"
        if not isinstance(item, Table):
            reading.wrong(
                item.place, inner, "expected a map with resource or resource-type, and allow"
            )
            continue
        said = reading.fields(item, POLICIES, inner)
        missing(reading, item, inner, "resource|resource-type", "allow|expression")
        if "resource" in said and "type" in said:
            reading.wrong(item.place, inner, "resource and resource-type exclude each other")
        elif "allow" in said and ("resource" in said or "type" in said):
            found.append(
                Policy(
                    inner,
                    item.place,
                    said.get("resource"),
                    said.get("type"),
                    said["allow"],
                    said.get("at"),
                )
            )
    return tuple(found)


def read_services(reading: Reading, value: Value, where: str) -> tuple[Resource, ...]:
    """A map of services (command-line.md §4.3), keys with - or _."""
    if not isinstance(value, Table):
        reading.wrong(value.place, where, "expected a map of services")
        return ()
    found: list[Resource] = []
    seen: dict[str, Place] = {}
    for name, flags in value.rows:
        kind = name.value.replace("_", "-")
        inner = joined(where, name.value)
        if reading.repeated(name, kind, seen, where):
            continue
        if kind not in SERVICES:
            reading.unknown(name, SERVICES, where)
        elif not isinstance(flags, Table) and not (isinstance(flags, Text) and flags.empty):
            reading.wrong(flags.place, inner, "expected a map")
        else:
            table = flags if isinstance(flags, Table) else Table((), name.place)
            said = reading.fields(_dashed(table), SERVICES[kind], inner)
            made = None if said.pop("disabled", False) else _service(kind, inner, name.place, said)
            found += [made] if made is not None else []
    return tuple(found)


def _dashed(table: Table) -> Table:
    rows = [(replace(key, value=key.value.replace("_", "-")), value) for key, value in table.rows]
    return Table(tuple(rows), table.place)


def _service(kind: str, where: str, place: Place, said: dict[str, Any]) -> Resource | None:
    if kind == "secure-channel-listener":
        authorized = tuple(said.get("authorized", ()))
        return ChannelListener(where, place, said.get("name", "api"), authorized=authorized)
    name = said.get("name", kind)
    if kind == "control-api" or (name == kind and kind in ("echo", "uppercase")):
        return None  # what every node has, and what none of ours has
    return Service(where, place, name, type=kind)


SERVICES: dict[str, Keys] = {
    "secure-channel-listener": LISTENER,
    "hop": SMALL,
    "echo": SMALL,
    "uppercase": SMALL,
    "control-api": CONTROL_API,
}
