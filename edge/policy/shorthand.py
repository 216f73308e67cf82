"""The boolean shorthand: `role=plc and not revoked` (05 §3.2).

It is a PEG: alternatives are tried in order and the first that fits is kept. So `not` comes before a
name, and keywords need no space after them: `notary` is `not ary`. White space belongs to operators and
parentheses only.
"""

from __future__ import annotations

import re

from edge.policy.values import IDENTIFIER, MAX_DEPTH, Expr, Name, call, is_subject

_OR, _AND, _NOT = (re.compile(rf"[ \t\r\n]*{word}[ \t\r\n]*") for word in ("or", "and", "not"))
_OPEN, _CLOSE = re.compile(r"[ \t\r\n]*\([ \t\r\n]*"), re.compile(r"[ \t\r\n]*\)[ \t\r\n]*")
_NAME = re.compile(r"[A-Za-z_\-][A-Za-z0-9._\-]*")
_VALUE = re.compile(r'="([^"]+)"|=([A-Za-z0-9._\-]+)')


class TooDeep(Exception):
    """Nested beyond the limit; the position is the argument."""


def attribute(name: str, value: str) -> Expr:
    """What `name=value` means."""
    return call("=", Name(f"subject.{name}"), value)


def read(source: str) -> tuple[Expr | None, int]:
    """The expression and how far it reaches; None where nothing fits at all. The shorthand applies
    only when it reaches the end. Raises TooDeep."""
    reader = _Reader(source)
    found = reader.either(0)
    return (None, reader.furthest) if found is None else (found[0], reader.at)


class _Reader:
    def __init__(self, source: str) -> None:
        self._source = source
        self.at = 0
        self.furthest = 0

    def _take(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        match = pattern.match(self._source, self.at)
        if match:
            self.at = match.end()
            self.furthest = max(self.furthest, self.at)
        return match

    # Each of these returns the expression and its depth, or None with the place unchanged.

    def either(self, depth: int) -> tuple[Expr, int] | None:
        return self._chain(depth, _OR, "or")

    def _chain(self, depth: int, operator: re.Pattern[str], name: str) -> tuple[Expr, int] | None:
        """Operands with one operator between them, to the left."""
        left = self._operand(depth, name)
        while left is not None:
            before = self.at
            right = self._operand(depth, name) if self._take(operator) else None
            if right is None:
                self.at = before
                break
            left = self._joined(name, left, right)
        return left

    def _operand(self, depth: int, name: str) -> tuple[Expr, int] | None:
        return self._chain(depth, _AND, "and") if name == "or" else self._single(depth)

    def _joined(self, name: str, *parts: tuple[Expr, int]) -> tuple[Expr, int]:
        depth = 1 + max(depth for _, depth in parts)
        if depth > MAX_DEPTH:
            raise TooDeep(self.at)
        return call(name, *(part for part, _ in parts)), depth

    def _single(self, depth: int) -> tuple[Expr, int] | None:
        if depth > MAX_DEPTH:
            raise TooDeep(self.at)
        before = self.at
        if self._take(_NOT):
            found = self._single(depth + 1)
            if found:
                return self._joined("not", found)
            self.at = before
        if self._take(_OPEN):
            inside = self.either(depth + 1)
            if inside and self._take(_CLOSE):
                return inside
            self.at = before
        return self._name()

    def _name(self) -> tuple[Expr, int] | None:
        name = self._take(_NAME)
        if name is None:
            return None
        if IDENTIFIER.fullmatch(name[0]):
            return is_subject(name[0]), 1
        value = self._take(_VALUE)
        return attribute(name[0], "true" if value is None else value[1] or value[2]), 1
