"""The whole command, in a process of its own: what it imports, global options, exit codes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edge.cli import main

ROOT = Path(__file__).parents[2]
HEAVY = {"asyncio", "cryptography", "pkcs11", "uvloop", "nacl", "ssl", "concurrent.futures"}
OTHER_VERBS = {
    "hsm": "create-key", "message": "send", "project": "ticket", "project-member": "add",
    "credential": "issue",
    "systemd": "install", "worker": "", "status": "", "diag": "", "service": "",
}  # fmt: skip
COMMANDS = [
    *([noun] for noun in main.NOUNS),
    *([noun, "create"] for noun in main.NOUNS if noun not in OTHER_VERBS),
    *([noun, verb] for noun, verb in OTHER_VERBS.items() if verb),
]
SPY = """
import sys
from edge.cli.main import run
status = run(sys.argv[1:])
print("\\n" + " ".join(sys.modules))
sys.exit(status)
"""


def edge(home: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edge", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OCKAM_HOME": str(home), **environment},
        timeout=30,
        check=False,
    )


def imported(home: Path, *arguments: str) -> set[str]:
    """The modules that a command has loaded when it ends."""
    found = subprocess.run(
        [sys.executable, "-c", SPY, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OCKAM_HOME": str(home)},
        check=True,
    )
    return set(found.stdout.splitlines()[-1].split())


def test_help_imports_no_noun(tmp_path: Path) -> None:
    found = imported(tmp_path, "--help")
    assert not found & HEAVY
    assert not {name for name in found if name.startswith("edge.node")}
    assert "edge.cli.identity" not in found


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_the_help_of_every_command_is_light(tmp_path: Path, command: list[str]) -> None:
    assert not imported(tmp_path, *command, "--help") & HEAVY


def test_quick_commands_are_light(tmp_path: Path) -> None:
    assert edge(tmp_path, "identity", "create", "a").returncode == 0
    for command in (
        ["identity", "show", "a"],
        ["identity", "list"],
        ["vault", "list"],
        ["node", "list"],
    ):
        assert not imported(tmp_path, *command) & HEAVY, command


def test_version(tmp_path: Path) -> None:
    found = edge(tmp_path, "node", "list", "-V")
    assert (found.returncode, found.stdout.split()[0]) == (0, "ockam-edge")


def test_the_help_names_every_noun(tmp_path: Path) -> None:
    found = edge(tmp_path, "-h")
    assert found.returncode == 0
    assert all(f"\n  {noun} " in found.stdout for noun in main.NOUNS)


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["node", "nonsense"],
        ["node", "create", "--nonsense"],
        ["node", "create", "a b"],
        ["node", "create", "n", "--exit-on-eof"],
        ["tcp-outlet", "create"],
        ["tcp-outlet", "create", "--to", "host"],
        ["tcp-inlet", "create", "--to", "b a d"],
        ["tcp-inlet", "create", "--to", "/a/b/c/d/e"],
        ["tcp-inlet", "create", "--to", "/a/b/c/d", "--via", "r"],
        ["project", "enroll", "--timeout", "x"],
        ["policy", "create", "--allow", "a"],
        ["message", "send", "zz", "--hex", "--to", "/service/echo"],
        ["vault", "create", "v", "--uri", "software:/x", "--path", "x"],
        ["--output", "yaml", "node", "list"],
    ],
    ids=" ".join,
)
def test_misuse_is_64(tmp_path: Path, arguments: list[str]) -> None:
    found = edge(tmp_path, *arguments)
    assert (found.returncode, found.stdout) == (64, "")
    assert found.stderr
    assert not (tmp_path / "edge.db").exists() or not json.loads(
        edge(tmp_path, "node", "list").stdout
    )


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("projects", "'project'"), ("tcp-inlets", "'tcp-inlet'"), ("idenity", "'identity'")],
)
def test_a_misspelt_noun_is_recognised(tmp_path: Path, wrong: str, near: str) -> None:
    found = edge(tmp_path, wrong, "list")
    assert found.returncode == 64
    assert f"Did you mean {near}?" in found.stderr


def test_a_vault_that_was_not_there_is_told(tmp_path: Path) -> None:
    found = edge(tmp_path, "identity", "create", "a", "--vault", "tokne")
    assert "there was no vault tokne: it was made, software:" in found.stderr
    assert "no vault" not in edge(tmp_path, "identity", "create", "b", "--vault", "tokne").stderr


@pytest.mark.parametrize("name", ["QUIET", "NO_COLOR", "NO_INPUT"])
def test_boolean_variables_are_true_or_false(tmp_path: Path, name: str) -> None:
    for value, status in (("true", 0), ("false", 0), ("1", 64), ("yes", 64)):
        assert edge(tmp_path, "node", "list", **{name: value}).returncode == status


def test_global_options_stand_anywhere(tmp_path: Path) -> None:
    edge(tmp_path, "vault", "create", "v")
    for line in (["--output", "json", "vault", "show"], ["vault", "show", "--output", "json"]):
        assert json.loads(edge(tmp_path, *line).stdout)["vault"]["name"] == "v"
    assert "\n" not in edge(tmp_path, "vault", "list", "--compact-output").stdout


def test_quiet_says_nothing_of_a_failure(tmp_path: Path) -> None:
    found = edge(tmp_path, "tcp-outlet", "list", "-q")
    assert (found.returncode, found.stdout, found.stderr) == (70, "", "")


def test_a_failure_is_70_and_says_what_to_do(tmp_path: Path) -> None:
    found = edge(tmp_path, "tcp-outlet", "list")
    assert (found.returncode, found.stdout) == (70, "")
    assert found.stderr == "error: there is no node\nhint: make one: ockam-edge node create\n"


def test_a_failure_of_a_vault_is_told_alike(tmp_path: Path) -> None:
    found = edge(tmp_path, "identity", "create", "a", "--vault", "nonsense:x")
    assert found.returncode == 70
    assert found.stderr.startswith("error: vault URI: unknown scheme")
    assert edge(tmp_path, "identity", "list").stdout == "[]"


def test_a_bug_shows_where(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(main.NOUNS, "node", ("edge.cli.nowhere:x", ""))
    assert main.run(["node"]) == 70
    captured = capsys.readouterr()
    assert "Traceback" in captured.err
    assert "error: this is a bug: ModuleNotFoundError" in captured.err
