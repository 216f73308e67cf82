"""Says at the end of a run what was not tried, and what to install: no skip is to be overlooked."""

from collections import Counter
from collections.abc import Iterable

import pytest


def reasons(skipped: Iterable[pytest.TestReport]) -> list[str]:
    """Each reason once, with the number of tests, the most frequent first."""
    counted: Counter[str] = Counter()
    for report in skipped:
        said = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        counted[said.removeprefix("Skipped: ")] += 1
    return [f"{number} x {reason}" for reason, number in counted.most_common()]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    found = reasons(terminalreporter.getreports("skipped"))
    if found:
        terminalreporter.section("not tried")
    for line in found:
        terminalreporter.write_line(line)
