"""`systemd`: the units of the service, for an installation by pipx; and commands inside the service.

The texts are those of the folder systemd/, which the Debian package installs too; only the path of the
program differs. What was written here begins with a mark, and nothing else is removed.
"""

import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

from edge.cli.main import Noun
from edge.cli.output import Result, done
from edge.errors import ConfigError

MARK = "# Written by `ockam-edge systemd install`; `ockam-edge systemd uninstall` removes it.\n"
PACKAGED = "/usr/lib/ockam-edge/bin/ockam-edge"
"""The program, in the texts."""
ROOT = Path("/")
MAIN = "ockam-edge.service"
UNITS = (MAIN, "ockam-edge@.service", "ockam-edge-hub.service", "ockam-edge-authority.service")
USER = "ockam-edge"
STATE = "/var/lib/ockam-edge"
HIDDEN = ("/home", "/root", "/run", "/tmp", "/var/tmp")
"""What the sandbox hides from the service, or lets nothing be run from."""
SHOWN = ("ActiveState", "SubState", "StatusText", "Result", "NRestarts", "UnitFileState")


@click.group("systemd", cls=Noun)
def systemd() -> None:
    """The service of the system that a node runs in."""


@systemd.command()
def install() -> Result:
    """Write units, user and folders of the service, and switch it on. Again after an upgrade."""
    _check_root()
    program = _program()
    _refuse_beside_package()
    _check_reachable(program)
    written = [_written(ROOT / target, text) for target, text in _files(program).items()]
    _tell("systemd-sysusers", "ockam-edge.conf")
    _tell("systemd-tmpfiles", "--create", "ockam-edge.conf")
    _tell("systemctl", "daemon-reload")
    _tell("systemctl", "enable", MAIN)
    text = done(f"the service {MAIN} is installed, for {program}")
    text += "\n    make its node: ockam-edge systemd run node create NAME --no-start\n"
    text += f"    start it:      systemctl start {MAIN}"
    return Result(text=text, json={"program": str(program), "written": written})


@systemd.command()
def uninstall() -> Result:
    """Stop the service and remove what `install` wrote. Keys and configuration stay."""
    _check_root()
    ours = [ROOT / target for target in _files(Path(PACKAGED)) if _is_ours(ROOT / target)]
    if not ours:
        return Result(text="    nothing was installed", json=[])
    _tell("systemctl", "disable", "--now", MAIN)
    _tell("systemctl", "stop", "ockam-edge@*.service", *UNITS[2:])
    for path in ours:
        path.unlink()
        if path.parent.name.endswith(".service.d") and not any(path.parent.iterdir()):
            path.parent.rmdir()
    _tell("systemctl", "daemon-reload")
    text = done(f"the service is removed; {STATE}, /etc/ockam-edge and the user {USER} stay")
    return Result(text=text, json=[str(path) for path in ours])


@systemd.command()
def status() -> Result:
    """Each unit of ours that is loaded: whether it runs, and what it says of itself."""
    names = _tell(
        "systemctl", "list-units", "--all", "--plain", "--no-legend", "ockam-edge*.service"
    )
    units = {MAIN, *(line.split()[0] for line in names.splitlines() if line.split())}
    items = [_unit(name) for name in sorted(units)]
    return Result(text="\n".join(map(_line, items)), json=items)


@systemd.command(context_settings={"ignore_unknown_options": True})
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(command: tuple[str, ...]) -> None:
    """Run an ockam-edge COMMAND as the service's user, in its home and with its secrets.

    A token whose PIN is a credential can be used by the service only: this is how to make an
    identity in it before the first start.
    """
    _check_root()
    terminal = "--pty" if sys.stdin.isatty() and sys.stdout.isatty() else "--pipe"
    words = ["systemd-run", "--quiet", "--wait", "--collect", terminal, "--service-type=exec"]
    words += [f"--property={line}" for line in _inside()]
    ended = subprocess.run([*words, "--", str(_program()), *command], check=False)
    raise click.exceptions.Exit(ended.returncode)


def _inside() -> list[str]:
    """The settings of the unit that a command needs to see what the node sees."""
    shown = _tell("systemctl", "cat", MAIN)
    lines = [line.strip() for line in shown.splitlines()]
    taken = ("Environment=", "LoadCredential=", "LoadCredentialEncrypted=", "SupplementaryGroups=",
             "User=", "Group=", "UMask=", "StateDirectory=", "RuntimeDirectory",
        "BindPaths=", "ProtectHome=",
             "ProtectSystem=", "NoNewPrivileges=")  # fmt: skip
    return [line for line in lines if line.startswith(taken)]


# -- the files


def _files(program: Path) -> dict[str, str]:
    """Where each goes, below the root, and its text."""
    folder = _texts()
    common = (folder / "common.conf").read_text()
    files = {
        "etc/sysusers.d/ockam-edge.conf": (folder / "ockam-edge.sysusers").read_text(),
        "etc/tmpfiles.d/ockam-edge.conf": (folder / "ockam-edge.tmpfiles").read_text(),
    }
    for unit in UNITS:
        text = (folder / unit).read_text().replace(PACKAGED, str(program))
        files[f"etc/systemd/system/{unit}"] = text
        files[f"etc/systemd/system/{unit}.d/10-common.conf"] = common
    return {target: MARK + text for target, text in files.items()}


def _texts() -> Path:
    """The folder systemd/: of this installation, or of the checkout."""
    for folder in (
        Path(sys.prefix) / "share/ockam-edge/systemd",
        Path(__file__).parents[2] / "systemd",
    ):
        if (folder / MAIN).is_file():
            return folder
    raise ConfigError(
        "the texts of the units are not part of this installation",
        hint="install ockam-edge by pipx or pip from a wheel, or take the Debian package",
    )


def _written(path: Path, text: str) -> str:
    if os.path.realpath(path) == os.devnull:
        raise ConfigError(f"{path.name} is masked", hint=f"systemctl unmask {path.name}")
    if path.exists() and not _is_ours(path):
        raise ConfigError(
            f"{path} was not written by this command", hint="move it away, or edit it yourself"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o644)
    return str(path)


def _is_ours(path: Path) -> bool:
    try:
        return path.read_text().startswith(MARK)
    except OSError:
        return False


# -- what must be so


def _check_root() -> None:
    if os.geteuid() != 0:
        raise ConfigError("only root may do this", hint="sudo ockam-edge systemd …")


def _program() -> Path:
    return Path(sys.prefix) / "bin" / "ockam-edge"


def _refuse_beside_package() -> None:
    packaged = ROOT / "usr/lib/systemd/system" / MAIN
    if packaged.exists():
        raise ConfigError(f"the Debian package has installed the service: {packaged}")


def _check_reachable(program: Path) -> None:
    """The service's user must be able to run it, from inside the sandbox."""
    hint = "install it for all: PIPX_HOME=/opt/pipx PIPX_BIN_DIR=/usr/local/bin pipx install ockam-edge"
    if not program.exists():
        raise ConfigError(f"there is no {program}", hint=hint)
    for path in (program, program.resolve(), Path(sys.executable).resolve()):
        if any(path.is_relative_to(hidden) for hidden in HIDDEN):
            raise ConfigError(f"the service cannot see {path}", hint=hint)
        for part in (path, *path.parents):
            if not os.stat(part).st_mode & stat.S_IXOTH:
                raise ConfigError(f"the user {USER} may not enter {part}", hint=hint)


# -- what systemd says


def _tell(*command: str) -> str:
    """Raises ConfigError where it fails."""
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise ConfigError(f"{command[0]} is missing: this system has no systemd") from None
    if told.returncode:
        why = told.stderr.strip().splitlines() or [f"status {told.returncode}"]
        raise ConfigError(f"{' '.join(command)}: {why[-1]}")
    return told.stdout


def _unit(name: str) -> dict[str, Any]:
    shown = _tell("systemctl", "show", name, *(f"--property={key}" for key in SHOWN))
    return {"unit": name, **dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)}


def _line(item: dict[str, Any]) -> str:
    state = f"{item['ActiveState']} ({item['SubState']})"
    if item["Result"] not in ("success", ""):
        state += f", last result {item['Result']}, {item['NRestarts']} restarts"
    return f"{item['unit']}: {state}" + (
        f"\n    {item['StatusText']}" if item["StatusText"] else ""
    )
