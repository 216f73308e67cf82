"""Does a policy allow? Only if its value is `true`; an error, or any other value, denies (05 §3.4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import NamedTuple

from edge.errors import TrustError
from edge.policy.values import MAX_DEPTH, Call, Expr, Name, Seq, same_type, text

Environment = Mapping[str, Expr]


class Decision(NamedTuple):
    """Whether it is allowed, and if not, why."""

    allowed: bool
    reason: str


def evaluate(expression: Expr, environment: Environment) -> bool:
    return decide(expression, environment).allowed


def decide(expression: Expr, environment: Environment) -> Decision:
    """Never raises for what the expression or the environment contains."""
    try:
        found = value(expression, environment)
    except TrustError as error:
        return Decision(False, str(error))
    if found is True:
        return Decision(True, "")
    return Decision(False, f"the value of the policy is {text(found)}")


def value(expression: Expr, environment: Environment) -> Expr:
    """What an expression comes to. Raises TrustError with the text of the reference."""
    return _Evaluation(environment).value(expression, 0)


class _Evaluation:
    def __init__(self, environment: Environment) -> None:
        self._environment = environment

    def value(self, expression: Expr, depth: int) -> Expr:
        """The depth is bounded here too: a value of the environment may be an expression."""
        if depth > MAX_DEPTH + 2:  # a name below the deepest list
            raise TrustError(f"nested deeper than {MAX_DEPTH}")
        if isinstance(expression, Name):
            if expression.text not in self._environment:
                raise TrustError(f"unbound identifier: {expression.text}")
            return self.value(self._environment[expression.text], depth + 1)
        if isinstance(expression, Seq):
            return Seq(self._all(expression.items, depth + 1))
        if not isinstance(expression, Call) or not expression.items:
            return expression
        operator, *arguments = expression.items
        if not isinstance(operator, Name):
            raise TrustError(f"invalid type of expression {text(operator)}: expected (op ...)")
        known = _OPERATORS.get(operator.text)
        if known is None:
            raise TrustError(f"unknown operator: {operator.text}")
        return known(self, operator.text, tuple(arguments), depth + 1)

    def _all(self, items: tuple[Expr, ...], depth: int) -> tuple[Expr, ...]:
        return tuple([self.value(item, depth) for item in items])

    # The operators: name, arguments not evaluated, depth.

    def _and_or(self, name: str, arguments: tuple[Expr, ...], depth: int) -> Expr:
        """Lazy; the last one is returned as it is."""
        decisive = name == "or"
        for argument in arguments[:-1]:
            found = self.value(argument, depth)
            if _boolean(found, f"'{name}' expects boolean arguments") is decisive:
                return decisive
        return self.value(arguments[-1], depth) if arguments else not decisive

    def _not(self, name: str, arguments: tuple[Expr, ...], depth: int) -> Expr:
        _arity(name, arguments, 1, "one argument")
        return not _boolean(self.value(arguments[0], depth), f"'{name}' expects boolean arguments")

    def _if(self, name: str, arguments: tuple[Expr, ...], depth: int) -> Expr:
        _arity(name, arguments, 3, "three arguments")
        test = _boolean(
            self.value(arguments[0], depth), f"'{name}' expects test to evaluate to bool"
        )
        return self.value(arguments[1 if test else 2], depth)

    def _compare(self, name: str, arguments: tuple[Expr, ...], depth: int) -> Expr:
        if len(arguments) < 2:
            raise TrustError(f"malformed expression: '{name}' requires at least two arguments")
        wanted = {"=": 0, "<": -1, ">": 1}[name]
        return _chain(self._all(arguments, depth), wanted)

    def _unequal(self, _name: str, arguments: tuple[Expr, ...], depth: int) -> Expr:
        return not _chain(self._all(arguments, depth), 0)

    def _member(self, name: str, arguments: tuple[Expr, ...], depth: int) -> Expr:
        _arity(name, arguments, 2, "two arguments")
        wanted, among = self._all(arguments, depth)
        if not isinstance(among, Seq):
            raise _mistyped(among, f"'{name}' expects sequence as second argument")
        return any(_order(wanted, item) == 0 for item in among.items)

    def _exists(self, name: str, arguments: tuple[Expr, ...], _depth: int) -> Expr:
        for argument in arguments:
            if not isinstance(argument, Name):
                raise _mistyped(argument, f"'{name}' expects identifiers as arguments")
            if argument.text not in self._environment:
                return False
        return True


_Operator = Callable[[_Evaluation, str, tuple[Expr, ...], int], Expr]
_OPERATORS: dict[str, _Operator] = {
    "and": _Evaluation._and_or,
    "or": _Evaluation._and_or,
    "not": _Evaluation._not,
    "if": _Evaluation._if,
    "=": _Evaluation._compare,
    "<": _Evaluation._compare,
    ">": _Evaluation._compare,
    "!=": _Evaluation._unequal,
    "member?": _Evaluation._member,
    "exists?": _Evaluation._exists,
}


def _mistyped(found: Expr, expected: str) -> TrustError:
    return TrustError(f"invalid type of expression {text(found)}: {expected}")


def _boolean(found: Expr, expected: str) -> bool:
    if not isinstance(found, bool):
        raise _mistyped(found, expected)
    return found


def _arity(name: str, arguments: tuple[Expr, ...], count: int, said: str) -> None:
    if len(arguments) != count:
        raise TrustError(f"malformed expression: '{name}' requires {said}")


def _chain(values: tuple[Expr, ...], wanted: int) -> bool:
    """Whether every neighbour compares so; it stops at the first that does not."""
    return all(_order(one, other) == wanted for one, other in pairwise(values))


def _order(one: Expr, other: Expr) -> int | None:
    """-1, 0, 1; None where there is no order (NaN). Raises TrustError for different types."""
    if not same_type(one, other):
        raise TrustError(f"{text(one)} and {text(other)} are not of the same type")
    if isinstance(one, Seq | Call) and isinstance(other, Seq | Call):
        return _order_items(one.items, other.items)
    return -1 if one < other else 1 if one > other else 0 if one == other else None  # type: ignore[operator]


def _order_items(one: tuple[Expr, ...], other: tuple[Expr, ...]) -> int | None:
    """Shorter is less; of the same length, the first difference decides."""
    if len(one) != len(other):
        return -1 if len(one) < len(other) else 1
    for mine, his in zip(one, other, strict=True):
        order = _order(mine, his)
        if order != 0:
            return order
    return 0
