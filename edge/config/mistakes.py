"""What is wrong with a configuration: everything at once, each mistake with its place."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import NamedTuple

from edge.errors import ConfigError

SHOWN = 40
"""Mistakes that an error lists; of more, only the number is said."""


class Place(NamedTuple):
    """In a text; both counted from 1."""

    line: int
    column: int


class Mistake(NamedTuple):
    """`key` is where it is, in words of the file (`tcp-outlets.modbus.to`), or empty."""

    place: Place
    key: str
    text: str

    def __str__(self) -> str:
        return f"{self.key}: {self.text}" if self.key else self.text


class Mistakes(ConfigError):
    """All that is wrong with one file."""

    def __init__(self, source: str, found: Iterable[Mistake]) -> None:
        self.source = source
        self.found = tuple(sorted(found))
        lines = [at(source, mistake.place, str(mistake)) for mistake in self.found]
        super().__init__(lines[0] if len(lines) == 1 else _listed(source, lines))


def at(source: str, place: Place, text: str) -> str:
    """`file:line:column: text`, as compilers write it and editors read it."""
    return f"{source}:{place.line}:{place.column}: {text}"


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean X?`, or nothing."""
    close = get_close_matches(word.replace("_", "-"), list(known), 1, 0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def _listed(source: str, lines: list[str]) -> str:
    more = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    parts = [f"{source} has {len(lines)} mistakes:", *lines[:SHOWN], *more]
    return "\n  ".join(parts)
