"""A gateway with its key in a token, on a real systemd: PostgreSQL and sshd behind it, reached through
a hub from another network; and what happens to the tunnel when things go wrong."""

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.boot.machine import Machine
from tests.boot.world import PIN, SERVICE, Scene, edge, main_pid, query

HUB = "ockam-edge-hub.service"
WORST = 1.3
"""Of `systemd-analyze security`, where 10 is no protection at all."""
ALLOWED = (
    "write the state folder", "write /run/ockam-edge", "write /tmp", "open a TCP socket",
    "open a unix socket", "start a process", "resolve a name", "read its own PIN",
)  # fmt: skip


@contextmanager
def session(client: Machine) -> Iterator["subprocess.Popen[str]"]:
    """psql, connected through the tunnel, that reads statements from its input."""
    started = client.start(
        "env", "PGPASSWORD=r", "stdbuf", "-oL", "psql", "-h", "127.0.0.1", "-p", "15432",
        "-U", "reader", "-d", "postgres", "-At",
    )  # fmt: skip
    try:
        yield started
    finally:
        assert started.stdin is not None
        started.stdin.close()
        started.wait(20)


def asked(psql: "subprocess.Popen[str]", statement: str) -> str:
    assert psql.stdin is not None
    assert psql.stdout is not None
    psql.stdin.write(f"{statement};\n")
    psql.stdin.flush()
    return psql.stdout.readline().strip()


def restarts(machine: Machine, unit: str = SERVICE) -> int:
    return int(machine.show(unit, "NRestarts"))


def test_the_database_and_the_shell_of_the_gateway(at: Scene) -> None:
    assert query(at.client) == "pump-7"
    at.client.sh("ssh-keygen -q -t ed25519 -N '' -f /root/key")
    key = at.client.sh("cat /root/key.pub")
    at.gateway.sh(f"mkdir -pm 700 /root/.ssh; echo '{key}' >/root/.ssh/authorized_keys")
    said = at.client.sh(
        "ssh -q -i /root/key -p 10022 -o StrictHostKeyChecking=no -o BatchMode=yes root@127.0.0.1"
        " systemctl is-active ockam-edge"
    )
    assert said == "active"


def test_the_client_cannot_reach_the_gateway_itself(at: Scene) -> None:
    assert at.client.run("ip", "route", "get", "10.77.1.2", check=False).returncode
    listening = at.gateway.sh("cat /proc/net/tcp /proc/net/tcp6")
    assert "0100007F:1538" in listening  # PostgreSQL, on loopback
    pids = at.gateway.sh("systemctl show -p MainPID --value ockam-edge")
    assert pids.isdigit()


def test_what_systemd_shows(at: Scene) -> None:
    at.gateway.wait(
        "systemctl status ockam-edge | grep -q '1 relay up, 2 outlets'", "the line is right"
    )
    shown = at.gateway.sh("systemctl status ockam-edge")
    assert 'Status: "node gateway: 1 relay up, 2 outlets' in shown
    assert "vault_backends/apart" in shown
    assert at.gateway.show(SERVICE, "WatchdogUSec") == "30s"
    (item, *_) = json.loads(edge(at.gateway, "systemd", "status", "--output", "json"))
    assert (item["unit"], item["ActiveState"]) == (SERVICE, "active")


def test_the_score(at: Scene) -> None:
    for machine, unit in ((at.gateway, SERVICE), (at.hub, HUB)):
        table = machine.sh(
            f"systemd-analyze security --no-pager --threshold={WORST * 10:.0f} {unit}"
        )
        score = float(table.splitlines()[-1].rpartition(": ")[2].split()[0])
        assert score <= WORST, table


def test_systemd_has_nothing_to_object(at: Scene) -> None:
    said = at.gateway.run("systemd-analyze", "verify", "--man=no", SERVICE, check=False)
    unknown = ("RestartSteps", "RestartMaxDelaySec")
    lines = [line for line in said.stderr.splitlines() if not any(key in line for key in unknown)]
    assert not [line for line in lines if "ockam-edge" in line], said.stderr


def test_the_sandbox_forbids_and_allows(at: Scene) -> None:
    """The very settings of the unit, around a program that tries."""
    probe = Path(__file__).with_name("probe.py").read_text()
    at.gateway.write("/usr/local/lib/probe.py", probe)
    folder = "/run/systemd/system/ockam-edge@probe.service.d"
    at.gateway.sh(f"mkdir -p {folder}")
    at.gateway.write(
        f"{folder}/probe.conf",
        "[Unit]\nAssertPathExists=\n[Service]\nType=oneshot\nWatchdogSec=0\nRestart=no\nExecStart=\n"
        "ExecStart=/usr/lib/ockam-edge/bin/python3 -I /usr/local/lib/probe.py\n",
    )
    at.gateway.sh("systemctl daemon-reload; systemctl start ockam-edge@probe.service")
    said = at.gateway.journal("ockam-edge@probe.service")
    (line,) = [line for line in said.splitlines() if line.startswith("{")]
    assert [name for name, ok in json.loads(line).items() if ok] == list(ALLOWED)


def test_the_pin_is_nowhere_to_be_seen(at: Scene) -> None:
    seen = at.gateway.sh(
        "journalctl --no-pager -u ockam-edge; for pid in $(systemctl show -p MainPID --value"
        " ockam-edge) $(pgrep -u ockam-edge -f vault_backends/apart); do"
        " tr '\\0' '\\n' </proc/$pid/environ; tr '\\0' ' ' </proc/$pid/cmdline; done"
    )
    assert "OCKAM_HOME=/var/lib/ockam-edge" in seen
    assert PIN not in seen


def test_a_reload_drops_no_tunnel(at: Scene) -> None:
    pid = main_pid(at.gateway)
    with session(at.client) as psql:
        backend = asked(psql, "select pg_backend_pid()")
        assert backend.isdigit()
        for machine, unit in ((at.gateway, SERVICE), (at.hub, HUB), (at.client, SERVICE)):
            machine.run("systemctl", "reload", unit)
            machine.wait(f"journalctl -u {unit} -o cat | grep -q 'was reloaded'", "it was reloaded")
            assert asked(psql, "select pg_backend_pid()") == backend
    assert main_pid(at.gateway) == pid


def test_a_file_that_is_reloaded(at: Scene) -> None:
    file = "/etc/ockam-edge/edge.yaml"
    text = "name: gateway\nno-tcp-listener: true\ntcp-outlet:\n  extra: {to: 9, allow: 'true'}\n"
    pid = main_pid(at.gateway)
    with session(at.client) as psql:
        backend = asked(psql, "select pg_backend_pid()")
        at.gateway.write(file, text, mode="0644")
        at.gateway.run("systemctl", "reload", SERVICE)
        assert '"extra"' in edge(at.gateway, "tcp-outlet", "show", "extra", "--at", "gateway")
        at.gateway.write(file, text + "relayy: x\n", mode="0644")
        assert at.gateway.run("systemctl", "reload", SERVICE, check=False).returncode
        assert f"{file}:5" in at.gateway.journal(SERVICE)
        assert asked(psql, "select pg_backend_pid()") == backend
    assert main_pid(at.gateway) == pid
    at.gateway.run("systemctl", "restart", SERVICE)
    assert "runs as it was" in at.gateway.journal(SERVICE)
    assert query(at.client) == "pump-7"
    at.gateway.sh(f"rm {file}; systemctl restart {SERVICE}")


def test_a_further_node_by_a_file_alone(at: Scene) -> None:
    softhsm = "/etc/systemd/system/ockam-edge@.service.d/softhsm.conf"
    at.gateway.sh(
        f"install -D -m 644 /usr/share/ockam-edge/dropins/softhsm.conf {softhsm};"
        " systemctl daemon-reload"
    )
    at.gateway.write(
        "/etc/ockam-edge/plant.yaml",
        "identity: plant\nno-tcp-listener: true\ntcp-outlet:\n  plc: {to: 502, allow: 'true'}\n",
    )
    at.gateway.run("systemctl", "start", "ockam-edge@plant.service")
    assert "1 outlet" in at.gateway.wait(
        "systemctl show -p StatusText --value ockam-edge@plant | grep outlet", "it has its outlet"
    )
    assert main_pid(at.gateway, "ockam-edge@plant.service") != main_pid(at.gateway)
    at.gateway.sh("systemctl stop ockam-edge@plant; rm /etc/ockam-edge/plant.yaml")
    edge(at.gateway, "node", "delete", "plant", "--yes")


def test_killed(at: Scene) -> None:
    before, pid = restarts(at.gateway), main_pid(at.gateway)
    at.gateway.sh(f"kill -9 {pid}")
    at.gateway.wait(
        f"systemctl is-active -q ockam-edge && [ $(systemctl show -p NRestarts --value ockam-edge)"
        f" -gt {before} ]",
        "it was started again",
    )
    assert main_pid(at.gateway) != pid
    assert at.gateway.sh("pgrep -u ockam-edge -fc vault_backends/apart") == "1"
    assert query(at.client) == "pump-7"


def test_the_process_of_the_vault_killed(at: Scene) -> None:
    pid = main_pid(at.gateway)
    vault = at.gateway.sh("pgrep -u ockam-edge -f vault_backends/apart")
    with session(at.client) as psql:
        backend = asked(psql, "select pg_backend_pid()")
        at.gateway.sh(f"kill -9 {vault}")
        at.gateway.wait(
            f"! kill -0 {vault} && pgrep -u ockam-edge -f vault_backends/apart",
            "there is another one",
        )
        assert asked(psql, "select pg_backend_pid()") == backend
    assert main_pid(at.gateway) == pid
    at.gateway.wait("ockam-edge node show gateway --output json | grep -q '\"state\": \"present\"'",
                    "the token is in use again")  # fmt: skip
    at.client.run("systemctl", "restart", SERVICE)  # new channels
    assert query(at.client) == "pump-7"


def test_hung(at: Scene) -> None:
    folder = "/run/systemd/system/ockam-edge.service.d"
    at.gateway.sh(f"mkdir -p {folder}; printf '[Service]\\nWatchdogSec=3s\\n' >{folder}/watchdog.conf;"
                  " systemctl daemon-reload; systemctl restart ockam-edge")  # fmt: skip
    assert query(at.client) == "pump-7"
    before, pid = restarts(at.gateway), main_pid(at.gateway)
    at.gateway.sh(f"kill -STOP {pid}")
    at.gateway.wait(
        f"systemctl is-active -q ockam-edge && [ $(systemctl show -p NRestarts --value ockam-edge)"
        f" -gt {before} ]",
        "the watchdog has it started again",
    )
    assert "watchdog" in at.gateway.journal(SERVICE).lower()
    at.gateway.sh(
        f"rm {folder}/watchdog.conf; systemctl daemon-reload; systemctl restart ockam-edge"
    )
    assert query(at.client) == "pump-7"
    assert not at.gateway.sh("find / -xdev -name 'core*' -size +100k -not -path '/usr/*'")


def test_the_hub_is_restarted(at: Scene) -> None:
    at.hub.run("systemctl", "restart", HUB)
    assert query(at.client) == "pump-7"


def test_a_token_that_goes_away_and_comes_back(at: Scene) -> None:
    at.gateway.sh(
        "mv /var/lib/ockam-edge/tokens /var/lib/ockam-edge/gone;"
        " pkill -u ockam-edge -f vault_backends/apart"
    )
    at.gateway.wait("systemctl status ockam-edge | grep -q 'Status:.* is gone'", "it says so")
    assert query(at.client) == "pump-7"
    at.gateway.sh("mv /var/lib/ockam-edge/gone /var/lib/ockam-edge/tokens")
    at.gateway.wait("! systemctl status ockam-edge | grep -q 'Status:.* is gone'", "it is back")
    assert query(at.client) == "pump-7"


@pytest.fixture
def small_disk(at: Scene) -> Iterator[Scene]:
    """The state of the gateway lies on a file system of its own, of 4 MB."""
    state = "/var/lib/ockam-edge"
    at.gateway.sh(
        f"systemctl stop ockam-edge; cp -a {state} /var/lib/kept; mount -t tmpfs -o"
        f" size=4m,mode=0700,uid=$(id -u ockam-edge),gid=$(id -g ockam-edge) state {state};"
        f" cp -a /var/lib/kept/. {state}/; systemctl start ockam-edge"
    )
    yield at
    at.gateway.sh(
        f"mount -o remount,bind,rw /; systemctl stop ockam-edge; umount {state}; rm -rf /var/lib/kept;"
        " systemctl start ockam-edge"
    )
    assert query(at.client) == "pump-7"


def test_a_full_disk(small_disk: Scene) -> None:
    gateway, client = small_disk.gateway, small_disk.client
    gateway.sh("cat /dev/zero >/var/lib/ockam-edge/ballast || true; sync")
    assert gateway.sh("df --output=avail /var/lib/ockam-edge | tail -1") == "0"
    assert query(client) == "pump-7"
    gateway.run("systemctl", "reload", SERVICE)
    said = gateway.run(
        "ockam-edge", "tcp-outlet", "create", "--at", "gateway", "--to", "1", "--from", "x" * 60,
        "--allow", "I" + "0" * 64, check=False,
    )  # fmt: skip
    gateway.sh("rm /var/lib/ockam-edge/ballast")
    if said.returncode == 0:  # it fitted into what SQLite had
        edge(gateway, "tcp-outlet", "delete", "x" * 60, "--at", "gateway", "--yes")
    assert "Traceback" not in said.stderr
    assert "is a bug" not in said.stderr
    assert query(client) == "pump-7"


def test_a_start_with_a_full_disk_waits_for_room(small_disk: Scene) -> None:
    """The outcome of a login must be kept (decision 8): without room there is none, and it is said."""
    gateway = small_disk.gateway
    gateway.sh("cat /dev/zero >/var/lib/ockam-edge/ballast || true")
    gateway.run("systemctl", "restart", SERVICE, check=False)
    assert "No space left on device" in gateway.journal(SERVICE)
    gateway.sh("rm /var/lib/ockam-edge/ballast")
    gateway.wait("systemctl is-active -q ockam-edge", "it starts by itself when there is room")
    assert query(small_disk.client) == "pump-7"


def test_a_read_only_root(small_disk: Scene) -> None:
    gateway, client = small_disk.gateway, small_disk.client
    gateway.run("mount", "-o", "remount,bind,ro", "/")
    assert gateway.run("touch", "/etc/x", check=False).returncode
    gateway.run("systemctl", "restart", SERVICE)
    assert query(client) == "pump-7"
    with session(client) as psql:
        backend = asked(psql, "select pg_backend_pid()")
        assert backend.isdigit()
        gateway.run("systemctl", "reload", SERVICE)
        assert asked(psql, "select pg_backend_pid()") == backend


def test_start_to_first_byte(at: Scene) -> None:
    """Not asserted: printed with -rA."""
    at.gateway.run("systemctl", "stop", SERVICE)
    started = time.monotonic()
    at.gateway.run("systemctl", "start", SERVICE)
    ready = time.monotonic() - started
    assert query(at.client) == "pump-7"
    print(f"ready after {ready:.2f} s, first byte after {time.monotonic() - started:.2f} s")
    for machine in at[:3]:
        print(machine.name, f"booted in {machine.boot_seconds:.2f} s;",
              machine.sh("ps -o rss=,args= -u ockam-edge | cut -c1-90"))  # fmt: skip
