"""`make demo`: a database reached through a relay, every claim shown. Needs only .venv."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMMAND = Path(sys.executable).with_name("ockam-edge")
WORD = "pomegranate"
INLET_PORT = 15432
ROWS = 1_000_000  # of 104 bytes: a bit more than 100 MB


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
    """One machine of the story: a home folder, an identity and a node, all of the same name."""

    def __init__(self, name: str, folder: Path, stack: contextlib.ExitStack, **env: str) -> None:
        self.name = name
        self.env = {
            "OCKAM_HOME": str(folder / name),
            "NO_INPUT": "true",
            "NO_COLOR": "true",
            **env,
        }
        self.identifier = ""
        stack.callback(self.end)

    def edge(
        self, *arguments: str, limit: float = 40, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        return call(COMMAND, *arguments, env=self.env, limit=limit, check=check)

    def identity(self, *options: str) -> None:
        self.edge("identity", "create", self.name, *options)
        shown = self.edge("identity", "show", self.name).stdout
        found = re.search(r"I[0-9a-f]{64}", shown)
        if found is None:
            raise Broken(f"`identity show {self.name}` shows no identifier: {shown!r}")
        self.identifier = found[0]

    def node(self, *options: str) -> None:
        self.edge("node", "create", self.name, "--identity", self.name, *options)

    def json(self, *arguments: str) -> object:
        return json.loads(self.edge(*arguments, "--output", "json").stdout or "null")

    def logged(self, words: str) -> str:
        """What its node logged last with these words in it."""
        file = Path(self.edge("node", "logs", self.name).stdout.strip())
        lines = file.read_text(errors="replace").splitlines() if file.is_file() else []
        return next((line for line in reversed(lines) if words in line), "")

    @property
    def pid(self) -> int:
        shown = self.json("node", "show", self.name)
        if not isinstance(shown, dict) or not isinstance(shown.get("pid"), int):
            raise Broken(f"`node show {self.name}` shows no process number")
        return int(shown["pid"])

    def end(self) -> None:
        with contextlib.suppress(Broken, OSError):
            self.edge("node", "delete", self.name, "--yes", limit=15, check=False)


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


class Demo:
    """The steps, in order."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.stack = stack
        self.story = Story()
        self.folder = Path(tempfile.mkdtemp(prefix="ockam-edge-demo-"))
        stack.callback(shutil.rmtree, self.folder, ignore_errors=True)

    def run(self) -> int:
        print(
            "A database behind a device without open ports, used through a relay that cannot read."
        )
        start = time.monotonic()
        self.parts()
        self.identities()
        self.nodes()
        self.tunnel()
        self.query()
        self.copy()
        self.proofs()
        self.sockets()
        self.refusals()
        self.recovery()
        story = self.story
        took = time.monotonic() - start
        print(f"\n{story.proven} claims proven, {len(story.failed)} failed, in {took:.0f} s")
        for text in story.failed:
            print(f"   ✘ {text}")
        return 1 if story.failed else 0

    def parts(self) -> None:
        story = self.story
        story.heading("The parts: a database, and a token for the device's key")
        self.database = Database(self.stack)
        port = self.database.port
        sql = f"CREATE TABLE basket AS SELECT i, '{WORD}' AS fruit FROM generate_series(1, 500) i"
        code, _, why = psql(port, sql)
        story.claim(code == 0, f"PostgreSQL runs on 127.0.0.1:{port}{why and ': ' + why}")
        printed = call("sh", ROOT / "softhsm-test/token.sh", "create", self.folder / "token").stdout
        given = dict(re.findall(r"^export (\w+)='(.*)'$", printed, re.MULTILINE))
        if "VAULT_URI" not in given:
            raise Broken(f"token.sh printed no vault URI: {printed!r}")
        self.uri, self.token = given["VAULT_URI"], given
        story.claim(True, "a SoftHSM token with the label `edge` is ready (PKCS#11, as a real one)")

    def identities(self) -> None:
        story = self.story
        story.heading(
            "Three machines, three identities (all on this computer, each in its own folder)"
        )
        self.hub = Person("hub", self.folder, self.stack)
        token = {"SOFTHSM2_CONF": self.token["SOFTHSM2_CONF"]}
        self.gateway = Person("gateway", self.folder, self.stack, **token)
        self.client = Person("client", self.folder, self.stack)
        self.hub.identity()
        self.gateway.identity("--vault", self.uri)
        self.client.identity()
        for person, role in (
            (self.hub, "only passes messages on"),
            (self.gateway, "the device; its key was made inside the token"),
            (self.client, "wants to use the database"),
        ):
            story.say(f"{person.name:8} {person.identifier}", f"{'':8} {role}")

    def nodes(self) -> None:
        story = self.story
        story.heading("Three nodes")
        self.hub_port = free_port()
        self.hub.node("--tcp-listener-address", f"127.0.0.1:{self.hub_port}")
        self.gateway.node("--no-tcp-listener")
        self.client.node("--no-tcp-listener")
        self.recorder = Recorder(self.hub_port, self.stack)
        self.at = f"/ip4/127.0.0.1/tcp/{self.recorder.port}/secure/api"
        story.claim(True, f"the hub listens on 127.0.0.1:{self.hub_port}; the two others nowhere")
        story.say(f"(They reach it through 127.0.0.1:{self.recorder.port}, a recorder.)")

    def tunnel(self) -> None:
        story = self.story
        story.heading("The tunnel: outlet and relay at the gateway, inlet at the client")
        self.gateway.edge(
            "tcp-outlet",
            "create",
            "--at",
            "gateway",
            "--to",
            f"127.0.0.1:{self.database.port}",
            "--allow",
            self.client.identifier,
        )
        story.say("gateway: tcp-outlet create --to <database> --allow <client>")
        self.gateway.edge(
            "relay",
            "create",
            "gateway",
            "--to",
            "gateway",
            "--at",
            self.at,
            "--authorized",
            self.hub.identifier,
        )
        story.say("gateway: relay create gateway --at /ip4/…/secure/api --authorized <hub>")
        self.route = f"{self.at}/service/forward_to_gateway/secure/api/service/outlet"
        self.port = free_port(INLET_PORT)
        if self.port != INLET_PORT:
            story.say(f"(port {INLET_PORT} is taken here, {self.port} is used instead)")
        self.client.edge(
            "tcp-inlet",
            "create",
            "--at",
            "client",
            "--from",
            f"127.0.0.1:{self.port}",
            "--authorized",
            self.gateway.identifier,
            "--to",
            self.route,
        )
        story.say(
            f"client:  tcp-inlet create --from {self.port} --authorized <gateway> --to …/outlet"
        )
        took = until("the tunnel answers", lambda: answers(self.port), 20)
        story.claim(True, f"psql -h 127.0.0.1 -p {self.port} answers, {took:.1f} s later")

    def query(self) -> None:
        story = self.story
        story.heading("A query through it, and what the hub could see of it")
        self.recorder.recorded.clear()
        self.recorder.recording = True
        _, answer, _ = psql(self.port, "SELECT i, fruit FROM basket ORDER BY i")
        held = memory_holds(self.hub.pid, WORD.encode(), b"forward_to_gateway")
        self.recorder.recording = False
        seen = b"".join(self.recorder.recorded)
        story.say("SELECT i, fruit FROM basket ORDER BY i;", *answer.splitlines()[:3], "…")
        count = answer.count(WORD)
        story.claim(count == 500, f"psql's answer holds the word `{WORD}` {count} times")
        story.claim(
            len(seen) > len(answer) and WORD.encode() not in seen,
            f"the hub's traffic meanwhile, both ways, {len(seen):,} bytes: the word is not in it",
        )
        if held is None:
            story.say("(The hub's memory was not searched: that takes root here.)")
        else:
            story.claim(
                not held[0] and held[1],
                "the hub's memory, searched right after: it has the relay's name, not the word",
            )
            story.say("(The hub undoes the outer channel only; it has no key for the one inside.)")

    def copy(self) -> None:
        story = self.story
        story.heading("100 MB through it, both ways")
        port = self.database.port
        psql(
            port,
            "CREATE UNLOGGED TABLE rows AS SELECT i, repeat(md5(i::text), 3) AS text "
            f"FROM generate_series(1, {ROWS}) i",
        )
        psql(port, "CREATE UNLOGGED TABLE filled (LIKE rows)")
        plain, plain_time = self.copied(port, "plain")
        there, took = self.copied(self.port, "there")
        size = there.stat().st_size / 1e6
        story.claim(
            size > 100 and digest(there) == digest(plain),
            f"COPY TO: {size:.0f} MB in {took:.1f} s, {size / took:.0f} MB/s; the same bytes as "
            f"without the tunnel ({size / plain_time:.0f} MB/s there)",
        )
        start = time.monotonic()
        code, _, why = psql(self.port, "COPY filled FROM STDIN", limit=60, fed=str(there))
        took = time.monotonic() - start
        _, right, _ = psql(port, "SELECT count(*) FROM filled JOIN rows USING (i, text)")
        story.claim(
            code == 0 and right == str(ROWS),
            f"COPY FROM: back in {took:.1f} s, {size / took:.0f} MB/s; {ROWS:,} rows, all right"
            f"{why and ': ' + why}",
        )

    def copied(self, port: int, name: str) -> tuple[Path, float]:
        """The table in a file, and the time that took."""
        file = self.folder / name
        start = time.monotonic()
        code, _, why = psql(port, "COPY rows TO STDOUT", limit=60, out=str(file))
        if code:
            raise Broken(f"COPY failed: {why}")
        return file, time.monotonic() - start

    def proofs(self) -> None:
        story = self.story
        story.heading("Who is who, and how each side knows")
        story.say(
            "An identifier is the hash of the first entry in an identity's history of keys. In every",
            "handshake each side shows its history and a channel key signed with its newest key,",
            "and proves (Noise XX) that it holds that channel key. Nobody else can do that.",
        )
        inlets = self.client.json("tcp-inlet", "list", "--at", "client")
        peers = [inlet.get("peer") for inlet in inlets] if isinstance(inlets, list) else []
        story.claim(
            peers == [self.gateway.identifier],
            f"the client's inlet ends at      {self.gateway.identifier[:17]}… (--authorized)",
        )
        story.claim(
            self.hub.identifier in self.gateway.logged("relay gateway: up"),
            f"the gateway's relay is held at  {self.hub.identifier[:17]}… (--authorized)",
        )
        outlets = json.dumps(self.gateway.json("tcp-outlet", "show", "outlet", "--at", "gateway"))
        story.claim(
            self.client.identifier in outlets,
            f"the gateway's outlet admits     {self.client.identifier[:17]}… only (--allow)",
        )
        self.key()

    def key(self) -> None:
        story = self.story
        module = re.search(r"module-path=([^&]*)", self.uri)
        pin = re.search(r"pin-source=file:([^&]*)", self.uri)
        if module is None or pin is None:
            raise Broken(f"no module-path or pin-source in {self.uri}")
        shown = call(
            "pkcs11-tool",
            "--module",
            module[1],
            "--token-label",
            "edge",
            "--login",
            "--pin",
            "env:DEMO_PIN",
            "--list-objects",
            "--type",
            "privkey",
            env={**self.gateway.env, "DEMO_PIN": Path(pin[1]).read_text().strip()},
        ).stdout
        story.say("The gateway's private key, as the token itself describes it (pkcs11-tool):")
        for line in shown.splitlines():
            if re.match(r"Private Key|\s+(label|Usage|Access):", line):
                story.say("   " + line.strip())
        story.claim(
            "Private Key" in shown and "never extractable" in shown and "sensitive" in shown,
            "it is in the token `edge` and can never leave it (sensitive, never extractable)",
        )

    def sockets(self) -> None:
        story = self.story
        story.heading("The gateway's listening sockets")
        pid = self.gateway.pid
        found = listening_sockets(pid)
        what = ", ".join(found) or "none, neither TCP nor UDP"
        story.claim(not found, f"process {pid}, in /proc/{pid}/net: {what}")
        if shutil.which("ss"):
            lines = call("ss", "-ltnpH").stdout.splitlines()
            mine = [line for line in lines if f"pid={pid}," in line]
            story.claim(
                not mine,
                f"`ss -ltnp`: {len(mine)} of the {len(lines)} listeners here are the gateway's",
            )
        story.say(
            "Its commands reach it over a unix socket in its home, which only its owner may open."
        )
        hub = listening_sockets(self.hub.pid)
        story.say(f"(The same look at the hub finds: {', '.join(hub) or 'nothing'}.)")

    def refusals(self) -> None:
        story = self.story
        story.heading("A stranger, and a thief of names")
        stranger = Person("stranger", self.folder, self.stack)
        stranger.identity()
        stranger.node("--no-tcp-listener")
        port = free_port()
        stranger.edge(
            "tcp-inlet",
            "create",
            "--at",
            "stranger",
            "--from",
            f"127.0.0.1:{port}",
            "--authorized",
            self.gateway.identifier,
            "--to",
            self.route,
            check=False,
        )
        code, answer, why = psql(port, "SELECT 1", limit=15)
        story.say(
            f"stranger {stranger.identifier[:17]}…: its own inlet to the same outlet, and psql:"
        )
        story.say(f"   {why.splitlines()[0] if why else answer}")
        refused = code != 0 and not answer
        logged = self.gateway.logged("is not allowed")
        story.say(f"the gateway's log: {logged.partition('outlet outlet: ')[2]}")
        story.claim(
            refused and stranger.identifier in logged,
            "the outlet refuses an identity that it does not name",
        )
        made = stranger.edge(
            "relay",
            "create",
            "gateway",
            "--to",
            "stranger",
            "--at",
            self.at,
            "--authorized",
            self.hub.identifier,
            limit=60,
            check=False,
        )
        listed = stranger.json("relay", "list", "--to", "stranger")
        relays = listed if isinstance(listed, list) else []
        up = [relay for relay in relays if relay.get("connection_status") == "Up"]
        why = made.stderr.strip() or " ".join(str(relay.get("last_failure")) for relay in relays)
        why = why.partition("\n")[0]
        story.say("stranger: relay create gateway --at <the hub>:", f"   {why}")
        logged = self.hub.logged("is refused")
        story.say(f"the hub's log: {logged[logged.find('relay ') :]}")
        story.claim(
            not up and stranger.identifier in logged,
            "the hub does not give the name `gateway` to another identity",
        )
        story.claim(answers(self.port, 10), "and the client's tunnel works as before")
        stranger.end()

    def recovery(self) -> None:
        story = self.story
        story.heading("The hub is killed (kill -9), and started again")
        pid = self.hub.pid
        os.kill(pid, signal.SIGKILL)
        until("the hub's end", lambda: not accepts(self.hub_port), 10)
        start = time.monotonic()
        code, _, why = psql(self.port, "SELECT 1", limit=25, patience=20)
        told = code not in (0, 124) and "timeout" not in why
        story.say(f"{why.splitlines()[0] if why else code}")
        story.claim(told, f"without it psql is told so in {time.monotonic() - start:.1f} s")
        time.sleep(2)
        self.hub.edge("node", "start", "hub")
        start = time.monotonic()
        until("the tunnel answers again", lambda: answers(self.port, 2), 30)
        took = time.monotonic() - start
        story.claim(took <= 5, f"the tunnel answers {took:.1f} s after the hub is back, by itself")
        story.claim(self.hub.pid != pid, "(the hub is another process now, with the same identity)")


@contextlib.contextmanager
def cleaning() -> Iterator[contextlib.ExitStack]:
    """Whatever happens, what was started is stopped; a second Ctrl-C does not hinder that."""

    def stop(number: int, _: object) -> None:
        raise KeyboardInterrupt(number)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGHUP, stop)
    stack = contextlib.ExitStack()
    try:
        yield stack
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        stack.close()


def main() -> int:
    for program in ("psql", "pkcs11-tool", "softhsm2-util"):
        if shutil.which(program) is None:
            print(f"error: {program} is missing; `make demo` installs it", file=sys.stderr)
            return 69
    try:
        with cleaning() as stack:
            return Demo(stack).run()
    except Broken as error:
        print(
            f"\n   ✘ {error}\nThe demonstration stopped here, and with it all that it had started."
        )
    except KeyboardInterrupt:
        print("\nstopped, and with it all that had been started")
    return 1


if __name__ == "__main__":
    sys.exit(main())
