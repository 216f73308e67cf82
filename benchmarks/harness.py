"""What a measurement starts and how it ends: processes, folders, free ports, waits with a limit.

The harness is a *subreaper*: whatever it starts, directly or through a command that puts itself into
the background, stays below it in the process tree and is killed when the harness closes, also on
Ctrl-C.
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

PR_SET_CHILD_SUBREAPER = 36
LOOPBACK = "127.0.0.1"
REQUEST = bytes(range(64))


class BenchError(Exception):
    """A row cannot be measured; the text says why. The other rows go on."""


class Harness:
    """Owns every process and folder of a run."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="edge-bench-"))
        self._ports: set[int] = set()
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def sub(self, name: str) -> Path:
        path = self.folder / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def port(self) -> int:
        """A free port of loopback, below the range the kernel takes outgoing ports from."""
        while True:
            port = 10_000 + int.from_bytes(os.urandom(2), "big") % 20_000
            if port in self._ports:
                continue
            with socket.socket() as probe:
                try:
                    probe.bind((LOOPBACK, port))
                except OSError:
                    continue
            self._ports.add(port)
            return port

    def spawn(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        log: str,
        order: str = "",
    ) -> subprocess.Popen[bytes]:
        """A process in the background, in a group of its own, writing to a file in our folder. `order`
        is what it reads on standard input: a secret has no place on a command line."""
        with (
            open(self.folder / f"{log}.log", "ab") as out,
            tempfile.TemporaryFile(dir=self.folder) as given,
        ):
            given.write(order.encode())
            given.seek(0)
            return subprocess.Popen(
                command, env=env, stdin=given, stdout=out, stderr=out, start_new_session=True
            )

    def run(
        self, command: Sequence[str], *, env: Mapping[str, str] | None = None, limit: float = 30
    ) -> str:
        """A command to its end; its output. A background process that keeps our pipe open must not
        hold us, so the output goes through a file."""
        with (
            tempfile.TemporaryFile(dir=self.folder) as out,
            tempfile.TemporaryFile(dir=self.folder) as errors,
        ):
            process = subprocess.Popen(
                command,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=errors,
                start_new_session=True,
            )
            try:
                code = process.wait(limit)
            except subprocess.TimeoutExpired:
                kill_group(process)
                raise BenchError(f"`{' '.join(command)}` took more than {limit:g} s") from None
            except BaseException:
                kill_group(process)
                raise
            out.seek(0)
            text = out.read().decode(errors="replace")
            if code:
                errors.seek(0)
                said = (errors.read().decode(errors="replace").strip() or text.strip())[-600:]
                raise BenchError(f"`{' '.join(command)}` exited with {code}: {said}")
            return text

    def close(self) -> None:
        """Kill what is below us until nothing is, then remove the folder."""
        stop = time.monotonic() + 10
        while time.monotonic() < stop:
            below = descendants(os.getpid())
            if not below:
                break
            for pid in below:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            with suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            time.sleep(0.02)
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def running() -> Iterator[Harness]:
    """The harness for a `with`; SIGTERM and SIGHUP end it as Ctrl-C does."""

    def stop(number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    harness = Harness()
    try:
        yield harness
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        harness.close()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number, handler in before.items():
            signal.signal(number, handler)


def kill_group(process: subprocess.Popen[bytes], limit: float = 5) -> None:
    """Kill a process we started, with its group, and wait for it."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        process.wait(limit)


def kill_pid(pid: int, limit: float = 5) -> None:
    """Kill one process by its number and wait until it is gone."""
    stop = time.monotonic() + limit
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    while alive(pid):
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
        if time.monotonic() > stop:
            raise BenchError(f"process {pid} does not end")
        time.sleep(0.002)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def descendants(root: int) -> list[int]:
    """The processes below `root`, from /proc."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found: list[int] = []
    queue = [root]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def rss_mib(pid: int) -> float:
    """VmRSS of a process."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return 0.0


def wait_until(what: str, ready: Callable[[], bool], limit: float, step: float = 0.01) -> None:
    stop = time.monotonic() + limit
    while not ready():
        if time.monotonic() > stop:
            raise BenchError(f"waited {limit:g} s for {what}")
        time.sleep(step)


def listening(port: int) -> bool:
    """Does something accept connections on this port of loopback?"""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((LOOPBACK, port)) == 0


def first_byte(port: int, limit: float) -> float:
    """When (time.monotonic) the first byte of an answer came back from the echo service behind `port`.

    A tunnel that is not up may refuse, accept and close, or accept and stay silent; so an attempt that
    stays silent is joined by another one after 50 ms, and the first answer counts.
    """
    stop = time.monotonic() + limit
    poll = select.poll()
    attempts: dict[int, socket.socket] = {}
    last = 0.0

    def drop(number: int) -> None:
        poll.unregister(number)
        attempts.pop(number).close()

    try:
        while (now := time.monotonic()) < stop:
            if (not attempts or now - last > 0.05) and len(attempts) < 64:
                last = now
                attempt = socket.socket()
                attempt.settimeout(0.2)
                try:
                    attempt.connect((LOOPBACK, port))
                    attempt.sendall(REQUEST)
                except OSError:
                    attempt.close()
                else:
                    attempts[attempt.fileno()] = attempt
                    poll.register(attempt, select.POLLIN)
            for number, _events in poll.poll(2):
                try:
                    answer = attempts[number].recv(len(REQUEST))
                except OSError:
                    answer = b""
                if answer:
                    return time.monotonic()
                drop(number)
        raise BenchError(f"nothing came back through port {port} for {limit:g} s")
    finally:
        for attempt in attempts.values():
            attempt.close()
