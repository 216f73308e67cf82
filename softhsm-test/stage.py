"""What the demonstration stands on: words, processes, a database, a recorder, a look into memory."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pwd
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMMAND = Path(sys.executable).with_name("ockam-edge")


class Broken(Exception):
    """The demonstration cannot go on."""


# What a reader sees.


class Story:
    """Numbered steps, and a tick or a cross for each claim."""

    def __init__(self) -> None:
        self.step = 0
        self.proven = 0
        self.failed: list[str] = []

    def heading(self, text: str) -> None:
        self.step += 1
        print(f"\n{self.step}. {text}", flush=True)

    def say(self, *lines: str) -> None:
        for line in lines:
            print(f"     {line}", flush=True)

    def claim(self, true: object, text: str) -> None:
        if true:
            self.proven += 1
        else:
            self.failed.append(text)
        print(f"   {'✔' if true else '✘'} {text}", flush=True)


# Processes, all ended by the stack they were started on.


def call(
    *command: str | Path,
    env: Mapping[str, str] | None = None,
    limit: float = 30,
    check: bool = True,
    fed: str = "",
) -> subprocess.CompletedProcess[str]:
    """Run to the end, in `limit` seconds at most, fed with a file."""
    try:
        with open(fed or os.devnull) as stdin:
            done = subprocess.run(
                [str(part) for part in command],
                env={**os.environ, **(env or {})},
                stdin=stdin,
                capture_output=True,
                text=True,
                timeout=limit,
                check=False,
            )
    except subprocess.TimeoutExpired:
        if check:
            raise Broken(f"{Path(command[0]).name} took more than {limit:g} s") from None
        return subprocess.CompletedProcess(command, 124, "", f"no answer within {limit:g} s")
    if check and done.returncode:
        shown = " ".join(str(part) for part in command[:4])
        why = (done.stderr or done.stdout).strip()
        raise Broken(f"{shown} … ended with {done.returncode}: {why}")
    return done


def until(what: str, true: Callable[[], bool], limit: float, step: float = 0.05) -> float:
    """Wait for something; how long it took."""
    start = time.monotonic()
    while not true():
        if time.monotonic() - start > limit:
            raise Broken(f"{what}: not within {limit:g} s")
        time.sleep(step)
    return time.monotonic() - start


def free_port(wanted: int = 0) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            return free_port()
        return int(probe.getsockname()[1])


def accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


# The parts.


class Database:
    """A PostgreSQL server in a folder of its own, without a password, on loopback."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.bin = self._programs()
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="ockam-edge-demo-db-"))
        stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
        self.prefix: list[str] = []
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            user = pwd.getpwnam("postgres")
            os.chown(self.folder, user.pw_uid, user.pw_gid)
            self.prefix = ["runuser", "-u", "postgres", "--"]
        self.data = self.folder / "data"
        os.chdir("/")  # a folder that every user may stand in
        call(
            *self.prefix,
            self.bin / "initdb",
            "-D",
            self.data,
            "-A",
            "trust",
            "-U",
            "demo",
            "-E",
            "UTF8",
            "--no-sync",
            "--no-locale",
            limit=60,
        )
        log = self.folder / "log"
        stack.callback(self.stop)
        call(
            *self.prefix,
            self.bin / "pg_ctl",
            "-D",
            self.data,
            "-l",
            log,
            "-w",
            "-t",
            "30",
            "start",
            "-o",
            f"-h 127.0.0.1 -p {self.port} -k '' -F",
            limit=40,
        )

    @staticmethod
    def _programs() -> Path:
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
        if found:
            return found[-1].parent
        path = shutil.which("initdb")
        if path is None:
            raise Broken("PostgreSQL is not installed (Debian: apt-get install postgresql)")
        return Path(path).parent

    def stop(self) -> None:
        call(
            *self.prefix,
            self.bin / "pg_ctl",
            "-D",
            self.data,
            "-m",
            "immediate",
            "stop",
            check=False,
        )


def psql(
    port: int, sql: str, *, limit: float = 20, patience: int = 5, out: str = "", fed: str = ""
) -> tuple[int, str, str]:
    """psql's exit code, its answer (or the file `out` gets it) and its complaint."""
    done = call(
        "psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1",
        "-p", str(port), "-U", "demo", "-d", "postgres", "-c", sql, *(["-o", out] if out else []),
        env={
            "PGCONNECT_TIMEOUT": str(patience), "PGSSLMODE": "disable", "PGGSSENCMODE": "disable",
        },
        limit=limit,
        check=False,
        fed=fed,
    )  # fmt: skip
    return done.returncode, done.stdout.strip(), done.stderr.strip()


def answers(port: int, limit: float = 3) -> bool:
    return psql(port, "SELECT 1", limit=limit)[:2] == (0, "1")


class Person:
    """One machine of the story: a home folder of its own."""

    def __init__(self, name: str, folder: Path, stack: contextlib.ExitStack, **env: str) -> None:
        self.name = name
        self.env = {
            "OCKAM_HOME": str(folder / name),
            "NO_INPUT": "true",
            "NO_COLOR": "true",
            **env,
        }
        stack.callback(self.end)

    def edge(
        self, *arguments: str, limit: float = 40, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        return call(COMMAND, *arguments, env=self.env, limit=limit, check=check)

    def json(self, *arguments: str) -> object:
        return json.loads(self.edge(*arguments, "--output", "json").stdout or "null")

    @property
    def identifier(self) -> str:
        shown = self.edge("identity", "show").stdout.strip()
        if re.fullmatch(r"I[0-9a-f]{64}", shown) is None:
            raise Broken(f"`identity show` of {self.name} shows no identifier: {shown!r}")
        return shown

    def logged(self, *words: str) -> str:
        """What its node logged last with these words in it."""
        file = Path(self.edge("node", "logs").stdout.strip())
        lines = file.read_text(errors="replace").splitlines() if file.is_file() else []
        return next((line for line in reversed(lines) if all(w in line for w in words)), "")

    @property
    def pid(self) -> int:
        shown = self.json("node", "show")
        if not isinstance(shown, dict) or not isinstance(shown.get("pid"), int):
            raise Broken(f"`node show` of {self.name} shows no process number")
        return int(shown["pid"])

    def end(self) -> None:
        with contextlib.suppress(Broken, OSError):
            self.edge("node", "delete", "--all", "--yes", limit=15, check=False)


class Recorder:
    """Stands in front of the hub and passes every byte on, both ways; records while asked to."""

    def __init__(self, hub_port: int, stack: contextlib.ExitStack) -> None:
        self.hub_port = hub_port
        self.recording = False
        self.recorded: list[bytes] = []
        self.pairs: set[tuple[socket.socket, socket.socket]] = set()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listener.getsockname()[1])
        stack.callback(self.close)
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self.listener.close()
        for pair in list(self.pairs):
            self._end(pair)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            try:
                hub = socket.create_connection(("127.0.0.1", self.hub_port), 2)
            except OSError:
                client.close()
                continue
            pair = (client, hub)
            self.pairs.add(pair)
            for end in pair:
                end.settimeout(None)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for here, there in (pair, pair[::-1]):
                threading.Thread(target=self._pass, args=(pair, here, there), daemon=True).start()

    def _pass(
        self, pair: tuple[socket.socket, socket.socket], here: socket.socket, there: socket.socket
    ) -> None:
        room = bytearray(256 * 1024)
        view = memoryview(room)
        with contextlib.suppress(OSError):
            while n := here.recv_into(room):
                if self.recording:
                    self.recorded.append(bytes(view[:n]))
                there.sendall(view[:n])
        self._end(pair)

    def _end(self, pair: tuple[socket.socket, socket.socket]) -> None:
        self.pairs.discard(pair)
        for end in pair:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def listening_sockets(pid: int) -> list[str]:
    """Where a process accepts connections or datagrams over IP, by the kernel's own tables."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            match = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(link))
            if match:
                inodes.add(match[1])
    found = []
    for table, states in (("tcp", {"0A"}), ("tcp6", {"0A"}), ("udp", {"07"}), ("udp6", {"07"})):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
                field = line.split()
                if field[3] in states and field[9] in inodes:
                    found.append(f"{table} port {int(field[1].rpartition(':')[2], 16)}")
    return found


def memory_holds(pid: int, *words: bytes) -> list[bool] | None:
    """Whether each word is in a process's writable memory; None when we may not look."""
    found = [False] * len(words)
    try:
        place = Path(f"/proc/{pid}")
        with open(place / "maps") as maps, open(place / "mem", "rb", buffering=0) as memory:
            for line in maps:
                area, rights, *_ = line.split()
                if not rights.startswith("rw"):
                    continue
                low, high = (int(x, 16) for x in area.split("-"))
                with contextlib.suppress(OSError, ValueError, OverflowError):
                    memory.seek(low)
                    data = memory.read(high - low) or b""
                    found = [had or word in data for had, word in zip(found, words, strict=True)]
    except PermissionError:
        return None
    return found


def digest(file: Path) -> bytes:
    with open(file, "rb") as data:
        return hashlib.file_digest(data, "sha256").digest()
