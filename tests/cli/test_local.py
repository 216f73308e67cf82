"""Identities, vaults and stopped nodes: commands that need no process beside them."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from edge.cli.main import program


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OCKAM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def run(*arguments: str) -> Result:
    """Errors are raised as they are: main() is what turns them into exit codes."""
    return CliRunner().invoke(program, arguments, catch_exceptions=False)


def out(*arguments: str) -> str:
    found = run(*arguments)
    assert found.exit_code == 0, found.output
    return found.stdout


def test_an_identity_from_birth_to_death() -> None:
    identifier = out("identity", "create", "a")
    assert identifier.startswith("I")
    assert len(identifier) == 65
    assert out("identity", "show", "a") == identifier == out("identity", "show")
    assert json.loads(out("identity", "show", "--output", "json")) == {"identifier": identifier}
    assert json.loads(out("identity", "list")) == [
        {"identifier": identifier, "name": "a", "vault_name": "default", "is_default": True}
    ]
    assert out("identity", "default") == "a"
    assert out("identity", "delete", "a", "--yes") == "a"
    assert out("identity", "list") == "[]" == out("identity", "show", "a")


def test_the_history_of_an_identity() -> None:
    identifier = out("identity", "create", "a", "--kind", "p256")
    first = json.loads(out("identity", "show", "--full", "--output", "json"))
    assert first["identifier"] == identifier
    assert first["changes"][0]["primary_public_key"].startswith("ECDSASHA256CurveP256: 04")
    assert out("identity", "rotate", "a", "--yes") == identifier
    text = out("identity", "show", "--full")
    assert text.startswith(f"Identifier: {identifier}\n  Change[0]:")
    assert "Change[1]:" in text
    encoded = out("identity", "show", "--full", "--encoding", "hex")
    assert bytes.fromhex(encoded)
    assert json.loads(
        out("identity", "show", "--full", "--encoding", "hex", "--output", "json")
    ) == {"encoded": encoded}


def test_encoding_needs_full() -> None:
    assert run("identity", "show", "--encoding", "hex").exit_code == 2  # 64 by main()


def test_identities_by_default() -> None:
    out("identity", "create")
    out("identity", "create")
    names = [item["name"] for item in json.loads(out("identity", "list"))]
    assert "default" in names
    other = next(name for name in names if name != "default")
    assert out("identity", "default", other) == other == out("identity", "default")
    out("identity", "delete", "--all", "--yes")
    assert out("identity", "list") == "[]"


def test_deleting_nothing_does_nothing() -> None:
    out("identity", "create", "a")
    assert out("identity", "delete") == ""
    assert json.loads(out("identity", "list"))


def test_vaults(home: Path) -> None:
    assert out("vault", "create", "v", "--path", str(home / "my keys")) == "v"
    assert out("vault", "show", "v") == "v" == out("vault", "show")
    shown = json.loads(out("vault", "show", "--output", "json"))["vault"]
    assert shown["uri"].endswith("/my%20keys")
    assert "LocalFileVault" in shown["vault_type"]
    out("identity", "create", "a", "--vault", "v")
    assert (home / "my keys").exists()
    out("identity", "delete", "a", "-y")
    assert out("vault", "delete", "v", "-y") == "v"
    assert out("vault", "list") == "[]"


def test_a_vault_on_a_token_needs_no_token_to_be_named() -> None:
    out("vault", "create", "t", "--uri", "pkcs11:token=edge?module-path=/lib/x.so")
    assert json.loads(out("vault", "list"))[0]["vault"]["vault_type"] == {
        "Pkcs11Vault": {"token": "token=edge"}
    }


def test_no_nodes() -> None:
    assert out("node", "list") == "[]" == out("node", "show", "x")
    assert out("node", "delete", "x", "-y") == "[]"
