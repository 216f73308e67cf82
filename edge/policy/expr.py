"""Policy expressions: text in both syntaxes, and the CBOR forms (05 §3.2, §3.3, §3.8; 01 §5.6)."""

from __future__ import annotations

from edge.errors import ConfigError, DecodeError
from edge.policy import sexpr, shorthand
from edge.policy.values import (
    MAX_DEPTH,
    MAX_INT,
    MAX_TEXT,
    MIN_INT,
    Call,
    Expr,
    Name,
    Seq,
    call,
    is_subject,
    policy_for_identifier,
    text,
)
from edge.wire import cbor

__all__ = [
    "Call", "Expr", "Name", "Seq", "call", "decode", "decode_policy", "encode", "encode_policy",
    "from_structure", "parse", "policy_for_identifier", "policy_from_structure", "policy_structure",
    "structure", "text",
]  # fmt: skip


class PolicyProblem(ConfigError):
    """A text is no policy; `at` is the character where, counted from 0."""

    def __init__(self, message: str, at: int, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.at = at


def parse(source: str) -> Expr:
    """The expression of a text: shorthand if the whole text is that, else the full form. Raises
    PolicyProblem saying what is wrong and at which character, counted from 1."""
    if len(source) > MAX_TEXT:
        raise PolicyProblem(f"a policy has at most {MAX_TEXT} characters", MAX_TEXT)
    try:
        short, end = shorthand.read(source)
    except shorthand.TooDeep as problem:
        raise PolicyProblem(
            f"policy: nested deeper than {MAX_DEPTH} at character {int(problem.args[0]) + 1}",
            int(problem.args[0]),
            hint="the full form takes any number of arguments: (or (= …) (= …) …)",
        ) from None
    if short is not None and end == len(source):
        return short
    try:
        return sexpr.read(source)
    except sexpr.SyntaxProblem as problem:
        raise PolicyProblem(
            f"policy {source[:200]!r}: {problem} (at character {problem.at + 1}); as a short form "
            f"(role=plc and not revoked) it is wrong from character {end + 1}",
            problem.at if source.lstrip().startswith("(") else end,
            hint='for example (= subject.role "plc"), role=plc, or an identifier',
        ) from None


# -- CBOR. `structure` and `from_structure` are for an expression inside another message.


def structure(value: Expr) -> list[object]:
    """The form `[type, [value]]`, for `cbor.encode`."""
    if isinstance(value, bool):
        return [4, [value]]
    if isinstance(value, str):
        return [1, [value]]
    if isinstance(value, int):
        return [2, [value]]
    if isinstance(value, float):
        return [3, [value]]
    if isinstance(value, Name):
        return [5, [value.text]]
    return [6 if isinstance(value, Seq) else 7, [[structure(item) for item in value.items]]]


def from_structure(value: cbor.Value) -> Expr:
    """Raises DecodeError."""
    kind, fields = cbor.variant(value)
    if not fields:
        raise DecodeError("a policy expression without a value")
    content = fields[0]
    if kind == 1:
        return cbor.as_text(content)
    if kind == 2:
        return cbor.as_int(content, MAX_INT, MIN_INT)
    if kind == 3:
        if not isinstance(content, float):
            raise DecodeError("a float was expected")
        return content
    if kind == 4:
        return cbor.as_bool(content)
    if kind == 5:
        return Name(cbor.as_text(content))
    if kind not in (6, 7):
        raise DecodeError(f"a policy expression of an unknown type: {kind}")
    items = tuple(map(from_structure, cbor.as_list(content)))
    if kind == 7:
        return Call(items)
    found = Seq(items)
    problem = sexpr.mixed(found)
    if problem:
        raise DecodeError(problem)
    return found


def encode(value: Expr) -> bytes:
    return cbor.encode(structure(value))


def decode(data: cbor.Buffer) -> Expr:
    """Raises DecodeError."""
    return from_structure(cbor.decode(data))


def policy_structure(value: Expr) -> list[object]:
    """A `policy-expression` in the full form, which every release reads alike."""
    return [0, [structure(value)]]


def policy_from_structure(value: cbor.Value) -> Expr:
    """A `policy-expression` in either form; the shorthand becomes what it means."""
    kind, fields = cbor.variant(value)
    if not fields or kind > 1:
        raise DecodeError("not a policy expression")
    return _boolean(fields[0]) if kind else from_structure(fields[0])


def encode_policy(value: Expr) -> bytes:
    return cbor.encode(policy_structure(value))


def decode_policy(data: cbor.Buffer) -> Expr:
    """Raises DecodeError."""
    return policy_from_structure(cbor.decode(data))


def _boolean(value: cbor.Value) -> Expr:
    """A boolean expression in either numbering, old and new: the number of fields and their types tell
    which. The empty one becomes the empty list, which is not a boolean and so denies."""
    kind, fields = cbor.variant(value)
    texts = [field for field in fields if isinstance(field, str)]
    shape = (kind, len(fields), len(texts))
    if shape == (0, 1, 1):
        return shorthand.attribute(texts[0], "true")
    if shape == (1, 2, 2):
        return shorthand.attribute(texts[0], texts[1])
    if shape == (2, 1, 1):
        return is_subject(texts[0])
    if shape in ((1, 2, 0), (3, 2, 0)):
        return call("or", *map(_boolean, fields))
    if shape in ((2, 2, 0), (4, 2, 0)):
        return call("and", *map(_boolean, fields))
    if shape in ((3, 1, 0), (5, 1, 0)):
        return call("not", _boolean(fields[0]))
    if shape in ((4, 0, 0), (6, 0, 0)):
        return Call(())
    raise DecodeError("not a boolean expression")
