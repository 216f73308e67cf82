"""Authorities as real nodes: two processes over one database, one killed, the server away, secrets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.authority.client import AlreadyMember, Client
from edge.errors import ApiError, NetworkError
from edge.identity.history import Identifier
from edge.identity.known import Known
from tests.cli.test_end_to_end import Machine, free_port
from tests.net import Net, clock, play, until
from tests.people import person
from tests.postgresql import PASSWORD, Server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

NODE = "authority-plant"
DEVICES = 60


class Process:
    """One authority node."""

    def __init__(self, machine: Machine, source: str) -> None:
        self.machine, self.port = machine, free_port()
        trusted = {str(person("boss").identifier): {"ockam-role": "enroller"}}
        self.arguments = (
            "authority", "create", "--project-identifier", "plant", "--identity", "plant",
            "--trusted-identities", json.dumps(trusted), "--database", source,
            "--tcp-listener-address", f"127.0.0.1:{self.port}",
        )  # fmt: skip
        machine.do(*self.arguments)

    async def client(self, net: Net, name: str, timeout: float = 8.0) -> Client:
        node = net.node(name)
        connection = await node.connect(f"/ip4/127.0.0.1/tcp/{self.port}/secure/api")
        return Client(node.router, connection.channels[-1], timeout=timeout)


class Pair:
    """Two of them: each in a home of its own, with one identity, over one database."""

    def __init__(self, folder: Path, source: str) -> None:
        self.machines = [Machine(folder / "one"), Machine(folder / "two")]
        one, two = self.machines
        one.do("identity", "create", "plant")
        self.identifier = Identifier.parse(one.do("identity", "show", "plant").strip())
        shutil.copytree(one.home, two.home, symlinks=True)
        self.one, self.two = Process(one, source), Process(two, source)

    def end(self) -> None:
        for machine in self.machines:
            machine.run("node", "delete", "--all", "--yes", "--force")


@pytest.fixture
def source(server: Server, tmp_path: Path) -> str:
    """The URL of a fresh database in a file, with its password."""
    path = tmp_path / "database-url"
    path.write_text(server.tcp_url(server.database()))
    path.chmod(0o600)
    return f"file:{path}"


@pytest.fixture
def pair(source: str, tmp_path: Path) -> Iterator[Pair]:
    made = Pair(tmp_path, source)
    yield made
    made.end()


@play
async def test_one_fleet(net: Net, pair: Pair) -> None:
    boss, boss_too = await pair.one.client(net, "boss"), await pair.two.client(net, "boss")
    assert boss.authority == boss_too.authority == pair.identifier
    code = await boss.create_token({"role": "plc"})
    at_one, at_two = await pair.one.client(net, "device"), await pair.two.client(net, "device")
    await at_two.redeem(code)
    with pytest.raises(AlreadyMember):
        await at_one.redeem(code)
    with pytest.raises(ApiError, match="used up"):
        await (await pair.one.client(net, "thief")).redeem(code)
    known = Known()
    known.learn(net.nodes[0].learned[0])
    subject = person("device").identifier
    for client in (at_one, at_two):  # either signs for both
        credential = await client.credential()
        credential.verify(subject, {pair.identifier}, known, clock())
        assert credential.attributes[b"role"] == b"plc"
    await boss_too.delete_member(subject)
    told = await boss.changes(0)
    assert [(one.identifier, one.removed) for one in told.changes] == [(subject, True)]
    await until(lambda: at_one._channel.closed)  # cut off at both
    with pytest.raises(ApiError, match="unauthorized member"):
        await (await pair.one.client(net, "device")).credential()


@play
async def test_one_is_killed_in_the_middle(net: Net, pair: Pair) -> None:
    """A redemption in flight happened or did not; nothing that was answered is lost."""
    boss = await pair.one.client(net, "boss")
    names = [f"device-{n}" for n in range(DEVICES)]
    codes = [await boss.create_token({"name": name}) for name in names]
    clients = [await pair.one.client(net, name, timeout=3.0) for name in names]
    pid, answered = pair.one.machine.pid(NODE), 0

    async def redeem(client: Client, code: bytes) -> bool:
        nonlocal answered
        with contextlib.suppress(NetworkError):
            await client.redeem(code)
            answered += 1
            return True
        return False

    asked = [asyncio.create_task(redeem(*each)) for each in zip(clients, codes, strict=True)]
    while answered < DEVICES // 6:
        await asyncio.sleep(0)
    os.kill(pid, signal.SIGKILL)
    assert answered < DEVICES, "some were in flight"
    joined = await asyncio.gather(*asked)
    boss = await pair.two.client(net, "boss")
    members = set(await boss.member_ids())
    for name, joined_before in zip(names, joined, strict=True):
        assert not joined_before or person(name).identifier in members, "it was told so"
    for name, code in zip(names, codes, strict=True):
        client = await pair.two.client(net, name)
        if person(name).identifier in members:
            with pytest.raises(AlreadyMember):
                await client.redeem(code)
        else:
            await client.redeem(code)
        assert (await client.credential()).attributes[b"name"] == name.encode()
    thief = await pair.two.client(net, "thief")
    for code in codes:
        with pytest.raises(ApiError, match="used up"):
            await thief.redeem(code)
    await asyncio.to_thread(pair.one.machine.do, "node", "start", NODE)
    back = await pair.one.client(net, "device-0")
    assert (await back.credential()).attributes[b"name"] == b"device-0"


@play
async def test_the_server_is_away_for_a_while(net: Net, pair: Pair, server: Server) -> None:
    boss = await pair.one.client(net, "boss")
    code = await boss.create_token({})
    pid = pair.one.machine.pid(NODE)
    device = await pair.one.client(net, "device")
    await asyncio.to_thread(server.stop)
    try:
        for asked in (device.redeem(code), boss.create_token({}), boss.members()):
            with pytest.raises(ApiError, match="the authority has a problem") as caught:
                await asked
            assert caught.value.status == 500
    finally:
        await asyncio.to_thread(server.start)
    await device.redeem(code)
    assert (await device.credential()).subject == person("device").identifier
    assert pair.one.machine.pid(NODE) == pid, "the same process"


@play
async def test_the_password_is_nowhere(net: Net, pair: Pair) -> None:
    await (await pair.one.client(net, "boss")).members()
    machine = pair.one.machine
    process = Path(f"/proc/{machine.pid(NODE)}")
    shown = [
        machine.do("node", "show", NODE).encode(),
        machine.do("node", "show", NODE, "--output", "json").encode(),
        (process / "cmdline").read_bytes(),
        (process / "environ").read_bytes(),
        *(path.read_bytes() for path in machine.home.rglob("*") if path.is_file()),
    ]
    for secret in (PASSWORD, Server.quoted(PASSWORD)):
        assert not [one for one in shown if secret.encode() in one]
    assert any(b"database-url" in one for one in shown), "where it stands is no secret"


def test_a_password_on_the_command_line(tmp_path: Path, server: Server) -> None:
    machine = Machine(tmp_path / "home")
    said = machine.refused(
        "authority", "create", "--project-identifier", "plant", "--trusted-identities", "{}",
        "--database", server.tcp_url("x"),
    )  # fmt: skip
    assert "has a password in it" in said
    assert PASSWORD not in said
    assert Server.quoted(PASSWORD) not in said
    assert machine.run("node", "list").stdout.strip() in ("", "[]")
