"""What stock and we hand each other: project files, tickets of all forms, members, credentials by hand;
and the README's lines through a hub that is the authority, too."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.fleets import place, with_identity
from tests.interop.nodes import Node, free_port, until
from tests.interop.services import ping, serving

KINDS = ("ours", "stock")
FORMS = {
    "text": [],
    "hex": ["--hex"],
    "json": ["--output", "json"],
    "legacy hex": ["--legacy"],
    "legacy json": ["--legacy", "--output", "json"],
}


class Plant:
    """A hub of ours that is the authority, and an enroller of each kind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.nodes: list[Node] = []
        hub = self.home("ours", "plant")
        self.bosses = {"ours": hub, "stock": self.home("stock", "boss")}
        hub.run("project", "init", "plant", "--address", f"127.0.0.1:{free_port()}")
        self.file = folder / "plant.json"
        self.file.write_text(hub.run("project", "show", "plant"))
        boss = with_identity(self.bosses["stock"], "boss")
        hub.run("project-member", "add", boss, "--enroller")
        self.bosses["stock"].run("project", "import", "--project-file", str(self.file))

    def home(self, kind: str, name: str) -> Node:
        made = place(kind, name, self.folder)
        self.nodes.append(made)
        return made

    def end(self) -> None:
        for node in self.nodes:
            node.end()


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    made = Plant(tmp_path_factory.mktemp("plant"))
    try:
        yield made
    finally:
        made.end()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("maker", "member"), [("ours", "stock"), ("stock", "ours")])
def test_tickets_of_all_forms(plant: Plant, maker: str, member: str, form: str) -> None:
    ticket = plant.bosses[maker].run("project", "ticket", "-a", f"form={form[:3]}", *FORMS[form])
    node = plant.home(member, f"{form.replace(' ', '-')}-{member}")
    identifier = with_identity(node, "member")
    said = json.loads(node.run("project", "enroll", ticket.strip(), "--output", "json"))
    assert said["identity"]["identifier"] == identifier
    assert said["credential"]["attributes"]["form"] == form[:3]
    assert said["project_name"] == "plant"
    again = json.loads(node.run("project", "enroll", ticket.strip(), "--output", "json"))
    assert again["identity"] == said["identity"], "twice is harmless"


@pytest.mark.parametrize("asker", KINDS)
def test_members(plant: Plant, asker: str) -> None:
    """What the command of either kind says of our authority's members is the same JSON."""
    node, who = plant.bosses[asker], "I" + {"ours": "aa", "stock": "bb"}[asker] * 32
    node.run("project-member", "add", who, "-a", "role=x", "--relay", "r")
    shown = json.loads(node.run("project-member", "show", who, "--output", "json"))
    assert shown["attributes"]["attributes"] == {"role": "x", "ockam-relay": "r"}
    other = plant.bosses["stock" if asker == "ours" else "ours"]
    assert json.loads(other.run("project-member", "show", who, "--output", "json")) == shown
    listed = [
        sorted(
            json.loads(boss.run("project-member", "list", "--output", "json")),
            key=lambda one: str(one["identifier"]),
        )
        for boss in plant.bosses.values()
    ]
    assert listed[0] == listed[1]
    ids = [
        sorted(str(one) for one in json.loads(boss.run("project-member", "list-ids")))
        for boss in plant.bosses.values()
    ]
    assert ids[0] == ids[1]
    node.run("project-member", "delete", who)
    assert who not in other.run("project-member", "list")


def test_the_readmes_lines_through_a_hub_that_is_the_authority(plant: Plant) -> None:
    """A gateway of each kind, and a client of the other one."""
    with serving() as server:
        for index, (kind, other) in enumerate((("ours", "stock"), ("stock", "ours"))):
            gateway, client = plant.home(kind, "gateway"), plant.home(other, "client")
            relay = "default" if not index else "second"
            for node, more in ((gateway, ["--relay", relay]), (client, ["-a", "role=reader"])):
                with_identity(node, node.name)
                ticket = plant.bosses["ours"].run("project", "ticket", *more).strip()
                node.run("project", "enroll", ticket)
            allow = ["--allow", "role=reader"]
            # As typed: no node was made before, and no route is given.
            gateway.run("tcp-outlet", "create", "web", "--to", str(server.port), *allow)
            gateway.run("relay", "create", relay)
            port = free_port()
            via = [] if not index else ["--via", relay]
            client.run("tcp-inlet", "create", "--from", str(port), "--to", "web", *via)
            until("the tunnel", lambda port=port: ping(port, 3), 40)  # type: ignore[misc]


@pytest.mark.parametrize(("issuer", "subject"), [("ours", "stock"), ("stock", "ours")])
def test_a_credential_by_hand(tmp_path: Path, issuer: str, subject: str) -> None:
    """Issued by one; verified, stored and presented by the other; believed by an outlet there."""
    theirs, ours = place(issuer, "issuer", tmp_path), place(subject, "subject", tmp_path)
    try:
        authority, who = with_identity(theirs, "issuer"), with_identity(ours, "subject")
        history = theirs.run("identity", "show", "issuer", "--full", "--encoding", "hex").strip()
        if issuer == "stock":  # which says nothing of whom it does not know
            about = ours.run("identity", "show", "subject", "--full", "--encoding", "hex").strip()
            theirs.run("node", "create", "meets", "--authority-identity", about)
        made = theirs.run(
            "credential", "issue", "--as", "issuer", "--for", who, "-a", "role=reader",
            "--encoding", "hex", "--ttl", "30m",
        ).strip()  # fmt: skip
        trust = ["--authority-identity", history]
        port = free_port()
        listen = ["--tcp-listener-address", f"127.0.0.1:{port}"]
        theirs.run("node", "create", "issuer", "--identity", "issuer", *trust, *listen)
        ours.run(
            "node", "create", "subject", "--identity", "subject", *trust, "--credential-scope", "s"
        )
        for node in (theirs, ours):
            check = ("credential", "verify", "--issuer", authority, "--credential", made)
            assert node.run(*check).strip() == "true"
        ours.run(
            "credential", "store", "--issuer", authority, "--scope", "s", "--at", "subject",
            "--credential", made,
        )  # fmt: skip
        (listed,) = json.loads(ours.run("credential", "list", "--at", "subject"))
        assert (listed["scope"], listed["is_verified"]) == ("s", True)
        assert listed["credential"]["attributes"] == {"role": "reader"}
        with serving() as server:
            inlets = {}
            for name, allow in (("web", "role=reader"), ("shut", "role=other")):
                theirs.run(
                    "tcp-outlet", "create", name, "--at", "issuer", "--allow", allow,
                    "--to", f"127.0.0.1:{server.port}",
                )  # fmt: skip
                # The issuer has no credential of its own: the inlet names who must answer.
                inlets[name] = free_port()
                ours.run(
                    "tcp-inlet", "create", "--at", "subject", "--from", str(inlets[name]),
                    "--to", f"/ip4/127.0.0.1/tcp/{port}/secure/api/service/{name}",
                    "--allow", f'(= subject.identifier "{authority}")',
                )  # fmt: skip
            until("the tunnel", lambda: ping(inlets["web"], 3), 30)
            assert not ping(inlets["shut"], 3)
    finally:
        theirs.end()
        ours.end()
