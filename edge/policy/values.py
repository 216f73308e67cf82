"""What a policy expression is made of, and its text (05 §3.2, §3.3).

A string, an integer of 64 bits, a float or a boolean is the Python value of that type.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TypeAlias

from edge.errors import ConfigError

TYPES = (
    "tcp-inlet", "tcp-outlet", "echoer", "kafka-consumer", "kafka-producer", "relay", "lessor",
)  # fmt: skip
"""Of resources that a policy can be about."""
MAX_DEPTH = 128
"""Of lists in an expression. A chain of n `or` in the shorthand is n deep, `(or …)` is not."""
MAX_TEXT = 64 * 1024
MIN_INT, MAX_INT = -(1 << 63), (1 << 63) - 1

OPERATORS = ("and", "or", "not", "if", "<", ">", "=", "!=", "member?", "exists?")


@dataclass(frozen=True, slots=True)
class Name:
    """An identifier, to be looked up in the environment; or the operator in front of a list."""

    text: str


@dataclass(frozen=True, slots=True)
class Seq:
    """`[…]`: elements of one type."""

    items: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Call:
    """`(operator argument…)`: what the documents call a list."""

    items: tuple[Expr, ...]


Expr: TypeAlias = "str | int | float | bool | Name | Seq | Call"

# A plain name, and the words that read as something else.
NAME = re.compile(r"[A-Za-z!$%&*/<=>?~_^][A-Za-z0-9!$%&*/<=>?~_^.+\-:@]*")
IDENTIFIER = re.compile(r"I[0-9A-Fa-f]{64}")
_WORDS = ("true", "false", "inf", "nan")
_RUN = re.compile(r"[0-9A-Za-z!#$%&'*+\-./:<=>?@\\^_`|~]+")
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def call(operator: str, *arguments: Expr) -> Call:
    return Call((Name(operator), *arguments))


def same_type(one: Expr, other: Expr) -> bool:
    """Whether two values may be compared: int, float and bool are different types."""
    return type(one) is type(other)


def is_subject(identifier: str) -> Call:
    """The expression for one identity; digits of either case, since there is one way to write it."""
    return call("=", Name("subject.identifier"), "I" + identifier[1:].lower())


def policy_for_identifier(identifier: str) -> Call:
    """The policy that lets in one identity. Raises ConfigError if the text is not an identifier."""
    found = identifier.strip()
    if not IDENTIFIER.fullmatch(found):
        raise ConfigError(
            f"not an identifier: {identifier[:80]!r}", hint="it is I and 64 hexadecimal digits"
        )
    return is_subject(found)


def text(value: Expr) -> str:
    """The full form, the one that is stored and shown; `parse` gives the same expression back."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return _float(value)
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, Name):
        return _name(value.text)
    inside = " ".join(map(text, value.items))
    return f"[{inside}]" if isinstance(value, Seq) else f"({inside})"


def quoted(value: str) -> str:
    """A string between double quotes, what cannot be printed escaped."""
    return '"' + "".join(map(_character, value)) + '"'


def _character(value: str) -> str:
    escape = _ESCAPES.get(value)
    if escape is not None:
        return escape
    return value if value.isprintable() else f"\\u{{{ord(value):x}}}"


def _float(value: float) -> str:
    if math.isnan(value):
        return "nan"
    if math.isinf(value):
        return "+inf" if value > 0 else "-inf"
    return repr(value).replace("e+", "e")


def _name(value: str) -> str:
    """A name that could be read as something else gets the dollar sign, and quotes if need be."""
    if NAME.fullmatch(value) and not value.startswith("$") and value not in _WORDS:
        return value
    return f"${value}" if _RUN.fullmatch(value) else f"${quoted(value)}"
