"""`python -m benchmarks.herd`: the hub of a thousand agents goes away and comes back; when are they?

The hub is a node made by `ockam-edge project init`; the agents are simulated in a few processes
(benchmarks/agents.py), each with an identity and a credential of its own and a relay that only members
may have. Scenarios:

    killed     SIGKILL, and started again
    stopped    `node stop`, which says good-bye, and `node start`
    alone      killed, while the authority, a node of its own, is away before and after

All times count from when the restarted hub's port takes connections. A connection counts when the hub
has accepted it: the number of the hub's descriptors says so, ten times a second. When agents saw that
(the version byte came), and when the kernel took their connections, is counted apart.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import report
from benchmarks.harness import (
    BenchError,
    Harness,
    descendants,
    kill_pid,
    listening,
    rss_mib,
    running,
    wait_until,
)
from benchmarks.nodes import ENVIRONMENT, find_pid
from benchmarks.ours import program
from benchmarks.recovery import percentile

SPAN = 30.0
"""Seconds in which they are to be back, and over which the rate of connections is looked at."""
LIMIT = 180.0
"""Seconds after which whoever is not back is lost."""
SAMPLE = 0.1
Event = dict[str, Any]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Fleet:
    """A hub, its authority and its agents."""

    def __init__(self, harness: Harness, agents: int, processes: int, apart: bool) -> None:
        """`apart`: the authority is a node of its own."""
        self.harness, self.agents, self.processes, self.apart = harness, agents, processes, apart
        self.home = harness.sub("fleet-apart" if apart else "fleet")
        self.port = harness.port()
        self._read: dict[Path, int] = {}
        self.events: list[Event] = []
        self._up: set[int] = set()
        self.idle_mib = 0.0

    def cli(self, *arguments: str) -> str:
        return self.harness.run([*program(), *arguments], env=self.environment(), limit=90)

    def environment(self) -> Mapping[str, str]:
        kept = {
            name: os.environ[name] for name in (*ENVIRONMENT, "PYTHONPATH") if name in os.environ
        }
        return kept | {"OCKAM_HOME": str(self.home), "NO_COLOR": "true"}

    def start(self) -> None:
        """The hub, then the agents; returns when all are up."""
        if self.apart:
            self._authority()
        else:
            self.cli("project", "init", "plant", "--address", f"127.0.0.1:{self.port}")
        self.pid = self._pid()
        self.idle_mib = rss_mib(self.pid)
        ticket = self.cli(
            "project", "ticket", "--relay", "*", "--usage-count", str(self.agents),
            "--expires-in", "1d",
        )  # fmt: skip
        self._spawn(ticket.strip())
        wait_until("all agents to be up", self.all_up, 120 + self.agents / 5, step=0.1)

    def _authority(self) -> None:
        """One node says who is a member, another one is the hub."""
        port = self.harness.port()
        for name in ("boss", "authority"):
            self.cli("identity", "create", name)
        boss = self.cli("identity", "show", "boss").split()[0]
        self.cli(
            "authority", "create", "--project-identifier", "plant", "--identity", "authority",
            "--tcp-listener-address", f"127.0.0.1:{port}",
            "--trusted-identities", json.dumps({boss: {"ockam-role": "enroller"}}),
        )  # fmt: skip
        history = self.cli("identity", "show", "authority", "--full", "--encoding", "hex")
        self.cli(
            "project", "init", "plant", "--address", f"127.0.0.1:{self.port}",
            "--authority-identity", history.split()[-1],
            "--authority-route", f"/ip4/127.0.0.1/tcp/{port}/service/api",
        )  # fmt: skip
        hub = self.cli("identity", "show", "plant").split()[0]
        self.cli("project-member", "add", hub)

    def _spawn(self, ticket: str) -> None:
        each = -(-self.agents // self.processes)
        for first in range(0, self.agents, each):
            events = self.home / f"events-{first}"
            events.touch()
            self._read[events] = 0
            process = self.harness.spawn(
                [sys.executable, "-m", "benchmarks.agents"],
                env=self.environment(),
                log=f"{self.home.name}-agents-{first}",
                order=json.dumps(
                    {
                        "ticket": ticket,
                        "first": first,
                        "count": min(each, self.agents - first),
                        "events": str(events),
                    }
                ),
            )
            say(f"agents from {first}: process {process.pid}")

    def _pid(self) -> int:
        found = find_pid(json.loads(self.cli("node", "show", "plant", "--output", "json")))
        if found is None:
            raise BenchError("`node show plant` tells no process number")
        return found

    def look(self) -> None:
        """Read what has happened since."""
        for file, place in self._read.items():
            with file.open("rb") as source:
                source.seek(place)
                data = source.read()
            end = data.rfind(b"\n") + 1
            self._read[file] = place + end
            for event in map(json.loads, data[:end].splitlines()):
                self.events.append(event)
                if event["what"] == "up":
                    self._up.add(event["whose"])
                elif event["what"] == "down":
                    self._up.discard(event["whose"])

    def all_up(self) -> bool:
        self.look()
        return len(self._up) == self.agents

    def all_down(self) -> bool:
        self.look()
        return not self._up

    def outage(self, seconds: float, *, orderly: bool) -> tuple[float, list[Cost]]:
        """Away for so long; when the port was open again, and what the hub took until it was found."""
        if orderly:
            self.cli("node", "stop", "plant")
        else:
            kill_pid(self.pid)
        wait_until("the agents to notice", self.all_down, 60)
        time.sleep(seconds)
        self.look()
        self.events.clear()
        process = self.harness.spawn(
            [*program(), "node", "start", "plant"], env=self.environment(), log="start"
        )
        wait_until("the hub to listen", lambda: listening(self.port), 60, step=0.002)
        back = time.monotonic()
        self.pid = hub_at(self.home)
        costs = [cost(self.pid)]
        while process.poll() is None:
            costs.append(cost(self.pid))
            time.sleep(SAMPLE)
        if process.returncode:
            raise BenchError(f"`node start plant` exited with {process.returncode}")
        return back, costs


def hub_at(home: Path) -> int:
    """The process of the hub, which the command has not told yet."""
    for pid in descendants(os.getpid()):
        with suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if b"edge.node.service" in words and {os.fsencode(home), b"plant"} <= set(words):
                return pid
    raise BenchError("the hub listens, and its process is not to be found")


class Cost(NamedTuple):
    """Of the hub at some moment."""

    at: float
    cpu_s: float
    rss_mib: float
    files: int


def cost(pid: int) -> Cost:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks = int(fields[11]) + int(fields[12])
    files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return Cost(time.monotonic(), ticks / os.sysconf("SC_CLK_TCK"), rss_mib(pid), files)


def measure(fleet: Fleet, outage: float, *, orderly: bool) -> dict[str, object]:
    """One restart: how they came back, and what it cost the hub."""
    back, costs = fleet.outage(outage, orderly=orderly)
    while time.monotonic() < back + LIMIT:
        costs.append(cost(fleet.pid))
        if fleet.all_up() and time.monotonic() > back + SPAN:
            break
        time.sleep(SAMPLE)
    fleet.look()
    found = summary(fleet.events, back, fleet.agents)
    return found | {"accepted": accepted(costs), "hub": spent(costs, back)}


def accepted(costs: list[Cost]) -> dict[str, float]:
    """Connections per second that the hub accepted, by its descriptors: the highest rate over a second
    or a little more, the mean over the span, and their ratio."""
    peak, begin = 0.0, 0
    within = [one for one in costs if one.at <= costs[0].at + SPAN]
    for one in within:
        while one.at - within[begin + 1].at >= 1.0:
            begin += 1
        passed = max(one.at - within[begin].at, 1.0)
        peak = max(peak, (one.files - within[begin].files) / passed)
    mean = (within[-1].files - within[0].files) / SPAN
    return {
        "count": within[-1].files - within[0].files,
        "peak": round(peak, 1),
        "mean": round(mean, 2),
        "ratio": round(peak / mean, 2) if mean else 0.0,
    }


def spent(costs: list[Cost], back: float) -> dict[str, float]:
    """What it cost the hub, the processor over the span."""
    within = [one for one in costs if one.at <= back + SPAN]
    steps = itertools.pairwise(within)
    busiest = max(((b.cpu_s - a.cpu_s) / (b.at - a.at) for a, b in steps), default=0.0)
    return {
        "cpu_s": round(within[-1].cpu_s, 2),
        "busiest": round(busiest, 2),
        "rss_mib": round(costs[-1].rss_mib, 1),
        "files": costs[-1].files,
    }


def rates(moments: list[float], back: float) -> dict[str, object]:
    """Per window of 1 s over the span: the highest number, the mean, and their ratio. The windows of
    the highest one begin at any moment, not at full seconds."""
    ordered = sorted(at - back for at in moments if 0 <= at - back < SPAN)
    peak, begin = 0, 0
    for end, at in enumerate(ordered):
        while at - ordered[begin] >= 1.0:
            begin += 1
        peak = max(peak, end - begin + 1)
    mean = len(ordered) / SPAN
    counted = Counter(int(at) for at in ordered)
    return {
        "count": len(ordered),
        "per_second": [counted[second] for second in range(int(SPAN))],
        "peak": peak,
        "mean": round(mean, 2),
        "ratio": round(peak / mean, 2) if mean else None,
    }


def summary(events: list[Event], back: float, agents: int) -> dict[str, object]:
    """Of what happened since `back`."""
    since = [event for event in events if event["at"] >= back]
    first: dict[int, float] = {}
    for event in sorted(since, key=lambda one: float(one["at"])):
        if event["what"] == "up":
            first.setdefault(event["whose"], event["at"] - back)
    took = sorted(first.values())
    answers = [event["after"] for event in since if event["what"] == "answer"]
    ends = Counter(event["whose"] for event in since if event["what"] == "down")
    return {
        "back": len(took),
        "lost": agents - len(took),
        "p50_s": percentile(took, 0.5),
        "p95_s": percentile(took, 0.95),
        "max_s": max(took, default=None),
        "within_span": sum(at <= SPAN for at in took),
        "down_again": ends.total(),
        "failures": dict(Counter(e["why"] for e in since if e["what"] == "failed").most_common(5)),
        "greeted": rates([e["at"] for e in since if e["what"] == "accepted"], back),
        "connected": rates([e["at"] for e in since if e["what"] == "connected"], back),
        "answer_p50_ms": _ms(percentile(answers, 0.5)),
        "answer_max_ms": _ms(max(answers, default=None)),
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(1000 * seconds, 1)


def line(name: str, outage: float, found: dict[str, Any]) -> list[str]:
    accepted, hub = found["accepted"], found["hub"]
    return [
        name, f"{outage:g} s", str(found["back"]), str(found["lost"]),
        report.number(found["p50_s"]), report.number(found["p95_s"]),
        report.number(found["max_s"]),
        report.number(accepted["peak"], 0), report.number(accepted["ratio"]),
        str(found["greeted"]["peak"]), str(found["connected"]["peak"]),
        report.number(found["answer_max_ms"], 0),
        report.number(hub["cpu_s"], 1), report.number(hub["rss_mib"], 0), str(hub["files"]),
    ]  # fmt: skip


HEAD = [
    "scenario", "outage", "back", "lost", "p50 s", "p95 s", "max s", "peak/s", "/mean",
    "agents' peak/s", "kernel peak/s", "answer max ms", "cpu s", "MiB", "files",
]  # fmt: skip


def run(
    scenarios: list[str], outages: list[float], agents: int, processes: int, harness: Harness
) -> tuple[list[list[str]], list[dict[str, Any]]]:
    lines, found = [], []
    for apart in (False, True):
        wanted = [name for name in scenarios if (name == "alone") == apart]
        if not wanted:
            continue
        fleet = Fleet(harness, agents, processes, apart)
        fleet.start()
        full = cost(fleet.pid)
        each = (full.rss_mib - fleet.idle_mib) * 1024 / agents
        say(f"{agents} agents are up: the hub has {full.rss_mib:.0f} MiB, {each:.1f} KiB for each")
        for name in wanted:
            if name == "alone":
                fleet.cli("node", "stop", "authority-plant")
            for outage in outages:
                one = measure(fleet, outage, orderly=name == "stopped")
                one |= {"scenario": name, "outage_s": outage}
                one |= {"idle_mib": fleet.idle_mib, "kib_per_agent": round(each, 1)}
                found.append(one)
                lines.append(line(name, outage, one))
                say("  ".join(lines[-1]))
    return lines, found


def good(one: dict[str, Any]) -> bool:
    """All back in time. For the rate it takes a thousand: fewer may come faster than a mean over 30 s
    that they themselves make small."""
    steady = one["accepted"]["count"] < 900 or one["accepted"]["ratio"] <= 3
    return one["lost"] == 0 and one["max_s"] <= SPAN and bool(steady)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.herd")
    parser.add_argument("--agents", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=2, help="of agents")
    parser.add_argument("--outages", default="1,10", help="seconds, separated by commas")
    parser.add_argument("--scenario", action="append", choices=("killed", "stopped", "alone"))
    parser.add_argument("--output", type=Path, help="where the JSON goes")
    chosen = parser.parse_args()
    scenarios = chosen.scenario or ["killed", "stopped", "alone"]
    outages = [float(part) for part in chosen.outages.split(",")]
    machine = report.machine()
    with running() as harness:
        lines, found = run(scenarios, outages, chosen.agents, chosen.processes, harness)
    print(report.table(HEAD, lines))
    print(
        "\nFrom the hub's port taking connections until each relay is up again. Peaks: connections per "
        f"1 s, accepted by the hub, seen by agents, taken by the kernel; mean: over {SPAN:g} s."
    )
    rows = {"agents": chosen.agents, "processes": chosen.processes, "runs": found}
    say(f"written to {report.save({'machine': machine, **rows}, '-herd', chosen.output)}")
    return 0 if all(map(good, found)) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        say("stopped; everything it started is gone")
        sys.exit(130)
    except BenchError as error:
        say(f"error: {error}")
        sys.exit(1)
