"""Why a policy says no: the clause that decided, and what the names in it are bound to."""

from __future__ import annotations

from edge.policy.evaluate import Environment, decide
from edge.policy.values import Call, Expr, Name, Seq, text

LONGEST = 300
"""Characters of an explanation: it goes into a log."""


def explain(expression: Expr, environment: Environment) -> str:
    """One line, for a policy that does not allow. Only what the clause speaks of is shown."""
    clause = _decisive(expression, environment)
    reason = decide(clause, environment).reason
    bound = ", ".join(
        f"{name} is {text(environment[name])}" for name in _names(clause) if name in environment
    )
    said = (
        f"{text(clause)} says no" if reason.startswith("the value") else f"{text(clause)}: {reason}"
    )
    return (f"{said}; {bound}" if bound else said)[:LONGEST]


def _decisive(expression: Expr, environment: Environment) -> Expr:
    """The smallest part that makes the whole deny: the first `and` clause that is not true, the branch
    that `if` took. Of `or` all clauses denied, and the whole is shown."""
    if not isinstance(expression, Call) or not expression.items:
        return expression
    operator, *arguments = expression.items
    if operator == Name("and"):
        for argument in arguments:
            if not decide(argument, environment).allowed:
                return _decisive(argument, environment)
    if operator == Name("if") and len(arguments) == 3:
        found = decide(arguments[0], environment)
        if found.allowed or found.reason == "the value of the policy is false":
            return _decisive(arguments[1 if found.allowed else 2], environment)
    return expression


def _names(expression: Expr) -> list[str]:
    """The names in it, each once, but for the operators."""
    if isinstance(expression, Name):
        return [expression.text]
    items: tuple[Expr, ...] = ()
    if isinstance(expression, Call):
        items = expression.items[1:]
    elif isinstance(expression, Seq):
        items = expression.items
    return list(dict.fromkeys(name for item in items for name in _names(item)))
