"""Variables: what a reference stands for, where it may come from, and that it is never YAML."""

from typing import Any

import pytest

from edge.config import variables
from edge.config.file import read
from edge.config.mistakes import Mistakes
from edge.config.variables import References


def ticket(text: str, **given: Any) -> str | None:
    return read(text, "f", **given).ticket


def said(text: str, **given: Any) -> list[str]:
    with pytest.raises(Mistakes) as refused:
        read(text, "f", **given)
    return [f"{one.place.line}:{one.place.column}: {one}" for one in refused.value.found]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ticket: $A", "x"),
        ("ticket: ${A}", "x"),
        ("ticket: ${A:-y}", "x"),
        ("ticket: ${NONE:-y z}", "y z"),
        ("ticket: ${EMPTY:-y}", "y"),
        ("ticket: a$A/${A}b$$A$", "ax/xb$A$"),
        ("ticket: '$A'", "x"),
        ('ticket: "\\u0041$A"', "Ax"),
        ("ticket: |\n  $A\n  ${A}", "x\nx"),
        ("ticket: >\n  $A\n  ${A}", "x x"),
        ("{ticket: ${A}}", "x"),
        ('{"ticket":"${A}"}', "x"),
        ("$KEY: a", "a"),
        ("ticket: $A # ${nobody asks", "x"),
        ("ticket: $$$$", "$$"),
        ("ticket: $ 1", "$ 1"),
        ("ticket: $1", "$1"),
    ],
)
def test_references(text: str, expected: str) -> None:
    assert ticket(text, environment={"A": "x", "EMPTY": "", "KEY": "ticket"}) == expected


def test_a_value_is_never_yaml() -> None:
    nasty = "a: b\n- [c] # {d}: &e *e !f \"'"
    assert ticket("ticket: $A\nname: n", environment={"A": nasty}) == nasty


def test_a_variable_can_be_a_truth_or_a_number() -> None:
    found = read("foreground: $F\ntcp-outlet: {to: $P}", environment={"F": "true", "P": "22"})
    assert (found.foreground, str(found.outlets[0].to)) == (True, "127.0.0.1:22")


def test_which_one_counts() -> None:
    text = "variables: {A: file}\nticket: $A"
    assert ticket(text) == "file"
    assert ticket(text, environment={"A": "environment"}) == "environment"
    assert ticket(text, environment={"A": "environment"}, given={"A": "option"}) == "option"
    assert read(text, "f", environment={"A": "environment"}).warnings == (
        "f:1:16: variables.A: the environment or --variable says it otherwise",
    )


def test_variables_of_the_file_use_those_before_them() -> None:
    text = "ticket: $C\nvariables:\n  A: 1\n  B: ${A}2\n  C: $B$B"
    assert ticket(text) == "1212"
    assert said("variables: {B: $A, A: 1}") == [
        "1:16: the variable A has no value: set it in the environment, with --variable A=…, or "
        "under variables"
    ]


def test_unknown_ones_are_named_with_their_line() -> None:
    found = said("ticket: |\n  a\n  $ONE ${TWO}\nrelay: $ONE\ntcp-outlet: {to: $ONE}")
    assert [one.split(" has no value")[0] for one in found] == [
        "3:3: the variable ONE", "3:8: the variable TWO", "4:8: the variable ONE",
        "5:18: the variable ONE",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "reference", ["${A", "${}", "${A B}", "${A:+b}", "${A-b}", "${1}", "${$A}"]
)
def test_what_is_no_reference(reference: str) -> None:
    (found,) = said(f"ticket: {reference!r}", environment={"A": "x"})
    assert found.startswith("1:")
    assert "variable" in found


def test_what_a_variable_gives_is_not_repeated() -> None:
    for text in ("name: $A", "tcp-outlet: {to: $A}", "tcp-outlet: {to: 1, allow: $A}", "$A: 1",
                 "relay: {r: {at: $A}}"):  # fmt: skip
        (found,) = said(text, environment={"A": "the secret, of all"})
        assert "secret" not in found
    assert said("name: $A", environment={"A": "the secret"}) == [
        "1:7: name: what its variables give is not a name of at most 64 letters, digits, - and _"
    ]


def test_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    doubling = "variables:\n" + "".join(
        f"  A{number + 1}: $A{number}$A{number}\n" for number in range(40)
    )
    (found,) = said(doubling.replace("variables:", "variables:\n  A0: abcdefgh") + "ticket: $A9")[
        :1
    ]
    assert found == "17:8: longer than 131072 characters with its variables"
    monkeypatch.setattr(variables, "_MOST", 2)
    assert said("ticket: $A$A$A", environment={"A": "x"}) == ["1:1: too many variables"]


@pytest.mark.parametrize("mark", ["\U000f0000", "\U0010fffd"])
def test_our_own_marks_cannot_be_forged(mark: str) -> None:
    assert said(f"name: a\nticket: {mark}") == ["2:9: a character that a configuration cannot have"]


def test_marks_are_as_long_as_what_they_stand_for() -> None:
    text = "a $A ${B:-c} $$ d"
    assert len(References(text, "f").marked) == len(text)
