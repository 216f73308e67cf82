"""Identities by the command: rotated under running nodes, exported, taken over, attested, repaired."""

import json
from contextlib import closing
from pathlib import Path

import pytest

from edge.errors import EdgeError
from edge.node.store import Store, UnsettledKey, VaultRecord
from tests.cli.test_end_to_end import Machine, machine
from tests.cli.test_local import home, out, run
from vault_backends import open_vault
from vault_backends.vault import Kind

__all__ = ["home", "machine"]
NONCE = "00" * 16


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_running_nodes_follow_at_once(machine: Machine) -> None:
    """Two nodes of one identity; a third is stopped, and has the new key when it is started."""
    identifier = machine.do("identity", "create", "a")
    machine.do("node", "create", "one", "--identity", "a")
    machine.do("node", "create", "two", "--identity", "a", "--no-tcp-listener")
    machine.do("node", "create", "three", "--identity", "a", "--no-tcp-listener")
    machine.do("node", "stop", "three")
    pids = machine.pid("one"), machine.pid("two")
    said = json.loads(machine.do("identity", "rotate", "a", "--yes", "--output", "json"))
    assert said == {
        "identifier": identifier,
        "nodes": {"one": "follows", "two": "follows", "three": "stopped"},
    }
    machine.do("node", "start", "three")
    for name in ("one", "two", "three"):
        assert machine.node(name)["identity_changes"] == 2
        assert machine.node(name)["identity_behind"] is None
    assert (machine.pid("one"), machine.pid("two")) == pids
    at = json.loads(machine.do("node", "show", "one"))["listening"][0].rpartition(":")[2]
    route = f"/ip4/127.0.0.1/tcp/{at}/secure/api/service/echo"
    assert machine.do("message", "send", "hello", "--from", "two", "--to", route) == "hello"


@pytest.mark.usefixtures("home")
def test_export_is_public_and_enough_to_take_an_identity_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identifier = out("identity", "create", "a")
    out("identity", "rotate", "a", "-y")
    encoded = out("identity", "export")
    assert encoded == out("identity", "show", "--full", "--encoding", "hex")
    assert json.loads(out("identity", "export", "a", "--output", "json")) == {
        "identifier": identifier, "name": "a", "encoded": encoded,
    }  # fmt: skip
    vault = f"software:{tmp_path}/home/vault.sealed"
    monkeypatch.setenv("OCKAM_HOME", str(tmp_path / "fresh"))
    assert out("identity", "create", "b", "--vault", vault, "--identity", encoded) == identifier
    assert run("identity", "create", "c", "--identity", encoded, "--kind", "p256").exit_code == 2
    for bad in ("no", encoded[:-2]):
        with pytest.raises(EdgeError):
            run("identity", "create", "c", "--vault", vault, "--identity", bad)


@pytest.mark.usefixtures("home")
def test_a_statement_of_an_identity_about_its_key(tmp_path: Path) -> None:
    identifier = out("identity", "create", "a")
    statement = out("identity", "attest", "a", "--nonce", NONCE)
    file = tmp_path / "statement"
    file.write_text(statement + "\n")
    check = ("identity", "verify-attestation")
    for how in (statement, str(file)):
        assert out(*check, how, "--nonce", NONCE, "--identifier", identifier) == identifier
    said = json.loads(out(*check, statement, "--nonce", NONCE, "--output", "json"))
    assert said["description"]["extractable"] is True
    assert said["identifier"] == identifier
    for bad in (
        (statement, "--nonce", "11" * 16),
        (statement, "--nonce", NONCE, "--identifier", "I" + "ab" * 32),
        (statement[:-2] + ("00" if statement[-2:] != "00" else "11"), "--nonce", NONCE),
        (str(tmp_path / "missing"), "--nonce", NONCE),
        (__file__, "--nonce", NONCE),
    ):
        with pytest.raises(EdgeError):
            run(*check, *bad)
    assert run(*check, statement, "--nonce", "xyz").exit_code == 2


def test_leftovers_are_listed_and_repaired(home: Path) -> None:
    out("identity", "create", "a")
    uri = f"software:{home}/vault.sealed"
    with closing(open_vault(uri)) as vault, closing(Store(home / "edge.db")) as store:
        vault.generate(Kind.ED25519, "old")
        for name, label, what in (("a", "old", "going"), ("b", "ockam-b", "making")):
            row = UnsettledKey(name, "default", "ed25519", label, what)
            store.reserve_key(row, VaultRecord("default", uri, True))
    said = run("identity", "list").stderr
    assert "identity repair" in said
    assert "identity create b finishes it" in said
    assert out("identity", "repair") == "old"
    assert out("identity", "repair") == ""
    assert "old" not in run("identity", "list").stderr
    assert out("identity", "delete", "b", "-y") == "b"
    assert run("identity", "list").stderr == ""
