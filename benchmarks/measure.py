"""The measurements: iperf3 both ways, a ping-pong, connections per second, crowds."""

from __future__ import annotations

import json
import socket
import sys
import time
from dataclasses import dataclass

from benchmarks.harness import (
    LOOPBACK,
    REQUEST,
    BenchError,
    Harness,
    kill_group,
    listening,
    wait_until,
)


class Targets:
    """The services at the far end of every row: an iperf3 server and the echo service."""

    def __init__(self, harness: Harness) -> None:
        self.harness = harness
        self.iperf = harness.port()
        self.echo = harness.port()
        harness.spawn([sys.executable, "-m", "benchmarks.echo", str(self.echo)], log="echo")
        self._start_iperf()
        wait_until("the echo service", lambda: listening(self.echo), 10)

    def _start_iperf(self) -> None:
        self._iperf = self.harness.spawn(
            ["iperf3", "-s", "-B", LOOPBACK, "-p", str(self.iperf)], log="iperf3"
        )
        time.sleep(0.3)
        if self._iperf.poll() is not None:
            raise BenchError("iperf3 -s does not start")

    def fresh_iperf(self) -> None:
        """A new server: one whose client failed may stay busy for good."""
        kill_group(self._iperf)
        self._start_iperf()


def throughput(targets: Targets, port: int, seconds: float, *, back: bool) -> float:
    """Gbit/s that arrived, by iperf3; `back` is from the far end towards us."""
    command = ["iperf3", "-c", LOOPBACK, "-p", str(port), "-t", f"{seconds:g}", "-O", "1", "-J"]
    try:
        report = json.loads(targets.harness.run(command + ["-R"] * back, limit=seconds + 21))
        return float(report["end"]["sum_received"]["bits_per_second"]) / 1e9
    except (BenchError, KeyError, ValueError) as error:
        targets.fresh_iperf()
        raise BenchError(f"iperf3{' -R' * back}: {error}") from None


def connect(port: int, limit: float = 10) -> socket.socket:
    client = socket.create_connection((LOOPBACK, port), timeout=limit)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client


def ask(client: socket.socket) -> None:
    """The request out, the same bytes back."""
    client.sendall(REQUEST)
    answer = client.recv(len(REQUEST))
    while len(answer) < len(REQUEST):
        more = client.recv(len(REQUEST) - len(answer))
        if not more:
            raise BenchError("the connection ended before the answer")
        answer += more
    if answer != REQUEST:
        raise BenchError("the answer is not what was sent")


@dataclass(frozen=True)
class Latency:
    p50_us: float
    p99_us: float


def latency(port: int, seconds: float) -> Latency:
    """Round trips of 64 bytes on one connection, one after the other."""
    times: list[int] = []
    clock = time.perf_counter_ns
    try:
        with connect(port) as client:
            for _ in range(200):
                ask(client)
            stop = clock() + int(seconds * 1e9)
            before = clock()
            while before < stop:
                ask(client)
                now = clock()
                times.append(now - before)
                before = now
    except OSError as error:
        raise BenchError(f"ping-pong: {error}") from None
    times.sort()
    return Latency(times[len(times) // 2] / 1e3, times[len(times) * 99 // 100] / 1e3)


def connections(port: int, *, seconds: float = 3600, count: int = 1_000_000) -> float:
    """Connections per second: connect, one request, its answer, close; one after the other."""
    start = time.monotonic()
    stop = start + seconds
    done = 0
    try:
        while done < count and time.monotonic() < stop:
            with connect(port) as client:
                ask(client)
            done += 1
    except OSError as error:
        raise BenchError(f"connection {done + 1}: {error}") from None
    return done / (time.monotonic() - start)


def parallel(port: int, count: int, limit: float = 60) -> float:
    """Seconds until `count` connections, all open at once, have each had their answer."""
    start = time.monotonic()
    clients: list[socket.socket] = []
    try:
        for _ in range(count):
            clients.append(connect(port, limit))
        for client in clients:
            client.sendall(REQUEST)
        for client in clients:
            answer = b""
            while len(answer) < len(REQUEST):
                more = client.recv(len(REQUEST) - len(answer))
                if not more:
                    raise BenchError(f"one of {count} parallel connections ended unanswered")
                answer += more
        return time.monotonic() - start
    except OSError as error:
        raise BenchError(f"{len(clients)} of {count} parallel connections: {error}") from None
    finally:
        for client in clients:
            client.close()
