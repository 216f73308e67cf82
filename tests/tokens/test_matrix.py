"""The README's table is what the results say, and every cell of them is a scenario that there is."""

from __future__ import annotations

import pytest

from tests.tokens import matrix

pytestmark = pytest.mark.skipif(
    not matrix.FILE.exists(), reason="NO RESULTS YET: `make test-tokens` writes them"
)


def test_readme_agrees() -> None:
    shown = matrix.in_readme(matrix.README.read_text())
    assert shown == matrix.table(matrix.read()).strip(), "python -m tests.tokens.matrix --readme"


def test_readme_notices_a_change() -> None:
    results = matrix.read()
    changed = [results[0] | {"outcome": "FAIL: changed"}, *results[1:]]
    assert matrix.table(changed) != matrix.table(results)


def test_at_least_60_cells_ran() -> None:
    ran = [one for one in matrix.read() if matrix.short(one["outcome"]) in ("pass", "FAIL")]
    assert len(ran) >= 60


def test_reasons() -> None:
    for result in matrix.read():
        word, _, why = result["outcome"].partition(": ")
        assert word == "pass" or why, result
