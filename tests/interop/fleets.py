"""A fleet of both kinds: an authority, a hub of ours, two enrollers and four members."""

import contextlib
import json
import socket
import time
from pathlib import Path

from tests.interop.nodes import Node, Ours, Stock, free_port, until
from tests.interop.services import Server, ping, read

KINDS = ("ours", "stock")
LIFETIME = 75
"""Seconds that a credential lives. Stock takes one that ends within 60 s for expired, and asks for
another one until it gets it; it asks from 120 s before the end on, every 10 s."""
CHECKS = ("relay right", "allow", "deny", "refresh", "expiry")


def place(kind: str, name: str, folder: Path) -> Node:
    """A home of its own, without a node so far."""
    return {"stock": Stock, "ours": Ours}[kind](name, folder / f"{kind}-{name}")


def with_identity(node: Node, name: str) -> str:
    """Its identifier."""
    node.run("identity", "create", name)
    node.identifier = node.run("identity", "show", name).strip()
    return node.identifier


class Member:
    """A node enrolled by a ticket, with its relay, and an outlet that asks for the other's `unit`."""

    def __init__(self, fleet: "Fleet", enroller: str, kind: str) -> None:
        self.name, self.enroller, self.kind = f"{enroller}-{kind}", enroller, kind
        self.node = place(kind, self.name, fleet.folder)
        self.other = f"{enroller}-{'stock' if kind == 'ours' else 'ours'}"
        self.allowed = self.denied = 0

    def join(self, fleet: "Fleet") -> None:
        node = self.node
        ticket = fleet.bosses[self.enroller].run(
            "project", "ticket", "-a", f"unit={self.name}", "--relay", self.name
        )
        with_identity(node, self.name)
        node.run("project", "enroll", ticket.strip())
        node.port = free_port() if self.kind == "stock" else 0
        node.create()
        for name, unit in (("web", self.other), ("shut", "nobody")):
            node.run(
                "tcp-outlet", "create", name, "--at", self.name, "--allow", f"unit={unit}",
                "--to", f"127.0.0.1:{fleet.server.port}",
            )  # fmt: skip
        node.run("relay", "create", self.name, "--to", self.name)

    def reach(self) -> None:
        """The commands as the README has them, through project and relay."""
        self.allowed, self.denied = (self._inlet(service) for service in ("web", "shut"))

    def _inlet(self, service: str) -> int:
        port = free_port()
        self.node.run(
            "tcp-inlet", "create", "--at", self.name, "--from", str(port), "--to", service,
            "--via", self.other,
        )  # fmt: skip
        return port

    def relay_up(self, name: str) -> bool:
        listed = json.loads(
            self.node.run("relay", "list", "--to", self.name, "--output", "json") or "[]"
        )
        return any(item["name"] == name and item["connection_status"] == "Up" for item in listed)


class Held:
    """A connection through an inlet that stays open, and says once whether it still carries."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self._socket.sendall(b"b")

    def carries(self, patience: float = 3.0) -> bool:
        with self._socket as held, contextlib.suppress(OSError, AssertionError):
            held.settimeout(patience)
            held.sendall(bytes(2))
            return len(read(held, 32)) == 32
        return False


class Fleet:
    """Everybody, in homes of their own under `folder`."""

    def __init__(self, kind: str, folder: Path, server: Server) -> None:
        self.kind, self.folder, self.server = kind, folder, server
        self.authority = place(kind, "authority", folder)
        self.hub = place("ours", "plant", folder)
        self.bosses = {kind: place(kind, "boss", folder) for kind in KINDS}
        self.members = {
            member.name: member for member in (Member(self, a, b) for a in KINDS for b in KINDS)
        }
        self.held: dict[str, Held] = {}
        self.found: dict[tuple[str, str], str] = {}
        self.since = 0.0
        self.ended = False

    def start(self) -> None:
        self._found()
        for member in self.members.values():
            member.join(self)
        for member in self.members.values():
            member.reach()
            until("the way through", lambda: ping(member.allowed, 3), 40)  # noqa: B023
        self._hold()

    def end(self) -> None:
        everybody = [member.node for member in self.members.values()]
        for node in (*everybody, self.hub, self.authority, *self.bosses.values()):
            node.end()

    def _found(self) -> None:
        enroller = {"ockam-role": "enroller"}
        trusted = {with_identity(boss, "boss"): enroller for boss in self.bosses.values()}
        trusted[with_identity(self.hub, "plant")] = {}
        history = self._authority(json.dumps(trusted))
        self.hub.run(
            "project", "init", "plant", "--address", f"127.0.0.1:{free_port()}",
            "--authority-identity", history, "--authority-route", f"{self.authority.at}/service/api",
        )  # fmt: skip
        file = self.folder / "plant.json"
        file.write_text(self.hub.run("project", "show", "plant"))
        for boss in self.bosses.values():
            boss.run("project", "import", "--project-file", str(file))

    def _authority(self, trusted: str) -> str:
        """Start it, with credentials that live LIFETIME; its history."""
        node, name = self.authority, "authority-plant"
        node.port = free_port()
        lifetime = ["--credential-lifetime", f"{LIFETIME}s"] if self.kind == "ours" else []
        node.quiet = {**node.quiet, "CREDENTIAL_TTL_SECS": str(LIFETIME)}  # how stock is told
        node.run(
            "authority", "create", "--project-identifier", "plant",
            "--trusted-identities", trusted,
            "--tcp-listener-address", f"127.0.0.1:{node.port}", *lifetime,
        )  # fmt: skip
        shown = node.run("identity", "show", name, "--full", "--encoding", "hex")
        return shown.strip()

    # -- the cells

    def check(self, enroller: str, kind: str, what: str) -> None:
        cell = f"{enroller}-{kind}", what
        self.found[cell] = "FAILED"
        checks = {
            "relay right": self._relay_right, "allow": self._allow, "deny": self._deny,
            "refresh": self._refresh, "expiry": self._expiry,
        }  # fmt: skip
        self.found[cell] = checks[what](self.members[cell[0]]) or "yes"

    def _relay_right(self, member: Member) -> None:
        """That of its ticket, and no other."""
        until("the relay", lambda: member.relay_up(member.name), 30)
        node, other = member.node, f"not-{member.name}"
        node.run("relay", "create", other, "--to", member.name, "--no-connection-wait")
        until("the relay is up all the while", lambda: member.relay_up(member.name), 5)
        time.sleep(2)
        assert not member.relay_up(other), "a relay that is not its own"

    def _allow(self, member: Member) -> None:
        """The other one admits it, and it admits the other one."""
        until("the way there", lambda: ping(member.allowed, 3), 40)
        back = self.members[member.other]
        until("the way back", lambda: ping(back.allowed, 3), 40)

    def _deny(self, member: Member) -> None:
        assert not ping(member.denied, 3)
        assert not ping(self.members[member.other].denied, 3)
        assert ping(member.allowed, 10)

    def _hold(self) -> None:
        """One connection of each member."""
        self.held = {name: Held(member.allowed) for name, member in self.members.items()}
        self.since = time.monotonic()

    def _refresh(self, member: Member) -> None:
        """A connection outlives the credentials that it was opened with."""
        time.sleep(max(0.0, self.since + LIFETIME + 10 - time.monotonic()))
        assert self.held[member.name].carries()
        assert ping(member.allowed, 5)

    def end_authority(self) -> None:
        """From now on there are no new credentials."""
        if not self.ended:
            self.ended = True
            self.authority.run("node", "delete", "--all", "--yes")
            self._hold()

    def _expiry(self, member: Member) -> str:
        until("the end", lambda: not ping(member.allowed, 3), LIFETIME + 15)
        took = time.monotonic() - self.since
        time.sleep(3)
        assert not self.held[member.name].carries()
        return f"after {took:.0f} s"


def matrix(fleets: list[Fleet]) -> str:
    """What was found, a line for each authority, enroller and member."""
    lines = ["authority  enroller-member  " + "".join(f"{check:14}" for check in CHECKS)]
    for fleet in fleets:
        for name in fleet.members:
            cells = (fleet.found.get((name, check), "-") for check in CHECKS)
            lines.append(f"{fleet.kind:11}{name:17}" + "".join(f"{cell:14}" for cell in cells))
    return "\n".join(lines)
