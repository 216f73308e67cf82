"""`ockam-edge systemd`: what it writes, removes, refuses and shows; systemd itself is in tests/boot."""

import subprocess
import sys
from pathlib import Path

import pytest

from edge.cli import units
from edge.cli.main import run


class Said:
    """What systemd's commands are told, and what they answer."""

    def __init__(self) -> None:
        self.commands: list[tuple[str, ...]] = []
        self.answers: dict[str, str] = {}

    def __call__(self, *command: str) -> str:
        self.commands.append(command)
        return next((text for key, text in self.answers.items() if key in command), "")


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Said:
    """Root, in a system of its own, with the program where all can reach it."""
    told = Said()
    monkeypatch.setattr(units, "ROOT", tmp_path)
    monkeypatch.setattr(units, "_tell", told)
    monkeypatch.setattr(units.os, "geteuid", lambda: 0)
    monkeypatch.setattr(units, "_program", lambda: Path("/usr/bin/env"))
    monkeypatch.setattr(sys, "executable", "/usr/bin/env")
    return told


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_install_twice_and_uninstall(said: Said, tmp_path: Path) -> None:
    for _ in range(2):
        assert run(["systemd", "install"]) == 0
        assert ("systemctl", "enable", "ockam-edge.service") in said.commands
    names = files(tmp_path)
    assert len(names) == 10
    unit = (tmp_path / "etc/systemd/system/ockam-edge.service").read_text()
    assert "\nExecStart=/usr/bin/env node run --file " in unit
    assert units.PACKAGED not in "".join((tmp_path / name).read_text() for name in names)
    common = tmp_path / "etc/systemd/system/ockam-edge.service.d/10-common.conf"
    assert "NoNewPrivileges=yes" in common.read_text()
    mine = common.with_name("mine.conf")
    mine.write_text("[Service]\n")
    assert run(["systemd", "uninstall"]) == 0
    assert files(tmp_path) == ["etc/systemd/system/ockam-edge.service.d/mine.conf"]
    assert ("systemctl", "disable", "--now", "ockam-edge.service") in said.commands


def test_nothing_to_uninstall(said: Said, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["systemd", "uninstall"]) == 0
    assert capsys.readouterr().out.strip() == "[]"
    assert not said.commands


def test_what_somebody_else_wrote_stays(
    said: Said, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = tmp_path / "etc/systemd/system/ockam-edge.service"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("[Service]\n")
    assert run(["systemd", "install"]) == 70
    assert "was not written by this command" in capsys.readouterr().err
    assert run(["systemd", "uninstall"]) == 0
    assert theirs.exists()


def test_not_beside_the_debian_package(
    said: Said, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packaged = tmp_path / "usr/lib/systemd/system/ockam-edge.service"
    packaged.parent.mkdir(parents=True)
    packaged.touch()
    assert run(["systemd", "install"]) == 70
    assert "the Debian package" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("program", "why"),
    [("/root/.local/x", "there is no"), ("/root", "cannot see /root"), ("/tmp", "cannot see /tmp")],
)
def test_a_program_that_the_service_cannot_run(
    said: Said,
    program: str,
    why: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(units, "_program", lambda: Path(program))
    assert run(["systemd", "install"]) == 70
    error = capsys.readouterr().err
    assert why in error
    assert "PIPX_HOME=/opt/pipx" in error
    assert not said.commands


def test_a_folder_that_others_may_not_enter(
    said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(units, "HIDDEN", ())
    program = tmp_path / "closed" / "ockam-edge"
    program.parent.mkdir(mode=0o700)
    program.touch(mode=0o755)
    monkeypatch.setattr(units, "_program", lambda: program)
    assert run(["systemd", "install"]) == 70
    assert "may not enter" in capsys.readouterr().err


@pytest.mark.parametrize("verb", [["install"], ["uninstall"], ["run", "node", "list"]])
def test_only_root(
    verb: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(units.os, "geteuid", lambda: 1000)
    assert run(["systemd", *verb]) == 70
    assert "only root" in capsys.readouterr().err


def test_status(said: Said, capsys: pytest.CaptureFixture[str]) -> None:
    said.answers = {
        "list-units": "ockam-edge.service loaded active running x\nockam-edge@b.service loaded\n",
        "ockam-edge.service": "ActiveState=active\nSubState=running\nStatusText=node g: 1 relay up\n"
        "Result=success\nNRestarts=0\nUnitFileState=enabled\n",
        "ockam-edge@b.service": "ActiveState=activating\nSubState=auto-restart\nStatusText=\n"
        "Result=watchdog\nNRestarts=3\nUnitFileState=disabled\n",
    }
    items = [units._unit("ockam-edge.service"), units._unit("ockam-edge@b.service")]
    assert [units._line(item) for item in items] == [
        "ockam-edge.service: active (running)\n    node g: 1 relay up",
        "ockam-edge@b.service: activating (auto-restart), last result watchdog, 3 restarts",
    ]
    assert run(["systemd", "status"]) == 0
    assert '"unit": "ockam-edge@b.service"' in capsys.readouterr().out


def test_a_command_inside_sees_what_the_node_sees(
    said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = Path(__file__).parents[2] / "systemd"
    said.answers = {"cat": (texts / "common.conf").read_text()}
    started: list[list[str]] = []

    def start(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        started.append(command)
        return subprocess.CompletedProcess(command, 3)

    monkeypatch.setattr(units.subprocess, "run", start)
    assert run(["systemd", "run", "node", "create", "--no-start", "-t", "127.0.0.1:1"]) == 3
    (command,) = started
    for wanted in (
        "User=ockam-edge",
        "LoadCredential=ockam-edge.pin",
        "NoNewPrivileges=yes",
        "Environment=OCKAM_HOME=/var/lib/ockam-edge",
        "RuntimeDirectory=ockam-edge",
    ):
        assert f"--property={wanted}" in command
    assert command[command.index("--") :] == [
        "--", "/usr/bin/env", "node", "create", "--no-start", "-t", "127.0.0.1:1",
    ]  # fmt: skip


def test_a_system_without_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(units.ConfigError, match="no systemd"):
        units._tell("systemctl", "daemon-reload")
    monkeypatch.undo()
    with pytest.raises(units.ConfigError, match="false: status 1"):
        units._tell("false")
