"""The reasons of skipped tests are told at the end of a quiet run, also with several processes."""

import sys
from pathlib import Path

import pytest

from tests import conftest

pytest_plugins = ["pytester"]
TESTS = """
import pytest
@pytest.mark.parametrize("n", range(3))
def test_a(n): pytest.skip("no frobnicator (apt-get install frob)")
@pytest.mark.skip(reason="not here")
def test_b(): pass
"""


@pytest.mark.parametrize("more", [[], ["-n", "2"]], ids=["one", "several"])
def test_each_reason_is_told_once(pytester: pytest.Pytester, more: list[str]) -> None:
    pytester.makeconftest(Path(conftest.__file__).read_text())
    pytester.makepyfile(TESTS)
    said = pytester.run(sys.executable, "-m", "pytest", "-q", *more).stdout.str()
    assert "3 x no frobnicator (apt-get install frob)" in said
    assert "1 x not here" in said
    assert "not tried" in said


def test_nothing_is_told_where_nothing_was_skipped(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(Path(conftest.__file__).read_text())
    pytester.makepyfile("def test_a(): pass")
    assert "not tried" not in pytester.run(sys.executable, "-m", "pytest", "-q").stdout.str()
