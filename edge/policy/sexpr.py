"""The full form: `(and (= subject.role "plc") subject.ok)`, in the tokens of WebAssembly's text format
(05 §3.2)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple, Never

from edge.policy.values import (
    MAX_DEPTH,
    MAX_INT,
    MIN_INT,
    NAME,
    OPERATORS,
    Call,
    Expr,
    Name,
    Seq,
    same_type,
    text,
)


class SyntaxProblem(Exception):
    """What is wrong, and where."""

    def __init__(self, problem: str, at: int) -> None:
        super().__init__(problem)
        self.at = at


class Token(NamedTuple):
    """A parenthesis or bracket in `mark`, or a value."""

    at: int
    mark: str
    value: Expr


_SPACE = re.compile(r"[ \t\r\n]+|;;[^\n]*")
_PIECE = re.compile(
    r'(?P<run>[0-9A-Za-z!#$%&\'*+\-./:<=>?@\\^_`|~]+)|(?P<string>"(?:[^"\\]|\\.)*")', re.DOTALL
)
_FORBIDDEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u202a-\u202e\u2066-\u2069\u206c]")
_INT = re.compile(r"[+-]?(?:0x[0-9A-Fa-f]+(?:_[0-9A-Fa-f]+)*|[0-9]+(?:_[0-9]+)*)")
_FLOAT = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*(?:[eE][+-]?[0-9]+)?|[eE][+-]?[0-9]+)|inf|nan)")
_ESCAPE = re.compile(r'\\(?:([ntr\'"\\])|u\{([0-9A-Fa-f]{1,8})\}|([0-9A-Fa-f]{2}))|[^\\]+')
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "'": "'", '"': '"', "\\": "\\"}


def read(source: str) -> Expr:
    """Raises SyntaxProblem."""
    value = _tree(source)
    if value is None:
        raise SyntaxProblem("empty expression value", len(source))
    _check_operation(value)
    return value


def _tree(source: str) -> Expr | None:
    """The value of the text. A superfluous `)` closes a list that began with the text."""
    opened: list[Token] = []
    stack: list[list[Expr]] = [[]]
    wrapped = 0
    for token in _tokens(source):
        if not token.mark:
            stack[-1].append(token.value)
            continue
        if token.mark in "([":
            opened.append(token)
            stack.append([])
        elif opened:
            inside = tuple(stack.pop())
            stack[-1].append(_close(opened.pop(), token, inside))
        elif token.mark == "]":
            raise SyntaxProblem("']' without '['", token.at)
        else:
            wrapped += 1
            stack[-1] = [Call(tuple(stack[-1]))]
        if len(opened) + wrapped > MAX_DEPTH:
            raise SyntaxProblem(f"nested deeper than {MAX_DEPTH}", token.at)
    if opened:
        raise SyntaxProblem(f"unclosed '{opened[-1].mark}'", opened[-1].at)
    top = stack[0]
    return (top[0] if len(top) == 1 else Call(tuple(top))) if top else None


def _close(begin: Token, end: Token, inside: tuple[Expr, ...]) -> Expr:
    if begin.mark == "(":
        if end.mark != ")":
            raise SyntaxProblem("'(' without matching ')'", begin.at)
        return Call(inside)
    if end.mark != "]":
        raise SyntaxProblem("'[' without matching ']'", begin.at)
    found = Seq(inside)
    problem = mixed(found)
    if problem:
        raise SyntaxProblem(problem, begin.at)
    return found


def mixed(value: Seq) -> str:
    """What is wrong with a sequence whose elements differ in type, else nothing."""
    for one, other in pairwise(value.items):
        if not same_type(one, other):
            return f"{text(one)} and {text(other)} are not of the same type"
    return ""


def _check_operation(value: Expr) -> None:
    first = value
    while isinstance(first, Call) and first.items:
        first = first.items[0]
    if not (isinstance(first, Name) and first.text in OPERATORS):
        raise SyntaxProblem(
            f"The first identifier of the expression: `{text(first)}` must be an operation. "
            f"The available operations are: {', '.join(OPERATORS)}",
            0,
        )


def _tokens(source: str) -> Iterator[Token]:
    forbidden = _FORBIDDEN.search(source)
    if forbidden:
        raise SyntaxProblem(f"a character that is not allowed: {forbidden[0]!a}", forbidden.start())
    at = 0
    while at < len(source):
        space = _SPACE.match(source, at)
        if space:
            at = space.end()
        elif source.startswith("(;", at):
            at = _after_comment(source, at)
        elif source[at] in "()[]":
            yield Token(at, source[at], "")
            at += 1
        else:
            end = _run_end(source, at)
            yield Token(at, "", _value(source, at, end))
            at = end


def _after_comment(source: str, start: int) -> int:
    depth = 0
    for mark in re.compile(r"\(;|;\)").finditer(source, start):
        depth += 1 if mark[0] == "(;" else -1
        if not depth:
            return mark.end()
    raise SyntaxProblem("a comment without end", start)


def _run_end(source: str, start: int) -> int:
    """Where the maximal run of name characters and strings ends."""
    at = start
    while match := _PIECE.match(source, at):
        at = match.end()
    if at < len(source) and source[at] == '"':
        raise SyntaxProblem("a string without end", at)
    return max(at, start + 1)


def _value(source: str, start: int, end: int) -> Expr:
    word = source[start:end]
    match = _PIECE.fullmatch(word)
    if match and match["string"]:
        return _string(word, start)
    if match:
        return _word(word, start)
    if word.startswith('$"') and _PIECE.fullmatch(word, 1):
        return Name(_string(word[1:], start + 1))
    return _bad(word, start)


def _bad(word: str, at: int) -> Never:
    raise SyntaxProblem(f"invalid reserved token '{word}'", at)


def _word(word: str, at: int) -> Expr:
    if word in ("true", "false"):
        return word == "true"
    if _INT.fullmatch(word):
        number = int(word, 16 if "x" in word else 10) if len(word) < 100 else MAX_INT + 1
        if not MIN_INT <= number <= MAX_INT:
            raise SyntaxProblem("an integer of more than 64 bits", at)
        return number
    if _FLOAT.fullmatch(word):
        return float(word)
    if word.startswith("$") and len(word) > 1:
        return Name(word[1:])
    name = word.removeprefix("@")
    if word != "$" and NAME.fullmatch(name):
        return Name(name)
    return _bad(word, at)


def _string(literal: str, at: int) -> str:
    """The text between the quotes; `\\hh` is a byte, and the bytes must be UTF-8."""
    if "\n" in literal or "\r" in literal or "\t" in literal:
        raise SyntaxProblem("a control character in a string", at)
    found = bytearray()
    place, end = 1, len(literal) - 1
    while place < end:
        match = _ESCAPE.match(literal, place, end)
        if match is None:
            raise SyntaxProblem("an escape that is not known", at + place)
        plain, scalar, byte = match.groups()
        try:
            if byte:
                found.append(int(byte, 16))
            elif scalar:
                found += chr(int(scalar, 16)).encode()
            else:
                found += (_ESCAPED[plain] if plain else match[0]).encode()
        except (ValueError, OverflowError):
            raise SyntaxProblem("a character that does not exist", at + place) from None
        place = match.end()
    try:
        return found.decode()
    except UnicodeDecodeError:
        raise SyntaxProblem("a string that is not UTF-8", at) from None
