"""`python -m benchmarks`: every row in one run, one table, one JSON file."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks import measure, report
from benchmarks.harness import BenchError, first_byte, rss_mib, running
from benchmarks.measure import Targets
from benchmarks.ours import OursChannel, OursDirect, OursHub
from benchmarks.rows import Direct, Row, Ssh, SshGcm
from benchmarks.stock import StockChannel, StockDirect, StockHub

ROWS: dict[str, type[Row]] = {
    row.name: row
    for row in (
        Direct,
        Ssh,
        SshGcm,
        OursHub,
        OursChannel,
        OursDirect,
        StockHub,
        StockChannel,
        StockDirect,
    )
}
PEER = {"ours-hub": "stock-hub", "ours-channel": "stock-channel", "ours-direct": "stock-direct"}


@dataclass
class Result:
    """What was measured of one row; every sample stays in the JSON, the table has the best."""

    forward_gbit: list[float] = field(default_factory=list)
    back_gbit: list[float] = field(default_factory=list)
    p50_us: list[float] = field(default_factory=list)
    p99_us: list[float] = field(default_factory=list)
    connections_per_s: list[float] = field(default_factory=list)
    first_byte_ms: list[float] = field(default_factory=list)
    rss_idle_mib: dict[str, float] = field(default_factory=dict)
    rss_after_mib: dict[str, float] = field(default_factory=dict)
    crowd: dict[str, object] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    rounds: int
    iperf_s: float
    ping_s: float
    connect_s: float
    parallel: int
    sequential: int


FULL = Plan(rounds=2, iperf_s=6, ping_s=3, connect_s=3, parallel=200, sequential=20_000)
QUICK = Plan(rounds=1, iperf_s=2, ping_s=1, connect_s=1, parallel=50, sequential=1000)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def memory(row: Row) -> dict[str, float]:
    return {name: round(sum(map(rss_mib, pids)), 1) for name, pids in row.processes().items()}


def one_round(row: Row, result: Result, plan: Plan) -> None:
    """Each measurement by itself: a failure of one leaves the others."""

    def attempt(what: str, *steps: object) -> None:
        for step in steps:
            try:
                step()  # type: ignore[operator]
            except BenchError as error:
                result.problems.append(f"{what}: {error}")
                say(f"    {row.name}: {error}")

    def forward() -> None:
        result.forward_gbit.append(
            measure.throughput(row.targets, row.iperf, plan.iperf_s, back=False)
        )

    def back() -> None:
        result.back_gbit.append(measure.throughput(row.targets, row.iperf, plan.iperf_s, back=True))

    def ping() -> None:
        found = measure.latency(row.echo, plan.ping_s)
        result.p50_us.append(found.p50_us)
        result.p99_us.append(found.p99_us)

    def connect() -> None:
        result.connections_per_s.append(measure.connections(row.echo, seconds=plan.connect_s))

    attempt("throughput", forward, back)
    attempt("ping-pong", ping)
    attempt("connections", connect)


def crowd(row: Row, plan: Plan) -> dict[str, object]:
    """Many connections at once and many in a row, and what they left behind."""
    before = memory(row)
    seconds = measure.parallel(row.echo, plan.parallel)
    time.sleep(1)
    between = memory(row)
    rate = measure.connections(row.echo, count=plan.sequential)
    time.sleep(1)
    return {
        "parallel": plan.parallel,
        "parallel_s": round(seconds, 3),
        "sequential": plan.sequential,
        "sequential_per_s": round(rate, 1),
        "rss_before_mib": before,
        "rss_after_parallel_mib": between,
        "rss_after_sequential_mib": memory(row),
    }


def first_bytes(row: Row, result: Result, rounds: int) -> None:
    try:
        for _ in range(rounds):
            start = row.relaunch()
            result.first_byte_ms.append((first_byte(row.echo, 30) - start) * 1e3)
    except BenchError as error:
        if row.processes():
            result.problems.append(f"first byte: {error}")
            say(f"    {row.name}: {error}")


def best(values: list[float], *, low: bool = False) -> float | None:
    return (min if low else max)(values) if values else None


def ratio(mine: list[float], other: list[float]) -> str:
    if not mine or not other:
        return "-"
    return f"{max(mine) / max(other):.2f}"


def sizes(values: dict[str, float]) -> str:
    order = [values[name] for name in ("hub", "gw", "client") if name in values]
    return "/".join(f"{value:.0f}" for value in order) or "-"


def show(results: dict[str, Result], skipped: dict[str, str]) -> str:
    head = [
        "row",
        "ciphers",
        "fwd Gbit/s",
        "back Gbit/s",
        "p50 us",
        "p99 us",
        "conn/s",
        "RSS idle MiB",
        "RSS after MiB",
        "first byte ms",
        "fwd/ssh",
        "back/ssh",
        "fwd/stock",
        "back/stock",
    ]
    nothing = Result()
    ssh = results.get("ssh", nothing)
    lines = []
    for name, result in results.items():
        peer = results.get(PEER.get(name, ""), nothing)
        lines.append(
            [
                name,
                ROWS[name].ciphers,
                report.number(best(result.forward_gbit)),
                report.number(best(result.back_gbit)),
                report.number(best(result.p50_us, low=True), 0),
                report.number(best(result.p99_us, low=True), 0),
                report.number(best(result.connections_per_s), 0),
                sizes(result.rss_idle_mib),
                sizes(result.rss_after_mib),
                report.number(best(result.first_byte_ms, low=True), 0),
                ratio(result.forward_gbit, ssh.forward_gbit),
                ratio(result.back_gbit, ssh.back_gbit),
                ratio(result.forward_gbit, peer.forward_gbit),
                ratio(result.back_gbit, peer.back_gbit),
            ]
        )
    text = report.table(head, lines)
    text += "\n\nRSS: hub/gw/client. Best of the rounds. Ratios are of rows in this run."
    for name, result in results.items():
        if result.crowd:
            text += (
                f"\n{name}: {result.crowd['parallel']} parallel in {result.crowd['parallel_s']} s, "
                f"{result.crowd['sequential']} sequential at {result.crowd['sequential_per_s']}/s; "
                f"RSS MiB {sizes(result.crowd['rss_before_mib'])} -> "  # type: ignore[arg-type]
                f"{sizes(result.crowd['rss_after_parallel_mib'])} -> "  # type: ignore[arg-type]
                f"{sizes(result.crowd['rss_after_sequential_mib'])}"  # type: ignore[arg-type]
            )
    for name, result in results.items():
        for problem in result.problems:
            text += f"\nPROBLEM {name}: {problem}"
    for name, why in skipped.items():
        text += f"\nSKIPPED {name}: {why}"
    return text


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--only", action="append", choices=ROWS, help="these rows (repeat)")
    parser.add_argument("--skip", action="append", default=[], choices=ROWS, help="not this row")
    parser.add_argument(
        "--no-crowd", action="store_true", help="no 200 parallel, no 20,000 in a row"
    )
    parser.add_argument("--output", type=Path, help="where the JSON goes")
    return parser.parse_args()


def main() -> int:
    chosen = arguments()
    plan = QUICK if chosen.quick else FULL
    names = [n for n in ROWS if n not in chosen.skip and (not chosen.only or n in chosen.only)]
    results: dict[str, Result] = {}
    skipped: dict[str, str] = {}
    machine = report.machine()
    with running() as harness:
        targets = Targets(harness)
        rows: list[Row] = []
        for name in names:
            row = ROWS[name](harness, targets)
            why = row.missing()
            if not why:
                say(f"starting {name}")
                try:
                    row.start()
                    first_byte(row.echo, 30)
                except BenchError as error:
                    why = str(error)
            if why:
                skipped[name] = why
                say(f"SKIPPED {name}: {why}")
                continue
            rows.append(row)
            results[name] = Result()
        time.sleep(2)
        for row in rows:
            results[row.name].rss_idle_mib = memory(row)
        for number in range(1, plan.rounds + 1):
            for row in rows:
                say(f"round {number}: {row.name}")
                one_round(row, results[row.name], plan)
        for row in rows:
            result = results[row.name]
            result.rss_after_mib = memory(row)
            if row.ours and not chosen.no_crowd:
                say(f"crowd: {row.name}")
                try:
                    result.crowd = crowd(row, plan)
                except BenchError as error:
                    result.problems.append(f"crowd: {error}")
        for row in rows:
            say(f"first byte: {row.name}")
            first_bytes(row, results[row.name], 1 if chosen.quick else 3)
    print(show(results, skipped))
    part = chosen.quick or chosen.only or chosen.skip
    path = report.save(
        {
            "machine": machine,
            "plan": asdict(plan),
            "rows": {name: asdict(result) for name, result in results.items()},
            "skipped": skipped,
        },
        "-part" if part else "",
        chosen.output,
    )
    say(f"written to {path}")
    return 1 if any(result.problems for result in results.values()) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        say("stopped; everything it started is gone")
        sys.exit(130)
    except BenchError as error:
        say(f"error: {error}")
        sys.exit(1)
