"""Why a policy says no."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.policy import expr
from edge.policy.evaluate import Environment
from edge.policy.explain import LONGEST, explain

ENVIRONMENT: Environment = {
    "subject.role": "plc",
    "subject.level": "7",
    "subject.has_credential": True,
    "subject.loop": expr.Name("subject.loop"),
}


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        ('(= subject.role "rtu")', '(= subject.role "rtu") says no; subject.role is "plc"'),
        ("has_card", '(= subject.has_card "true"): unbound identifier: subject.has_card'),
        (
            'role=plc and not (level=7)',
            '(not (= subject.level "7")) says no; subject.level is "7"',
        ),
        (
            '(and (exists? subject.role) (and (= subject.role "plc") (= subject.level "8")))',
            '(= subject.level "8") says no; subject.level is "7"',
        ),
        (
            '(if (= subject.role "plc") (= subject.level "8") true)',
            '(= subject.level "8") says no; subject.level is "7"',
        ),
        ('(if (= subject.role "rtu") true false)', "false says no"),
        ('(if (= subject.none "x") true false)',
         '(if (= subject.none "x") true false): unbound identifier: subject.none'),
        (
            '(or (= subject.role "rtu") (= subject.level "8"))',
            '(or (= subject.role "rtu") (= subject.level "8")) says no; '
            'subject.role is "plc", subject.level is "7"',
        ),
        ('(member? subject.role ["rtu" "dcs"])',
         '(member? subject.role ["rtu" "dcs"]) says no; subject.role is "plc"'),
        ("(if true)", "(if true): malformed expression: 'if' requires three arguments"),
        ("(and (= 1 1) \"x\")", '"x" says no'),
    ],
)  # fmt: skip
def test_the_clause(policy: str, reason: str) -> None:
    assert explain(expr.parse(policy), ENVIRONMENT) == reason


def test_what_allows_has_no_clause_that_denies() -> None:
    assert explain(expr.parse("(and true (= 1 1))"), ENVIRONMENT).startswith("(and true (= 1 1))")


def test_it_is_short() -> None:
    policy = expr.parse("(or " + " ".join(f'(= subject.level "{n}x")' for n in range(99)) + ")")
    assert len(explain(policy, ENVIRONMENT)) == LONGEST


@given(st.text(max_size=60))
def test_any_name(name: str) -> None:
    assert explain(expr.Name(name), ENVIRONMENT)
