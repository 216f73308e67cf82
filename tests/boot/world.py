"""What the tests of the appliance share: machines with the package, and a tunnel between them."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.boot import roots
from tests.boot.machine import Machine
from tests.boot.network import HUB_FOR_CLIENT, HUB_FOR_GATEWAY, network

ROOT = Path(__file__).parents[2]
PIN = "271828"
TOKEN = "pkcs11:token=edge?module-name=softhsm2&pin-source=credential:ockam-edge.pin"
DEBS = "/debs"
SERVICE = "ockam-edge.service"


class Packages(NamedTuple):
    """Files in one folder: two versions for this machine."""

    folder: Path
    version: str
    newer: str

    def gateway(self, version: str) -> str:
        return f"{DEBS}/ockam-edge_{version}_{architecture()}.deb"

    def hub(self, version: str) -> str:
        return f"{DEBS}/ockam-edge-hub_{version}_{architecture()}.deb"


def architecture() -> str:
    return subprocess.run(
        ["dpkg", "--print-architecture"], capture_output=True, text=True, check=True
    ).stdout.strip()


def install(machine: Machine, *files: str) -> None:
    """As `apt install FILE` does, with dependencies that must be there already."""
    machine.run("dpkg", "--install", *files, timeout=120)


class Scene(NamedTuple):
    """A gateway with PostgreSQL and sshd behind it, a hub, and a client that only sees the hub."""

    gateway: Machine
    hub: Machine
    client: Machine
    packages: Packages


@contextmanager
def scene(suite: str, packages: Packages) -> Iterator[Scene]:
    root = roots.root(suite)
    binds = [f"{packages.folder}:{DEBS}"]
    with ExitStack() as stack:
        names = stack.enter_context(network())
        gateway, hub, client = (
            stack.enter_context(Machine(root, name, netns=netns, binds=binds))
            for name, netns in zip(
                ("gateway", "hub", "client"), (names.gateway, names.hub, names.client), strict=True
            )
        )
        yield Scene(gateway, hub, client, packages)


def furnish(at: Scene) -> None:
    """Everything a person would do, in the order of the handbook."""
    for machine in at[:3]:
        install(machine, at.packages.gateway(at.packages.version))
    install(at.hub, at.packages.hub(at.packages.version))
    hub = make_hub(at.hub)
    gateway = make_token_gateway(at.gateway)
    client = made(at.client, "identity", "create", "client")
    serve(at.gateway)
    for name, port in (("db", 5432), ("shell", 22)):
        edge(at.gateway, "tcp-outlet", "create", "--at", "gateway", "--to", str(port),
             "--from", name, "--allow", client)  # fmt: skip
    edge(at.gateway, "relay", "create", "gateway", "--to", "gateway", "--authorized", hub,
         "--at", f"/ip4/{HUB_FOR_GATEWAY}/tcp/4000/secure/api")  # fmt: skip
    edge(at.client, "node", "create", "client", "--identity", "client", "--no-tcp-listener",
         "--no-start")  # fmt: skip
    at.client.run("systemctl", "start", SERVICE)
    for name, port in (("db", 15432), ("shell", 10022)):
        edge(at.client, "tcp-inlet", "create", "--at", "client", "--from", f"127.0.0.1:{port}",
             "--authorized", gateway, "--to",
             f"/ip4/{HUB_FOR_CLIENT}/tcp/4000/secure/api/service/forward_to_gateway"
             f"/secure/api/service/{name}")  # fmt: skip


def make_hub(machine: Machine) -> str:
    """Its identifier; it runs afterwards."""
    hub = made(machine, "identity", "create", "hub")
    edge(machine, "node", "create", "hub", "--identity", "hub", "-t", "0.0.0.0:4000", "--no-start")
    machine.run("systemctl", "enable", "--now", "ockam-edge-hub.service")
    return hub


def make_token_gateway(machine: Machine) -> str:
    """A node whose key is in a SoftHSM token and whose PIN is a credential; its identifier."""
    machine.write(
        "/etc/ockam-edge/softhsm2.conf", "directories.tokendir = /var/lib/ockam-edge/tokens\n"
    )
    machine.sh(
        "mkdir -p /etc/systemd/system/ockam-edge.service.d;"
        "cp /usr/share/ockam-edge/dropins/softhsm.conf /etc/systemd/system/ockam-edge.service.d/;"
        "systemctl daemon-reload; install -d -o ockam-edge -m 700 /var/lib/ockam-edge/tokens;"
        "setpriv --reuid ockam-edge --regid ockam-edge --init-groups"
        " env SOFTHSM2_CONF=/etc/ockam-edge/softhsm2.conf"
        f" softhsm2-util --init-token --free --label edge --so-pin 31415926 --pin {PIN}"
    )
    machine.write("/etc/credstore/ockam-edge.pin", PIN, mode="0600")
    gateway = made(machine, "systemd", "run", "identity", "create", "gateway", "--vault", TOKEN)
    edge(machine, "node", "create", "gateway", "--identity", "gateway", "--no-tcp-listener",
         "--no-start")  # fmt: skip
    machine.run("systemctl", "start", SERVICE)
    return gateway


def serve(machine: Machine) -> None:
    """PostgreSQL with a table, and sshd, on loopback. What PostgreSQL writes is not on the root."""
    machine.sh(
        "for folder in /var/lib/postgresql /var/log/postgresql; do cp -a $folder /run/kept;"
        " mount -t tmpfs -o mode=755 tmpfs $folder; cp -a /run/kept/. $folder/;"
        " chown --reference=/run/kept $folder; rm -r /run/kept; done"
    )
    machine.run("systemctl", "start", "postgresql.service", "ssh.service", timeout=60)
    machine.wait("pg_isready", "PostgreSQL is ready")
    machine.sh(
        "cd /; setpriv --reuid postgres --regid postgres --init-groups psql -qc"
        " \"create role reader login password 'r'; create table pumps (name text);"
        " insert into pumps values ('pump-7'); grant select on pumps to reader\""
    )


def edge(machine: Machine, *words: str) -> str:
    return machine.run("ockam-edge", *words).stdout.strip()


def made(machine: Machine, *words: str) -> str:
    """The identifier that a command prints."""
    said = edge(machine, *words)
    found = re.search(r"\bI[0-9a-f]{64}\b", said)
    assert found is not None, said
    return found[0]


def query(machine: Machine, *, seconds: float = 30.0) -> str:
    """What the client reads from the database behind the gateway; tried until it comes."""
    return machine.wait(
        "PGPASSWORD=r PGCONNECT_TIMEOUT=5 psql -h 127.0.0.1 -p 15432 -U reader -d postgres"
        " -Atc 'select name from pumps'",
        "the database answers through the tunnel",
        seconds=seconds,
    )


def main_pid(machine: Machine, unit: str = SERVICE) -> int:
    return int(machine.show(unit, "MainPID"))


def build(folder: Path, *versions: str) -> None:
    """The packages of this tree for this machine, called each of these versions."""
    command = [
        sys.executable, str(ROOT / "systemd/deb/build.py"), "--arch", architecture(),
        "--out", str(folder), "--cache", str(roots.cache() / "wheels"),
        *(f"--version={version}" for version in versions),
    ]  # fmt: skip
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
