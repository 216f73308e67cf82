"""`diag`: what is in the bundle, that no secret is, and that nothing holds it up."""

import json
import os
import stat
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from edge.cli import collectors, diag
from edge.cli.collectors import COLLECTORS, Collector, command
from edge.cli.main import program
from edge.node.home import Home
from edge.node.store import CredentialRecord, Store
from tests.cli.test_end_to_end import Machine, free_port
from tests.cli.test_end_to_end import machine as machine  # noqa: PLC0414 - a fixture
from tests.node.world import make_node

CANARY = "canary-8301-bird"
HEX = "c0ffee" * 11
IDENTIFIER = "I" + "3f" * 32


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("OCKAM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(collectors, "CONFIGURATION", tmp_path / "etc")
    (tmp_path / "etc").mkdir()
    found = Home(tmp_path / "home").prepare()
    make_node(found, "n")
    return found


def contents(path: Path) -> dict[str, str]:
    with tarfile.open(path) as bundle:
        found = {}
        for entry in bundle.getmembers():
            opened = bundle.extractfile(entry)
            assert opened is not None
            found[entry.name.removeprefix("ockam-edge-diag/")] = opened.read().decode()
            assert entry.mode == 0o600
    return found


def collected(path: Path) -> dict[str, str]:
    done = CliRunner().invoke(program, ["diag", str(path)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return contents(path)


def plant(home: Home, etc: Path) -> None:
    """The same secret wherever one may be by mistake, and where one has to be."""
    store = Store(home.database)
    store.add_vault("v", f"pkcs11:token=t?module-path=/m.so&pin-value={CANARY}")
    store.add_vault("w", f"software:/x?sealed-by=pkcs11%3Atoken=t%3Fpin-value%3D{CANARY}")
    store.put_credential(
        CredentialRecord(IDENTIFIER, IDENTIFIER, "s", bytes.fromhex(HEX) + CANARY.encode(), 2**31)
    )
    store.set_setting("n", "serves", {"authority": {"database": f"postgresql://u:{CANARY}@db/x"}})
    store.add_resource(
        "n", "relay", "r", {"at": f"/dnsaddr/{CANARY[:6]}.invalid/tcp/1"}, "file", None
    )
    store.close()
    (home.root / "passphrase").write_text(CANARY)
    home.log("n").write_text(
        f"2026 INFO x: peer {IDENTIFIER} came\n"
        f"2026 ERROR x: pkcs11:token=t?pin-value={CANARY}\n"
        f"2026 ERROR x: the PIN {CANARY} was refused\n"
        f'{{"message": "said", "ticket": "{CANARY}"}}\n'
        f"2026 ERROR x: a code {HEX} and a password={CANARY}\n"
        f"-----BEGIN PRIVATE KEY-----\n{CANARY}\n-----END PRIVATE KEY-----\n"
        f"2026 INFO x: GET http://user:{CANARY}@proxy/ Authorization: Bearer {CANARY}\n"
    )
    (etc / "edge.yaml").write_text(
        f"name: n\nticket: {CANARY}\nvariables:\n  WHO: {CANARY}\n  PIN: {CANARY}\n"
        "relay: r\ntcp-outlets:\n  db: {to: 5432}\n"
    )
    (etc / "broken.yaml").write_text(f"ticket: [{CANARY}\n")


def test_no_secret_is_in_it(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(home, tmp_path / "etc")
    for name in ("https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://user:{CANARY}@proxy.example:3128")
    for name in ("ENROLLMENT_TICKET", "OCKAM_PIN", "SOFTHSM2_PIN", "EDGE_PASSPHRASE", "PGPASSWORD"):
        monkeypatch.setenv(name, CANARY)
    found = collected(tmp_path / "d.tar.gz")
    for name, text in found.items():
        assert CANARY not in text, name
        assert HEX[:40] not in text, name
    assert IDENTIFIER in found["logs.txt"]
    assert "the PIN <removed> was refused" in found["logs.txt"]
    assert json.loads(found["configuration.json"])["edge.yaml".join([f"{tmp_path}/etc/", ""])] == {
        "name": "n", "ticket": "<removed>", "variables": {"WHO": "<removed>", "PIN": "<removed>"},
        "relay": "r", "tcp-outlets": {"db": {"to": "5432"}},
    }  # fmt: skip
    variables = json.loads(found["environment.json"])["variables"]
    assert variables["https_proxy"] == "http://<removed>@proxy.example:3128"
    assert variables["OCKAM_PIN"] == "<removed>"
    assert len(found) - 1 == len(COLLECTORS) >= 12


def test_each_secret_would_be_found_without_what_is_known(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment knows nothing here: shapes and names have to do."""
    plant(home, tmp_path / "etc")
    monkeypatch.setattr("edge.cli.redaction.secrets_of", lambda *_: [])
    for name, text in collected(tmp_path / "d.tar.gz").items():
        assert CANARY not in text, name


def test_the_canary_would_be_seen(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without redaction the secret is in several files: the test above can fail."""
    plant(home, tmp_path / "etc")
    monkeypatch.setattr("edge.cli.redaction.Redaction.text", lambda self, text: text)
    found = collected(tmp_path / "d.tar.gz")
    assert {name for name, text in found.items() if CANARY in text} >= {"logs.txt", "store.json"}


def test_what_is_in_it(home: Home, tmp_path: Path) -> None:
    found = collected(tmp_path / "d.tar.gz")
    assert json.loads(found["store.json"])["nodes"][0]["name"] == "n"
    assert json.loads(found["status.json"])["nodes"][0]["state"] == "stopped"
    assert json.loads(found["versions.json"])["cryptography"]
    assert "time floor: " in found["clock.txt"]
    assert json.loads(found["limits.json"])["ours"]["NOFILE"]
    assert "read it before you hand it on" in found["about.txt"]


def test_it_is_for_its_owner_and_replaces_nothing(home: Home, tmp_path: Path) -> None:
    path = tmp_path / "d.tar.gz"
    collected(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    refused = Machine(home.root).refused("diag", str(path))
    assert "is there already" in refused
    assert "cannot write" in Machine(home.root).refused("diag", str(tmp_path / "no" / "d.tar.gz"))


def test_whatever_hangs_or_fails_costs_only_itself(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang(home: Home) -> str:
        time.sleep(30)
        return "never"

    def fail(home: Home) -> str:
        raise OSError("no such thing, pin-value=8301")

    def good(home: Home) -> Any:
        return {"bytes": b"\x00\x01", "path": home.root}

    some = (Collector("a", hang, 0.2), Collector("b", fail), Collector("c", good))
    monkeypatch.setattr(collectors, "COLLECTORS", some)
    found = diag.collected(home)
    assert found["a"] == "no answer within 0.2 s\n"
    assert found["b"] == "could not be collected: OSError: no such thing, pin-value=<removed>\n"
    assert json.loads(found["c"])["bytes"] == "2 bytes"
    assert "a                    no answer" in found["about.txt"]


def test_limits_keep_it_below_fifteen_seconds() -> None:
    assert max(collector.limit for collector in COLLECTORS) <= 10


def test_a_command_that_hangs_is_ended() -> None:
    said = command("sh", "-c", "echo begun; exec sleep 30", limit=0.5)
    assert said.startswith("sh -c echo begun; exec sleep 30: no answer within 0.5 s\nbegun")
    assert command("no-such-command") == "no-such-command is not installed\n"
    assert "ended with 3" in command("sh", "-c", "exit 3")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("broken", ["nothing", "a file", "a broken store"])
def test_when_everything_is_down(tmp_path: Path, broken: str) -> None:
    home = tmp_path / "home"
    if broken == "a file":
        home.write_text("")
    elif broken == "a broken store":
        Home(home).prepare().database.write_bytes(b"not a database" * 1000)
    environment = {**os.environ, "PATH": "/nonexistent"}
    done = Machine(home)
    path = tmp_path / "d.tar.gz"
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        done.do("diag", str(path))
    finally:
        os.environ.clear()
        os.environ.update(before)
    assert len(contents(path)) - 1 == len(COLLECTORS)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_fleet_gives_away_no_ticket(machine: Machine, tmp_path: Path) -> None:
    machine.do("project", "init", "plant", "--address", f"127.0.0.1:{free_port()}")
    ticket = machine.do("project", "ticket")
    machine.do("diag", str(tmp_path / "d.tar.gz"))
    found = contents(tmp_path / "d.tar.gz")
    assert "running" in found["nodes.json"]
    for name, text in found.items():
        assert ticket[:60] not in text, name
        assert ticket[-40:] not in text, name
