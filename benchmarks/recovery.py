"""`python -m benchmarks.recovery`: the hub is killed again and again; how soon is the tunnel back?

Counted from when the restarted hub accepts a connection until the first byte of an answer has come
through the tunnel. The outages alternate, so that a slow machine is slow for all of them.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from benchmarks import report
from benchmarks.harness import BenchError, Harness, first_byte, running
from benchmarks.measure import Targets
from benchmarks.nodes import Nodes
from benchmarks.ours import OursChannel, OursHub
from benchmarks.stock import StockChannel, StockHub

ROWS: dict[str, type[Nodes]] = {
    row.name: row for row in (OursHub, OursChannel, StockHub, StockChannel)
}
LIMIT = 180.0  # for one recovery


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def percentile(values: list[float], part: float) -> float | None:
    """The smallest value that at least this part of them does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -int(-part * len(ordered) // 1) - 1)] if ordered else None


def measure(
    row: Nodes, kills: int, outages: list[float]
) -> tuple[dict[float, list[float]], list[str]]:
    """Seconds per recovery, by outage; and what went wrong."""
    found: dict[float, list[float]] = {outage: [] for outage in outages}
    problems: list[str] = []
    for number in range(kills):
        outage = outages[number % len(outages)]
        try:
            row.kill_hub()
            time.sleep(outage)
            back = row.start_hub()
            took = first_byte(row.echo, LIMIT) - back
        except BenchError as error:
            problems.append(f"kill {number + 1}, outage {outage:g} s: {error}")
            say(f"{row.name}: {problems[-1]}")
            if len(problems) > 2:
                problems.append("given up")
                break
        else:
            found[outage].append(took)
            say(f"{row.name}: kill {number + 1} of {kills}, outage {outage:g} s: {took:.3f} s")
            time.sleep(0.5)
    return found, problems


def started(name: str, harness: Harness, targets: Targets) -> Nodes:
    row = ROWS[name](harness, targets)
    why = row.missing()
    if why:
        raise BenchError(why)
    row.start()
    first_byte(row.echo, 30)
    return row


def line(name: str, outage: str, values: list[float]) -> list[str]:
    return [
        name, outage, str(len(values)),
        report.number(percentile(values, 0.5), 3),
        report.number(percentile(values, 0.95), 3),
        report.number(max(values, default=None), 3),
    ]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recovery")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--outages", default="1,10,60", help="seconds, separated by commas")
    parser.add_argument(
        "--row", action="append", choices=ROWS, help="which tunnel (repeat); ours-hub"
    )
    parser.add_argument("--output", type=Path, help="where the JSON goes")
    chosen = parser.parse_args()
    outages = [float(part) for part in chosen.outages.split(",")]
    lines: list[list[str]] = []
    notes: list[str] = []
    rows: dict[str, object] = {}
    machine = report.machine()
    with running() as harness:
        targets = Targets(harness)
        for name in chosen.row or ["ours-hub"]:
            try:
                row = started(name, harness, targets)
            except BenchError as error:
                notes.append(f"SKIPPED {name}: {error}")
                continue
            found, problems = measure(row, chosen.kills, outages)
            everything = [took for values in found.values() for took in values]
            lines += [line(name, f"{outage:g} s", values) for outage, values in found.items()]
            lines.append(line(name, "all", everything))
            notes += [f"PROBLEM {name}: {problem}" for problem in problems]
            rows[name] = {
                "seconds_by_outage": {f"{outage:g}": values for outage, values in found.items()},
                "p95_s": percentile(everything, 0.95),
                "problems": problems,
            }
    print(report.table(["row", "outage", "kills", "p50 s", "p95 s", "max s"], lines))
    print("\nFrom the hub accepting connections to the first byte through the tunnel.")
    print("\n".join(notes))
    say(f"written to {report.save({'machine': machine, 'rows': rows}, '-recovery', chosen.output)}")
    return 1 if notes else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        say("stopped; everything it started is gone")
        sys.exit(130)
    except BenchError as error:
        say(f"error: {error}")
        sys.exit(1)
