"""The matrix {module x key kind x scenario}: kept as JSON, printed, and put into the README.

python -m tests.tokens.matrix            prints it
python -m tests.tokens.matrix --readme   writes the README's table anew"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FILE = Path(__file__).with_name("results.json")
README = ROOT / "README.md"
BEGIN, END = "<!-- tokens: begin -->", "<!-- tokens: end -->"

Result = dict[str, Any]


def outcome(report: pytest.TestReport) -> str:
    """`pass`, `FAIL: why`, `not tried: why`, or `cannot: why`."""
    if report.outcome == "passed":
        return "pass"
    if report.outcome == "skipped":
        why = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        why = why.removeprefix("Skipped: ")
        return why if why.startswith("cannot: ") else f"not tried: {why}"
    lines = [line for line in str(report.longrepr).splitlines() if line.startswith("E  ")]
    return f"FAIL: {lines[0][1:].strip()[:200] if lines else 'see the output'}"


def write(path: Path, found: list[Result]) -> None:
    """Put the results into the file, beside those of cells that were not run this time. The same
    cell again (its tear-down, after a pass) replaces the one before."""
    kept: dict[tuple[str, str, str], Result] = {}
    for result in (read(path) if path.exists() else []) + found:
        kept[(result["scenario"], result["environment"], result["kind"])] = result
    machine = {"python": platform.python_version(), "machine": platform.machine()}
    whole = {"on": machine, "results": [kept[key] for key in sorted(kept)]}
    path.write_text(json.dumps(whole, indent=1, sort_keys=True) + "\n")


def read(path: Path = FILE) -> list[Result]:
    results: list[Result] = json.loads(path.read_text())["results"]
    return results


# --- as text


def columns() -> list[tuple[str, str]]:
    """Environment and kind, every kind of each: what a token cannot hold is shown as such."""
    from tests.tokens.cells import ALL  # noqa: PLC0415 - it loads the environments
    from vault_backends.vault import Kind  # noqa: PLC0415

    return [(one.name, str(kind)) for one in ALL for kind in Kind]


def _held() -> set[tuple[str, str]]:
    from tests.tokens.cells import cells  # noqa: PLC0415

    return {(cell.environment.name, str(cell.kind)) for cell in cells()}


def rows(results: Iterable[Result]) -> list[tuple[str, list[str]]]:
    """A title, and what came of it in each column."""
    held = _held()
    titles: dict[str, str] = {}
    cells: dict[tuple[str, str, str], str] = {}
    for result in results:
        titles[result["scenario"]] = result["title"]
        cells[(result["scenario"], result["environment"], result["kind"])] = result["outcome"]
    return [
        (
            titles[scenario],
            [
                cells.get((scenario, *column), "not tried: not for this token")
                if column in held
                else "cannot: no such key"
                for column in columns()
            ],
        )
        for scenario in sorted(titles)
    ]


def short(outcome: str) -> str:
    return {"pass": "pass", "FAIL": "FAIL", "cannot": "-", "not tried": "·"}[
        outcome.partition(":")[0]
    ]


def shown(results: list[Result]) -> str:
    """The whole matrix with its reasons, and the figures."""
    table = rows(results)
    widest = max((len(title) for title, _ in table), default=0)
    lines = []
    from tests.tokens.cells import ALL  # noqa: PLC0415 - it loads the environments

    lines += [f"{one.name}: {one.about}" for one in ALL]
    for number, (name, kind) in enumerate(columns(), 1):
        lines.append(f"{number:>2} = {name}, {kind}")
    lines.append(" " * widest + "  " + " ".join(f"{n:>4}" for n in range(1, len(columns()) + 1)))
    for title, outcomes in table:
        lines.append(f"{title:<{widest}}  " + " ".join(f"{short(one):>4}" for one in outcomes))
    lines += [
        "",
        "pass, FAIL, - cannot (the token has no such key or no such fault), · not tried",
        "",
    ]
    lines += sorted(
        f"{result['title']} [{result['environment']}, {result['kind']}]: {result['outcome']}"
        for result in results
        if result["outcome"] != "pass"
    )
    lines += ["", "figures (one run, not repeated):"]
    for result in results:
        for name, value in result["figures"].items():
            where = f"{result['environment']}, {result['kind']}"
            lines.append(f"{result['title']} [{where}]: {name} {value}")
    return "\n".join([*lines, "", summary(results)])


def summary(results: list[Result]) -> str:
    said = [short(result["outcome"]) for result in results]
    counts = {"passed": "pass", "failed": "FAIL", "not tried": "·", "cannot": "-"}
    return f"{len(said)} cells: " + ", ".join(f"{said.count(s)} {n}" for n, s in counts.items())


# --- in the README


def table(results: list[Result]) -> str:
    """Scenarios by tokens, in Markdown. A column per token and kind of key that it can hold, a row
    per test; what it was tried with (faults, ways to go away) is counted."""
    held = [column for column in columns() if column in _held()]
    names = [f"{name}<br>{kind}" for name, kind in held]
    lines = ["| scenario | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for scenario in sorted({_test(result) for result in results}):
        same = [result for result in results if _test(result) == scenario]
        title = same[0]["title"]
        if ": " in same[0]["scenario"]:
            title = title.removesuffix(": " + same[0]["scenario"].partition(": ")[2])
        cells = [_counted(same, column) for column in held]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    legend = f"{summary(results)}. -: the token has no such thing; ·: not tried."
    return "\n".join([*lines, "", legend])


def _test(result: Result) -> str:
    return str(result["scenario"]).partition(": ")[0]


def _counted(same: list[Result], column: tuple[str, str]) -> str:
    """What came of one test in one column: a word, or how many of how many passed."""
    here = [one for one in same if (one["environment"], one["kind"]) == column]
    said = [short(one["outcome"]) for one in here]
    if len(set(said)) == 1:
        return said[0] if len(said) == 1 or said[0] != "pass" else f"{len(said)} pass"
    return f"{said.count('pass')} of {len(said)}" if said else "·"


def in_readme(text: str) -> str:
    """What stands between the markers."""
    return text.partition(BEGIN)[2].partition(END)[0].strip()


def with_table(text: str, results: list[Result]) -> str:
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"error: {README} has no {BEGIN} … {END}")
    return f"{before}{BEGIN}\n{table(results)}\n{END}{after}"


def main(arguments: list[str]) -> None:
    if arguments == ["--readme"]:
        README.write_text(with_table(README.read_text(), read()))
        return
    print(shown(read()))


if __name__ == "__main__":
    main(sys.argv[1:])
