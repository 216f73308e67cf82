"""The configuration of a node: which sections there are, and what a whole file comes to.

To add a section: a row in SECTIONS, and an attribute of NodeConfig for what it says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from edge.config.document import Table, Text, Value, read_document
from edge.config.mistakes import Mistake, Mistakes, Place, at
from edge.config.reading import ADDRESS, FLAG, NAME, NODE, TEXT, Key, Kind, Reading
from edge.config.resources import (
    INLET,
    INLETS,
    OUTLETS,
    POLICIES,
    RELAYS,
    Inlet,
    Outlet,
    Policy,
    Relay,
    Resource,
    read_policies,
    read_services,
)
from edge.config.values import HostPort, parse_log_format, parse_loopback
from edge.config.variables import Filling, References, Variables, is_name


@dataclass(frozen=True)
class NodeConfig:
    """What a file says of a node; None and nothing where it says nothing. `places` are those of the
    keys of the first level."""

    source: str
    places: Mapping[str, Place] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    ticket: str | None = field(default=None, repr=False)
    name: str | None = None
    identity: str | None = None
    project: str | None = None
    listener: HostPort | None = None
    no_listener: bool = False
    keep_channel_key: bool = False
    status_endpoint: HostPort | None = None
    log_format: str | None = None
    foreground: bool = False
    exit_on_eof: bool = False
    policies: tuple[Policy, ...] = ()
    services: tuple[Resource, ...] = ()
    relays: tuple[Relay, ...] = ()
    outlets: tuple[Outlet, ...] = ()
    inlets: tuple[Inlet, ...] = ()

    @property
    def resources(self) -> tuple[Resource, ...]:
        """In the order in which they are made."""
        return (*self.services, *self.relays, *self.outlets, *self.inlets)

    def at(self, place: Place, text: str) -> str:
        return at(self.source, place, text)


class Section(NamedTuple):
    """What becomes of a key of the first level: `read` gives what goes `into` an attribute."""

    read: Callable[[Reading, Value, str], Any]
    into: str = ""


def _one(kind: Kind, into: str = "", *, warning: str = "", refused: str = "") -> Section:
    key = Key(kind, into, warning, refused)
    return Section(lambda reading, value, where: reading.one(key, value, where), into)


def _never(reason: str) -> Section:
    """Whatever its value is."""
    return Section(lambda reading, value, where: reading.wrong(value.place, where, reason))


def _version(text: str) -> str:
    if text != "1":
        raise ValueError(f"version {text[:20]!r} is not known; expected 1")
    return text


NO_EFFECT = "has no effect here"
NO_UDP = "is not supported: there is no UDP here"
ON_COMMAND_LINE = "is not a key of the file: give it on the command line, as --"
KAFKA = "Kafka is not supported yet"
INFLUXDB = "InfluxDB leases are out of scope; a tcp-outlet reaches an InfluxDB server"
OTHER_FORM = "belongs to the older form of several nodes; one file describes one node here"

SECTIONS: dict[str, Section] = {
    "version": _one(Kind(_version, "1")),
    "variables": Section(lambda reading, value, where: None),  # read before all others
    "ticket": _one(TEXT, "ticket"),
    "name": _one(NODE, "name"),
    "identity": _one(NAME, "identity"),
    "project": _one(NAME, "project"),
    "tcp-listener-address": _one(ADDRESS, "listener"),
    "no-tcp-listener": _one(FLAG, "no_listener"),
    "keep-channel-key": _one(FLAG, "keep_channel_key"),
    "foreground": _one(FLAG, "foreground"),
    "exit-on-eof": _one(FLAG, "exit_on_eof"),
    "policy": Section(read_policies, "policies"),
    "policies": Section(read_policies, "policies"),
    "services": Section(read_services, "services"),
    "relay": Section(RELAYS.read, "relays"),
    "relays": Section(RELAYS.read, "relays"),
    "tcp-outlet": Section(OUTLETS.read, "outlets"),
    "tcp-outlets": Section(OUTLETS.read, "outlets"),
    "tcp-inlet": Section(INLETS.read, "inlets"),
    "tcp-inlets": Section(INLETS.read, "inlets"),
    # What stock knows and we do not have. A truth that is false asks for nothing.
    "status-endpoint": _one(Kind(parse_loopback, "PORT or 127.0.0.1:PORT"), "status_endpoint"),
    "no-status-endpoint": _one(FLAG),  # as it is unless one is asked for
    "log-format": _one(Kind(parse_log_format, "text or json"), "log_format"),
    "udp": _one(FLAG, refused=NO_UDP),
    "enable-udp": _one(FLAG, refused=NO_UDP),
    "udp-listener-address": _one(TEXT, warning="has no effect here: there is no UDP"),
    "in-memory": _one(FLAG, refused="is not supported: what a node has is kept on the disk"),
    "skip-is-running-check": _one(FLAG, warning=NO_EFFECT),
    "http-server": _one(FLAG, warning=NO_EFFECT),
    "enable-http-server": _one(FLAG, warning=NO_EFFECT),
    "opentelemetry-context": _one(TEXT, warning=NO_EFFECT),
    "child-process": _one(FLAG, warning=NO_EFFECT),
    "launch-config": _never("is gone since 0.150: use services"),
    "authority-identity": _never(f"{ON_COMMAND_LINE}authority-identity"),
    "authority-route": _never(f"{ON_COMMAND_LINE}authority-route"),
    "credential-scope": _never(f"{ON_COMMAND_LINE}credential-scope"),
    "vaults": _never(OTHER_FORM),
    "identities": _never(OTHER_FORM),
    "nodes": _never(OTHER_FORM),
    **dict.fromkeys(("kafka-inlet", "kafka-inlets"), _never(KAFKA)),
    **dict.fromkeys(("kafka-outlet", "kafka-outlets"), _never(KAFKA)),
    **dict.fromkeys(("kafka-consumer", "kafka-producer"), _never(KAFKA)),
    **dict.fromkeys(("influxdb-inlet", "influxdb-inlets"), _never(INFLUXDB)),
    **dict.fromkeys(("influxdb-outlet", "influxdb-outlets"), _never(INFLUXDB)),
}
"""By the key, with - where the file may also have _."""
INNER = {*INLET, *POLICIES} - SECTIONS.keys()


def read(
    text: str,
    source: str = "configuration",
    *,
    environment: Mapping[str, str] | None = None,
    given: Mapping[str, str] | None = None,
    name: str | None = None,
) -> NodeConfig:
    """What the text says. `given` are variables that go before the environment's; `name` is the node's,
    where the command line says it. Raises Mistakes, with all of them."""
    references = References(text, source)
    document = read_document(references.marked, source)
    variables = Variables(given or {}, environment or {})
    filling = Filling(references, variables)
    reading = Reading(SECTIONS)
    for key, value in document.rows:
        if key.value == "variables":
            _define(reading, filling, variables, value)
    rest = tuple(row for row in document.rows if row[0].value != "variables")
    found, places = _sections(reading, filling.table(Table(rest, document.place)))
    config = NodeConfig(source, places, **found)
    _check(reading, config, name or config.name)
    if mistakes := [*filling.mistakes, *reading.mistakes]:
        raise Mistakes(source, mistakes)
    warnings = tuple(at(source, one.place, str(one)) for one in sorted(reading.warnings))
    return NodeConfig(source, places, warnings, **found)


def _define(reading: Reading, filling: Filling, variables: Variables, value: Value) -> None:
    """The file's own variables; what one says may use those before it."""
    if not isinstance(value, Table):
        reading.wrong(value.place, "variables", "expected a map of names and values")
        return
    seen: dict[str, Place] = {}
    for key, said in value.rows:
        where = f"variables.{key.value}"
        if reading.repeated(key, key.value, seen, "variables"):
            continue
        if not is_name(key.value):
            reading.wrong(key.place, "variables", f"{key.value[:40]!r} is no name of a variable")
        elif not isinstance(said, Text):
            reading.wrong(said.place, where, "expected a text, a number or a truth")
        elif said.empty or not said.value:
            reading.wrong(said.place, where, "is empty")
        elif not (filled := filling.text(said)).broken and not variables.define(
            key.value, filled.value
        ):
            reading.warn(said.place, where, "the environment or --variable says it otherwise")


def _sections(reading: Reading, document: Table) -> tuple[dict[str, Any], dict[str, Place]]:
    found: dict[str, Any] = {}
    places: dict[str, Place] = {}
    for name, value in document.rows:
        key = name.value.replace("_", "-")
        if reading.repeated(name, key, places, ""):
            continue
        section = SECTIONS.get(key)
        if section is None:
            _unknown(reading, name)
            continue
        said = section.read(reading, value, name.value)
        if said is not None and section.into:
            found[section.into] = (
                found.get(section.into, ()) + said if type(said) is tuple else said
            )
    return found, places


def _unknown(reading: Reading, name: Text) -> None:
    if name.value in INNER:
        hint = "it belongs into a section such as tcp-outlet, with more indentation"
        reading.wrong(name.place, "", f"unknown key {name.value!r}; {hint}")
    else:
        reading.unknown(name, SECTIONS, "")


# -- what no single key can know


def _check(reading: Reading, config: NodeConfig, name: str | None) -> None:
    everything: tuple[Resource | Policy, ...] = (*config.resources, *config.policies)
    for one in everything:
        if one.at is not None and one.at != name:
            ours = f"this one is {name}" if name else "this one has no name"
            reading.wrong(one.place, one.key, f"is for the node {one.at}, and {ours}")
    if config.no_listener and config.listener is not None:
        place = config.places["no-tcp-listener"]
        reading.wrong(place, "no-tcp-listener", "tcp-listener-address says the contrary")
    reading.mistakes += _same_names(config)
    reading.mistakes += _same_policies(config)


def _same_names(config: NodeConfig) -> Iterator[Mistake]:
    seen: dict[tuple[str, str], Place] = {}
    for one in config.resources:
        before = seen.setdefault((one.kind, one.name), one.place)
        if before is not one.place:
            said = f"another {one.kind} is called {one.name}, in line {before.line}"
            yield Mistake(one.place, one.key, said)


def _same_policies(config: NodeConfig) -> Iterator[Mistake]:
    """A policy is of a name: things of different kinds may share both, but not contradict."""
    seen: dict[tuple[str | None, str | None], tuple[Place, str]] = {}
    portals: tuple[Outlet | Inlet, ...] = (*config.outlets, *config.inlets)
    named = [
        Policy(one.key, one.place, one.name, None, one.allow)
        for one in portals
        if one.allow is not None
    ]
    for one in (*named, *config.policies):
        place, allow = seen.setdefault((one.resource, one.type), (one.place, one.allow))
        if allow != one.allow or (place is not one.place and one in config.policies):
            what = one.resource or f"every {one.type}"
            yield Mistake(one.place, one.key, f"line {place.line} has a policy of {what} already")
