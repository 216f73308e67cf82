"""Evaluation beyond the vectors: order, arity, sequences; nothing crashes or allows by accident."""

import math
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import TrustError
from edge.policy import evaluate, expr
from edge.policy.expr import Call, Name, Seq, call
from tests.policy.test_expr import ANY

ENVIRONMENT: evaluate.Environment = {
    "a": "1",
    "yes": True,
    "list": Seq((1, 2)),
    "other": Name("a"),
    "computed": call("=", Name("a"), "1"),
    "loop": Name("loop"),
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(and true)", True),
        ("(= (or) false)", True),
        ("(or false yes)", True),
        ('(or true "not evaluated" (unknown))', True),
        ("(if false (unknown) yes)", True),
        ("(= other a)", True),
        ("(and computed)", True),
        ("(< false true)", True),
        ("(> true false)", True),
        ("(< [1 2] [1 3])", True),
        ("(< [9] [1 3])", True),
        ("(> [1 1 1] [1 3])", True),
        ("(= [1 2] list)", True),
        ("(= () ())", True),
        ("(= nan nan)", False),
        ("(< nan 1.0)", False),
        ("(= [nan] [nan])", False),
        ("(> 3 2 1)", True),
        ("(= 1 2 3)", False),
        ("(!= 1 1)", False),
        ("(!= 1 2)", True),
        ("(member? 3 list)", False),
        ("(member? 2 list)", True),
        ("(exists? a yes)", True),
        ("(exists? a nothing)", False),
    ],
)
def test_value(text: str, expected: bool) -> None:
    assert evaluate.value(expr.parse(text), ENVIRONMENT) is expected
    assert evaluate.evaluate(expr.parse(text), ENVIRONMENT) is expected


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (call("not", 1), "invalid type of expression 1: 'not' expects boolean arguments"),
        (call("not"), "malformed expression: 'not' requires one argument"),
        (
            call("if", 1, 2, 3),
            "invalid type of expression 1: 'if' expects test to evaluate to bool",
        ),
        (call("if"), "malformed expression: 'if' requires three arguments"),
        (call("=", 1), "malformed expression: '=' requires at least two arguments"),
        (call("<"), "malformed expression: '<' requires at least two arguments"),
        (call("member?", 1), "malformed expression: 'member?' requires two arguments"),
        (call("or", 1, True), "invalid type of expression 1: 'or' expects boolean arguments"),
        (call("=", 1, True), "1 and true are not of the same type"),
        (call("=", Seq((1,)), Seq((1.0,))), "1 and 1.0 are not of the same type"),
        (call("member?", "1", Name("list")), '"1" and 1 are not of the same type'),
        (call("contains", 1), "unknown operator: contains"),
        (Call((1, 2)), "invalid type of expression 1: expected (op ...)"),
        (Call(()), "the value of the policy is ()"),
        (Name("a"), 'the value of the policy is "1"'),
        (1, "the value of the policy is 1"),
        (math.inf, "the value of the policy is +inf"),
        (Name("loop"), "nested deeper than 128"),
    ],
)
def test_denied_and_why(value: expr.Expr, reason: str) -> None:
    assert evaluate.decide(value, ENVIRONMENT) == (False, reason)


def test_the_deepest_expression_that_parses_is_evaluated() -> None:
    short = expr.parse(" and ".join(["x"] * 127))
    assert evaluate.evaluate(short, {"subject.x": "true"})
    full = expr.parse("(and " * 128 + "true" + ")" * 128)
    assert evaluate.evaluate(full, {})


@given(ANY, st.dictionaries(st.text(max_size=4), ANY, max_size=4))
def test_anything_is_decided(value: expr.Expr, environment: dict[str, expr.Expr]) -> None:
    decision = evaluate.decide(value, environment)
    assert decision.allowed is evaluate.evaluate(value, environment)
    allowed = False
    with suppress(TrustError):
        allowed = evaluate.value(value, environment) is True
    assert decision.allowed is allowed
