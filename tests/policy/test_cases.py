"""Every case of the vectors: what an expression is read as, its stored form, value and decision."""

from typing import Any

import pytest

from edge.errors import ConfigError, TrustError
from edge.policy import evaluate, expr, shorthand
from tests.load import vectors

ABAC = vectors("abac-cases")
CASES = [
    pytest.param(case["expression"], case[who], ABAC["environments"][who], id=f"{n}-{who}")
    for n, case in enumerate(ABAC["cases"])
    for who in ("member", "no_credential")
]


@pytest.mark.parametrize(("text", "expected", "environment"), CASES)
def test_case(text: str, expected: dict[str, Any], environment: dict[str, Any]) -> None:
    if expected["parsed_as"] == "error":
        with pytest.raises(ConfigError) as caught:
            expr.parse(text)
        detail = expected["detail"].removeprefix("first identifier ")
        assert detail in str(caught.value)
        assert "at character" in str(caught.value)
        return
    parsed = expr.parse(text)
    short, end = shorthand.read(text)
    is_short = short is not None and end == len(text)
    assert ("boolean" if is_short else "full") == expected["parsed_as"]
    assert expr.text(parsed) == expected["stored"]
    assert expr.decode(expr.encode(parsed)) == parsed
    decision = evaluate.decide(parsed, environment)
    assert decision.allowed == expected["allowed"] == evaluate.evaluate(parsed, environment)
    assert bool(decision.reason) != decision.allowed
    if "error" in expected:
        assert decision.reason == expected["error"]
        with pytest.raises(TrustError):
            evaluate.value(parsed, environment)
    else:
        assert expr.text(evaluate.value(parsed, environment)) == expected["value"]
