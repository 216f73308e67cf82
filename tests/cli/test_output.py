"""What is printed: which form, on which stream, and how white space ends."""

import json

import pytest

from edge.cli import output
from edge.cli.output import Result, Settings, chosen
from edge.errors import ConfigError

ALL = Result(text="a text  \n", machine="machine", json={"b": 1, "a": [b"\x01"]})
PLAIN = Settings()
AS_JSON = '{\n  "a": [\n    "01"\n  ],\n  "b": 1\n}'


@pytest.mark.parametrize(
    ("result", "terminal", "wanted", "printed"),
    [
        (ALL, True, PLAIN, "a text"),
        (ALL, False, PLAIN, "machine"),
        (Result(text="text", json=[1]), False, PLAIN, "[\n  1\n]"),
        (Result(text="text"), False, PLAIN, "text"),
        (Result(machine="machine", json=[]), True, PLAIN, "machine"),
        (Result(json=[]), True, PLAIN, "[]"),
        (Result(json=None), False, PLAIN, "null"),
        (ALL, True, Settings(json=True), AS_JSON),
        (ALL, False, Settings(json=True), AS_JSON),
        (ALL, False, Settings(compact=True), '{"a": ["01"], "b": 1}'),
        (Result(text="text"), True, Settings(json=True), ""),
        (Result(), False, PLAIN, ""),
    ],
)
def test_the_form(result: Result, terminal: bool, wanted: Settings, printed: str) -> None:
    assert chosen(result, terminal=terminal, wanted=wanted) == printed


def test_a_result_has_no_newline_off_a_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    output.emit(ALL)
    assert capfd.readouterr() == ("machine", "")


def test_nothing_is_printed_of_no_result(capfd: pytest.CaptureFixture[str]) -> None:
    output.emit(Result())
    assert capfd.readouterr() == ("", "")


def test_a_complaint_is_one_line_and_a_hint(capfd: pytest.CaptureFixture[str]) -> None:
    output.complain("it broke", "mend it", settings=Settings())
    assert capfd.readouterr() == ("", "error: it broke\nhint: mend it\n")


def test_quiet_is_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    output.complain("it broke", settings=Settings(quiet=True))
    assert capfd.readouterr() == ("", "")


def test_nobody_confirms_off_a_terminal() -> None:
    with pytest.raises(ConfigError) as caught:
        output.confirm("Really?", yes=False)
    assert "--yes" in caught.value.hint
    output.confirm("Really?", yes=True)


def test_a_listing() -> None:
    items = [{"n": 1}, {"n": 2}]
    result = output.listing(items, lambda item: f"number {item['n']}", "none")
    assert result.text == "  │ number 1\n  │ number 2"
    assert json.loads(chosen(result, terminal=False, wanted=PLAIN)) == items
    assert output.listing([], str, "there is none").text == "    there is none"


def test_a_block_leaves_empty_values_out() -> None:
    assert output.lines({"a": 1, "long": None, "b": ""}) == "    a:    1"
