"""Reading a table of the configuration by a table of ours: which keys there are, of what kind each is,
and what becomes of it. Mistakes are collected, so that a person sees all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

from edge.config import values
from edge.config.document import Items, Table, Text, Value
from edge.config.mistakes import Mistake, Place, nearest
from edge.errors import ConfigError, DecodeError
from edge.policy.expr import PolicyProblem
from edge.policy.expr import parse as parse_policy
from edge.wire.multiaddr import Multiaddr

T = TypeVar("T")
LONGEST_NAME = 64
TRUTH = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}


class Kind(NamedTuple):
    """How a text is read. `parse` raises ValueError or ConfigError; `expected` is what it wants."""

    parse: Callable[[str], Any]
    expected: str
    many: bool = False
    """A list of such texts, or one."""
    truth: bool = False


class Key(NamedTuple):
    """What becomes of a key: it goes `into` an attribute; without one it has no effect, which `warning`
    says. `refused` says why a value cannot be had; a truth that is false asks for nothing."""

    kind: Kind
    into: str = ""
    warning: str = ""
    refused: str = ""


Keys = Mapping[str, Key]


def _short_name(text: str) -> str:
    if len(found := values.parse_name(text, "service")) > LONGEST_NAME:
        raise ValueError(f"a name has at most {LONGEST_NAME} characters")
    return found


def _node_name(text: str) -> str:
    return _short_name(text.removeprefix("/node/"))


def _address(text: str) -> values.HostPort:
    """Where to listen."""
    if "://" in text and not text.startswith("tcp://"):
        raise ValueError("only tcp:// is possible here")
    return values.parse_host_port(text)


def _route(text: str) -> str:
    Multiaddr.parse(route := values.parse_route(text))
    return route


def _inlet_to(text: str) -> str:
    Multiaddr.parse(values.inlet_route(text, None))
    return text


def _policy(text: str) -> str:
    parse_policy(text.strip())
    return text.strip()


def _truth(text: str) -> bool:
    if text not in TRUTH:
        raise ValueError(f"{text[:40]!r} is neither true nor false")
    return TRUTH[text]


TEXT = Kind(str, "a text")
FLAG = Kind(_truth, "true or false", truth=True)
NAME = Kind(_short_name, "a name of at most 64 letters, digits, - and _")
NODE = Kind(_node_name, NAME.expected)
ADDRESS = Kind(_address, "PORT or HOST:PORT")
TARGET = Kind(values.parse_target, "PORT, HOST:PORT or unix:/path")
ROUTE = Kind(_route, "a route such as /dnsaddr/hub.example/tcp/4000/secure/api")
INLET_TO = Kind(_inlet_to, "the name of an outlet, or a route to one")
IDENTIFIER = Kind(values.parse_identifier, "an identifier: I and 64 hex digits")
IDENTIFIERS = IDENTIFIER._replace(many=True)
DURATION = Kind(values.parse_duration, "a duration such as 5s")
POLICY = Kind(_policy, "a policy such as role=plc and not revoked")


class Reading:
    """Of one file. `sections`: the keys of its first level."""

    def __init__(self, sections: Iterable[str] = ()) -> None:
        self._sections = frozenset(sections)
        self.mistakes: list[Mistake] = []
        self.warnings: list[Mistake] = []

    def wrong(self, place: Place, key: str, text: str) -> None:
        self.mistakes.append(Mistake(place, key, text))

    def warn(self, place: Place, key: str, text: str) -> None:
        self.warnings.append(Mistake(place, key, text))

    def fields(self, table: Table, known: Keys, where: str) -> dict[str, Any]:
        """What the keys of a table say, by attribute."""
        found: dict[str, Any] = {}
        seen: dict[str, Place] = {}
        for name, value in table.rows:
            key = known.get(name.value)
            if self.repeated(name, name.value, seen, where):
                continue
            if key is None:
                self.unknown(name, known, where)
                continue
            said = self.one(key, value, joined(where, name.value))
            if said is None or not key.into:
                continue
            if key.into in found:
                self.wrong(name.place, joined(where, name.value), "the same is said by another key")
            found[key.into] = said
        return found

    def repeated(self, name: Text, key: str, seen: dict[str, Place], where: str) -> bool:
        """Whether the key was there before; then that is a mistake."""
        before = seen.setdefault(key, name.place)
        if before == name.place:
            return False
        self.wrong(name.place, joined(where, key), f"is there already, in line {before.line}")
        return True

    def unknown(self, name: Text, known: Iterable[str], where: str) -> None:
        """A section inside another one was indented too far."""
        shown = "a variable" if name.filled else repr(name.value[:60])
        if self.is_section(name.value):
            first = where.partition(".")[0].partition("[")[0]
            hint = (
                f"; it is a section of its own: write it below {first!r}, with the same indentation"
            )
        else:
            hint = nearest(name.value, known)
        self.wrong(name.place, where, f"unknown key {shown}{hint}")

    def is_section(self, name: str) -> bool:
        return name in self._sections

    def one(self, key: Key, value: Value, where: str) -> Any:
        """What the key's value is; None where it is nothing, or a mistake that was noted."""
        read = self.many if key.kind.many else self.text
        found = read(key.kind, value, where)
        if found is None or (found is False and (key.warning or key.refused)):
            return None
        if key.refused:
            self.wrong(value.place, where, key.refused)
            return None
        if key.warning:
            self.warn(value.place, where, key.warning)
        return found

    def many(self, kind: Kind, value: Value, where: str) -> list[Any] | None:
        items = value.items if isinstance(value, Items) else (value,)
        if not items:
            self.wrong(value.place, where, "is an empty list")
            return None
        return [found for item in items if (found := self.text(kind, item, where)) is not None]

    def text(self, kind: Kind, value: Value, where: str) -> Any:
        if not isinstance(value, Text):
            what = "a map" if isinstance(value, Table) else "a list"
            self.wrong(value.place, where, f"expected {kind.expected}, found {what}")
            return None
        if value.broken:
            return None
        if value.empty or not value.value.strip():
            self.wrong(value.place, where, f"is empty; expected {kind.expected}")
            return None
        if value.plain and value.value in TRUTH and not kind.truth:
            self.wrong(value.place, where, f"expected {kind.expected}, found {value.value}")
            return None
        return self._parsed(kind, value, where)

    def _parsed(self, kind: Kind, value: Text, where: str) -> Any:
        try:
            return kind.parse(value.value)
        except PolicyProblem as problem:
            said, place = _policy_problem(problem, value)
        except (ValueError, ConfigError, DecodeError) as error:
            said, place = str(error), value.place
        if value.filled:
            said = f"what its variables give is not {kind.expected}"
        self.wrong(place, where, said)
        return None


def _policy_problem(problem: PolicyProblem, value: Text) -> tuple[str, Place]:
    """Where the text is in the file as it is, the place in it."""
    before = len(value.value) - len(value.value.lstrip())
    place = value.place
    if value.shift is not None and "\n" not in value.value:
        place = Place(place.line, place.column + value.shift + before + problem.at)
    return str(problem), place


def joined(*parts: str) -> str:
    """The name of a key in words of the file."""
    return ".".join(part for part in parts if part)
