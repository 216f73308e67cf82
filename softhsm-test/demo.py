"""`make demo`: a fleet in three commands, a database behind it, every claim shown. Needs only .venv."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from stage import (
    ROOT,
    Broken,
    Database,
    Person,
    Recorder,
    Story,
    accepts,
    answers,
    call,
    digest,
    free_port,
    listening_sockets,
    memory_holds,
    psql,
    until,
)

WORD = "pomegranate"
INLET_PORT = 15432
ROWS = 1_000_000  # of 104 bytes: a bit more than 100 MB


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
        self.fleet()
        self.gateway_joins()
        self.client_joins()
        self.query()
        self.copy()
        self.proofs()
        self.sockets()
        self.refusals()
        self.revocation()
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

    def fleet(self) -> None:
        story = self.story
        story.heading("One command makes a fleet: its authority, its hub, its first enroller")
        self.hub = Person("hub", self.folder, self.stack)
        self.hub_port = free_port()
        self.recorder = Recorder(self.hub_port, self.stack)
        address, listen = f"127.0.0.1:{self.recorder.port}", f"127.0.0.1:{self.hub_port}"
        self.hub.edge("project", "init", "plant", "--address", address, "--listen", listen)
        story.say(
            f"hub:     project init plant --address {address}",
            "(That address is a recorder in front of the hub. All machines are on this computer,",
            "each in a folder of its own.)",
        )
        story.claim(accepts(self.hub_port), f"the hub listens on {listen}")

    def ticket(self, *options: str) -> str:
        return self.hub.edge("project", "ticket", *options).stdout.strip()

    def gateway_joins(self) -> None:
        story = self.story
        story.heading("The device: a key made inside the token, a ticket, an outlet")
        env = {"SOFTHSM2_CONF": self.token["SOFTHSM2_CONF"]}
        self.gateway = gateway = Person("gateway", self.folder, self.stack, **env)
        gateway.edge("identity", "create", "gateway", "--vault", self.uri)
        ticket = self.ticket("--relay", "default")
        story.say("hub:     project ticket --relay default > ticket")
        gateway.edge("project", "enroll", ticket)
        to = f"127.0.0.1:{self.database.port}"
        gateway.edge("relay", "create")
        gateway.edge("tcp-outlet", "create", "postgres", "--to", to, "--allow", "postgres-inlet")
        story.say(
            "gateway: project enroll ticket",
            "gateway: relay create",
            f"gateway: tcp-outlet create postgres --to {to} --allow postgres-inlet",
        )
        again = gateway.edge("project", "enroll", ticket, check=False)
        story.claim(
            again.returncode == 0 and "already" in again.stderr,
            "enrolling twice is harmless",
        )
        thief = Person("thief", self.folder, self.stack)
        spent = thief.edge("project", "enroll", ticket, check=False)
        why = complaint(spent.stderr)
        story.claim(spent.returncode and "used up" in why, f"the ticket is spent: {why}")

    def client_joins(self) -> None:
        story = self.story
        story.heading("Whoever wants the database: a ticket with an attribute, and an inlet")
        self.client = client = Person("client", self.folder, self.stack)
        client.edge("project", "enroll", self.ticket("--attribute", "postgres-inlet"))
        self.port = free_port(INLET_PORT)
        if self.port != INLET_PORT:
            story.say(f"(port {INLET_PORT} is taken here, {self.port} is used instead)")
        client.edge("tcp-inlet", "create", "--from", f"127.0.0.1:{self.port}", "--to", "postgres")
        story.say(
            "hub:     project ticket --attribute postgres-inlet > ticket",
            "client:  project enroll ticket",
            f"client:  tcp-inlet create --from {self.port} --to postgres",
        )
        took = until("the tunnel answers", lambda: answers(self.port), 20)
        story.claim(True, f"psql -h 127.0.0.1 -p {self.port} answers, {took:.1f} s later")

    def query(self) -> None:
        story = self.story
        story.heading("A query through it, and what the hub could see of it")
        self.recorder.recorded.clear()
        self.recorder.recording = True
        _, answer, _ = psql(self.port, "SELECT i, fruit FROM basket ORDER BY i")
        held = memory_holds(self.hub.pid, WORD.encode(), b"forward_to_default")
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
            "proves (Noise XX) that it holds that key, and shows what the authority says of it.",
        )
        hub, gateway, client = (
            person.identifier for person in (self.hub_identity(), self.gateway, self.client)
        )
        inlets = self.client.json("tcp-inlet", "list")
        peers = [inlet.get("peer") for inlet in inlets] if isinstance(inlets, list) else []
        story.claim(
            peers == [gateway], f"the client's inlet ends at      {gateway[:17]}…, a member"
        )
        story.claim(
            hub in self.gateway.logged("relay default: up"),
            f"the gateway's relay is held at  {hub[:17]}…, the hub that the ticket named",
        )
        said = self.gateway.json("policy", "check", client, "--resource", "postgres")
        story.claim(
            isinstance(said, dict) and said.get("allowed"),
            f"the gateway's outlet admits     {client[:17]}…: it has postgres-inlet",
        )
        said = self.gateway.json("policy", "check", hub, "--resource", "postgres")
        why = said.get("reason") if isinstance(said, dict) else said
        story.claim(why, f"and would refuse the hub itself: {why}")
        self.key()

    def hub_identity(self) -> Person:
        """The hub's default identity is the enroller's; its node is another one."""
        return _Named(self.hub, "plant")

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
        story.heading("A stranger, a member without the attribute, and a thief of names")
        guest = Person("guest", self.folder, self.stack)
        guest.edge("project", "enroll", self.ticket())
        port = free_port()
        guest.edge("tcp-inlet", "create", "--from", f"127.0.0.1:{port}", "--to", "postgres")
        code, answer, why = psql(port, "SELECT 1", limit=20)
        story.say("guest, a member without attributes: its own inlet to postgres, and psql:")
        story.say(f"   {why.splitlines()[0] if why else answer}")
        logged = self.gateway.logged("refused", guest.identifier)
        story.say(f"the gateway's log: {logged.partition(': ')[2]}")
        story.claim(code and "postgres-inlet" in logged, "refused, and the log names the clause")
        stolen = guest.edge("relay", "create", "default", limit=60, check=False)
        why = (stolen.stderr or stolen.stdout).strip().partition("\n")[0]
        story.say("guest: relay create default:", f"   {why}")
        logged = self.hub.logged("relay", guest.identifier)
        story.claim(logged, "the hub gives relay names only to members with the right")
        stranger = Person("stranger", self.folder, self.stack)
        stranger.edge("identity", "create", "stranger")
        model = self.folder / "plant.json"
        model.write_text(self.hub.edge("project", "show", "plant").stdout)
        stranger.edge("project", "import", "--project-file", str(model))
        lost = stranger.edge("project", "enroll", check=False)
        why = complaint(lost.stderr)
        story.claim(lost.returncode and "member" in why, f"a stranger with the project file: {why}")
        story.claim(answers(self.port, 10), "and the client's tunnel works as before")
        guest.end()

    def revocation(self) -> None:
        story = self.story
        story.heading("A member is removed")
        leaver = Person("leaver", self.folder, self.stack)
        leaver.edge("project", "enroll", self.ticket("--attribute", "postgres-inlet"))
        port = free_port()
        leaver.edge("tcp-inlet", "create", "--from", f"127.0.0.1:{port}", "--to", "postgres")
        until("the leaver's tunnel answers", lambda: answers(port), 20)
        self.hub.edge("project-member", "delete", leaver.identifier)
        start = time.monotonic()
        until("the leaver is cut off", lambda: not answers(port, 4), 15)
        took = time.monotonic() - start
        story.claim(took <= 5, f"project-member delete: its tunnel is dead {took:.1f} s later")
        story.claim(answers(self.port, 10), "and the client's is not")
        leaver.end()

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
        self.hub.edge("node", "start", "plant")
        start = time.monotonic()
        until("the tunnel answers again", lambda: answers(self.port, 2), 30)
        took = time.monotonic() - start
        story.claim(took <= 5, f"the tunnel answers {took:.1f} s after the hub is back, by itself")
        story.claim(self.hub.pid != pid, "(the hub is another process now, with the same identity)")


def complaint(stderr: str) -> str:
    """The line that says why a command failed."""
    return next((line for line in stderr.splitlines() if line.startswith("error: ")), stderr)


class _Named(Person):
    """The same machine, and an identity that is not its default one."""

    def __init__(self, person: Person, identity: str) -> None:
        self.name, self.env, self._identity = person.name, person.env, identity

    @property
    def identifier(self) -> str:
        return self.edge("identity", "show", self._identity).stdout.strip()


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
