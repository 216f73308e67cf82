"""`python -m benchmarks.fleet`: a fleet enrolls at one authority, ours over both databases and stock's.

Identities and tickets are made ahead; then every device connects, opens a channel, redeems its ticket
and fetches its credential. The devices are in processes of their own, so that the authority's processor
time is its own; on few cores they still take turns with it, which is why enrollments per second of its
processor time is the figure to compare. The database server's time is shown beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import ours, report, stock
from benchmarks.devices import connected, presentation
from benchmarks.harness import (
    LOOPBACK,
    BenchError,
    Harness,
    descendants,
    kill_group,
    listening,
    rss_mib,
    running,
    wait_until,
)
from benchmarks.nodes import ENVIRONMENT
from edge.channel.handshake import Presentation
from edge.errors import EdgeError
from edge.identity.history import Identifier

TICK = os.sysconf("SC_CLK_TCK")
PROJECT = "plant"
LIFETIME = 24 * 3600
"""Of the tickets: all are made before the first is used."""
LIMIT = 540.0
"""Seconds for all devices of a row."""


@dataclass
class Result:
    """What was seen of one row; times in seconds, memory in MiB."""

    devices: int
    at_once: int
    processes: int
    enrolled: int = 0
    seconds: float = 0.0
    per_second: float = 0.0
    cpu_per_enrollment_ms: float = 0.0
    per_cpu_second: float = 0.0
    database_cpu_per_enrollment_ms: float = 0.0
    tickets_per_second: float = 0.0
    rss_before_mib: float = 0.0
    rss_after_mib: float = 0.0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    asked_again: int = 0
    """Channels that stayed silent, so that the device opened another one."""
    failures: dict[str, int] = field(default_factory=dict)


class Authority:
    """One that is measured."""

    name: str
    database_pids: list[int]

    def __init__(self, harness: Harness) -> None:
        self.harness, self.port = harness, harness.port()
        self.database_pids = []
        self.pid = 0

    def missing(self) -> str:
        """Why it cannot be measured here, or nothing."""
        raise NotImplementedError

    def command(self) -> list[str]:
        raise NotImplementedError

    def environment(self) -> Mapping[str, str]:
        kept = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        return kept | {"OCKAM_HOME": str(self.harness.sub(self.name)), "NO_COLOR": "true"}

    def more(self) -> list[str]:
        return []

    def start(self, enroller: Identifier) -> None:
        """In the foreground, so that its process is the one we started."""
        trusted = json.dumps({str(enroller): {"ockam-role": "enroller"}})
        arguments = [
            "authority", "create", "--foreground", "--project-identifier", PROJECT,
            "--tcp-listener-address", f"{LOOPBACK}:{self.port}", "--trusted-identities", trusted,
            *self.more(),
        ]  # fmt: skip
        self.process = self.harness.spawn(
            [*self.command(), *arguments], env=self.environment(), log=self.name
        )
        self.pid = self.process.pid
        wait_until(f"the authority {self.name}", self._up, 60)

    def _up(self) -> bool:
        if self.process.poll() is not None:
            log = (self.harness.folder / f"{self.name}.log").read_text(errors="replace")
            raise BenchError(f"{self.name} ended: {log[-500:]}")
        return listening(self.port)

    def identifier(self) -> Identifier:
        """Whose word the credentials are."""
        said = self.harness.run(
            [*self.command(), "identity", "show", f"authority-{PROJECT}"],
            env=self.environment(),
        )
        return Identifier.parse(next(word for word in said.split() if word.startswith("I")))

    def stop(self) -> None:
        kill_group(self.process)


class Ours(Authority):
    """Over SQLite."""

    name = "ours-sqlite"

    def missing(self) -> str:
        return ""

    def command(self) -> list[str]:
        return ours.program()


class OursPostgresql(Ours):
    """Over PostgreSQL on this machine, durable as it is by default."""

    name = "ours-postgresql"

    def missing(self) -> str:
        from tests import postgresql  # noqa: PLC0415

        return postgresql.missing() or ""

    def more(self) -> list[str]:
        return ["--database", self.url]

    def start(self, enroller: Identifier) -> None:
        from tests import postgresql  # noqa: PLC0415

        self._stack = contextlib.ExitStack()
        server = self._stack.enter_context(postgresql.serving(()))
        self.url = server.url(server.database())
        assert server.pid is not None
        super().start(enroller)
        self.database_pids = [server.pid]

    def stop(self) -> None:
        super().stop()
        self._stack.close()


class Stock(Authority):
    """The stock program."""

    name = "stock"

    def missing(self) -> str:
        return "" if stock.program() else "the stock `ockam` is not installed (OCKAM_PEER names it)"

    def command(self) -> list[str]:
        return [stock.program()]

    def environment(self) -> Mapping[str, str]:
        return {
            **super().environment(),
            "OCKAM_OPENTELEMETRY_EXPORT": "false",
            "OCKAM_TELEMETRY_EXPORT": "false",
            "OCKAM_DISABLE_UPGRADE_CHECK": "true",
            "QUIET": "true",
            "NO_INPUT": "true",
        }


ROWS: dict[str, type[Authority]] = {one.name: one for one in (Ours, OursPostgresql, Stock)}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def cpu(pids: list[int]) -> float:
    """Seconds of processor time, of children that have ended too."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += sum(map(int, fields[11:15]))
    return total / TICK


def tree(pids: list[int]) -> list[int]:
    return [one for pid in pids for one in (pid, *descendants(pid))]


async def make_tickets(
    count: int, port: int, enroller: Presentation, authority: Identifier
) -> list[str]:
    """One-time codes, by an enroller over one channel, a few requests at once."""
    client, connection = await connected(enroller, port, authority)
    codes: list[str] = []

    async def make() -> None:
        nonlocal left
        while left:
            left -= 1
            codes.append((await client.create_token({"role": "plc"}, LIFETIME, 1)).hex())

    left = count
    try:
        await asyncio.gather(*(make() for _ in range(4)))
    finally:
        connection.close()
    return codes


@contextlib.contextmanager
def workers(
    count: int, at_once: int, authority: Authority, who: Identifier, codes: list[str]
) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes with devices, ready."""
    started = []
    try:
        for number in range(count):
            mine = codes[number::count]
            given = {
                "port": authority.port,
                "authority": str(who),
                "at_once": max(at_once // count, 1),
                "codes": mine,
                "seeds": [os.urandom(32).hex() for _ in mine],
            }
            process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.devices"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            started.append(process)
            tell(process, json.dumps(given))
        for process in started:
            if hear(process) != "ready":
                raise BenchError("the devices do not start")
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


def tell(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def hear(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def measure(authority: Authority, devices: int, at_once: int, processes: int) -> Result:
    result = Result(devices, at_once, processes)
    enroller = presentation(os.urandom(32))
    authority.start(enroller.history.identifier)
    who = authority.identifier()
    say(f"{authority.name}: making {devices} tickets")
    before = time.monotonic()
    codes = asyncio.run(make_tickets(devices, authority.port, enroller, who))
    result.tickets_per_second = round(devices / (time.monotonic() - before), 1)
    with workers(processes, at_once, authority, who, codes) as started:
        say(f"{authority.name}: {devices} devices enroll, {at_once} at once")
        result.rss_before_mib = round(rss_mib(authority.pid), 1)
        used, base = cpu([authority.pid]), cpu(tree(authority.database_pids))
        for process in started:
            tell(process, "go")
        seen = collected(started)
        used = cpu([authority.pid]) - used
        base = cpu(tree(authority.database_pids)) - base
        result.rss_after_mib = round(rss_mib(authority.pid), 1)
    evaluate(result, seen, used, base)
    return result


def collected(started: list[subprocess.Popen[str]]) -> list[dict[str, Any]]:
    watch = Watchdog(started)
    with watch:
        lines = [hear(process) for process in started]
    if watch.bit or not all(lines):
        raise BenchError(f"the devices did not finish within {LIMIT:g} s")
    return [json.loads(line) for line in lines]


def evaluate(result: Result, seen: list[dict[str, Any]], used: float, base: float) -> None:
    took = sorted(value for one in seen for value in one["took"])
    for text in (text for one in seen for text in one["failures"]):
        result.failures[text] = result.failures.get(text, 0) + 1
    result.enrolled = len(took)
    result.asked_again = sum(one["asked_again"] for one in seen)
    if not took:
        raise BenchError(f"nobody enrolled: {result.failures}")
    result.seconds = max(one["ended"] for one in seen) - min(one["began"] for one in seen)
    result.per_second = round(len(took) / result.seconds, 1)
    result.seconds = round(result.seconds, 2)
    result.cpu_per_enrollment_ms = round(used / len(took) * 1e3, 3)
    result.per_cpu_second = round(len(took) / used, 1) if used else 0.0
    result.database_cpu_per_enrollment_ms = round(base / len(took) * 1e3, 3)
    result.p50_ms = round(took[len(took) // 2] * 1e3, 1)
    result.p99_ms = round(took[len(took) * 99 // 100] * 1e3, 1)


class Watchdog:
    """Kills the devices where they take too long, so that whoever reads their output goes on."""

    def __init__(self, processes: list[subprocess.Popen[str]]) -> None:
        import threading  # noqa: PLC0415

        self.bit, self._processes = False, processes
        self._timer = threading.Timer(LIMIT, self._bite)

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def _bite(self) -> None:
        self.bit = True
        for process in self._processes:
            process.kill()


def show(results: dict[str, Result], skipped: dict[str, str]) -> str:
    head = [
        "row", "enrolled", "per s", "authority CPU ms each", "per CPU s", "database CPU ms each",
        "p50 ms", "p99 ms", "asked again", "RSS MiB before", "after", "per CPU s / stock",
    ]  # fmt: skip
    peer = results.get("stock")
    lines = [
        [
            name,
            str(one.enrolled),
            report.number(one.per_second, 1),
            report.number(one.cpu_per_enrollment_ms),
            report.number(one.per_cpu_second, 1),
            report.number(one.database_cpu_per_enrollment_ms),
            report.number(one.p50_ms, 1),
            report.number(one.p99_ms, 1),
            str(one.asked_again),
            report.number(one.rss_before_mib, 1),
            report.number(one.rss_after_mib, 1),
            report.number(one.per_cpu_second / peer.per_cpu_second if peer else None),
        ]
        for name, one in results.items()
    ]
    text = report.table(head, lines)
    for name, one in results.items():
        for failure, count in one.failures.items():
            text += f"\nPROBLEM {name}: {count} times: {failure}"
    for name, why in skipped.items():
        text += f"\nSKIPPED {name}: {why}"
    return text


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fleet", description=__doc__)
    parser.add_argument("--devices", type=int, default=10_000)
    parser.add_argument("--row", action="append", choices=ROWS, help="these rows (repeat)")
    parser.add_argument("--at-once", type=int, default=64, help="devices that enroll at one time")
    parser.add_argument("--processes", type=int, default=2, help="that the devices are in")
    parser.add_argument("--output", type=Path, help="where the JSON goes")
    return parser.parse_args()


def main() -> int:
    chosen = arguments()
    results: dict[str, Result] = {}
    skipped: dict[str, str] = {}
    with running() as harness:
        for name in chosen.row or ROWS:
            authority = ROWS[name](harness)
            why = authority.missing()
            if not why:
                try:
                    results[name] = measure(
                        authority, chosen.devices, chosen.at_once, chosen.processes
                    )
                except (BenchError, EdgeError) as error:
                    why = str(error)
                finally:
                    authority.stop()
            if why:
                skipped[name] = why
                say(f"SKIPPED {name}: {why}")
    print(show(results, skipped))
    path = report.save(
        {
            "machine": report.machine(),
            "rows": {name: asdict(one) for name, one in results.items()},
            "skipped": skipped,
        },
        "-fleet" if chosen.devices >= 10_000 and not chosen.row else "-fleet-part",
        chosen.output,
    )
    say(f"written to {path}")
    return 1 if skipped or any(one.failures for one in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
