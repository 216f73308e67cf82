"""Home: the one folder that everything is kept in, and what in it is called how.

edge.db            what was configured (store.py)
vault.sealed       keys of the software vault
log/NAME.log       what the node NAME says in the background
run/NAME.lock      held by the node while it runs; its process id and socket inside
run/NAME.sock      where it is asked
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from edge.errors import ConfigError

LONGEST_SOCKET = 100
"""Bytes; the kernel takes 108 with the NUL."""
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


def check_name(what: str, name: str) -> str:
    """Names become file names and addresses. Raises ConfigError."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name[:80]!r} cannot be the name of {what}",
            hint="use 1 to 64 letters, digits, - and _",
        )
    return name


class Running(NamedTuple):
    """A node that runs: its process, and where to ask it."""

    pid: int
    socket: Path


class Lock:
    """The right to be the node of a name, held until close() or the end of the process."""

    def __init__(self, fd: int, path: Path) -> None:
        self._fd = fd
        self._path = path

    def write(self, socket: Path) -> None:
        """Say who we are to those who look."""
        text = f"{os.getpid()}\n{socket}\n".encode()
        os.pwrite(self._fd, text, 0)
        os.ftruncate(self._fd, len(text))

    def close(self) -> None:
        os.ftruncate(self._fd, 0)
        os.close(self._fd)


class Home:
    """The folder, and the names in it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] = os.environ) -> Home:
        """$OCKAM_HOME, or ~/.ockam-edge."""
        given = environment.get("OCKAM_HOME")
        return cls(Path(given).absolute() if given else Path.home() / ".ockam-edge")

    def prepare(self) -> Home:
        """Make the folders where they are missing. Raises ConfigError."""
        for folder in (self.root, self.root / "log", self.root / "run"):
            _folder(folder)
        return self

    @property
    def database(self) -> Path:
        return self.root / "edge.db"

    @property
    def vault_uri(self) -> str:
        """The software vault that is made where none is named."""
        from urllib.parse import quote  # noqa: PLC0415 - seldom needed, and quick commands stay quick

        return f"software:{quote(str(self.root))}/vault.sealed"

    def log(self, name: str) -> Path:
        return self.root / "log" / f"{check_name('a node', name)}.log"

    def lock(self, name: str) -> Path:
        return self.root / "run" / f"{check_name('a node', name)}.lock"

    def socket(self, name: str) -> Path:
        """Where the node listens for the command line: short enough for the kernel."""
        path = self.root / "run" / f"{check_name('a node', name)}.sock"
        if len(os.fsencode(path)) <= LONGEST_SOCKET:
            return path
        digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
        return _short_folder() / f"{digest}.sock"

    def running(self, name: str) -> Running | None:
        """The process of the node `name`, if it runs."""
        try:
            fd = os.open(self.lock(name), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _read_running(fd, self.socket(name))
        finally:
            os.close(fd)
        return None

    def take(self, name: str, *, patience: float = 0.5) -> Lock:
        """Become the node `name`. Raises ConfigError where it runs already."""
        path = self.lock(name)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        until = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return Lock(fd, path)
            except BlockingIOError:
                if time.monotonic() < until:  # somebody may just be looking, see running()
                    time.sleep(0.02)
                    continue
                found = _read_running(fd, path)
                os.close(fd)
                raise ConfigError(
                    f"the node {name} runs already, as process {found.pid}",
                    hint=f"stop it first: ockam-edge node stop {name}",
                ) from None


def _read_running(fd: int, otherwise: Path) -> Running:
    lines = os.pread(fd, 4096, 0).decode(errors="replace").split("\n")
    pid = int(lines[0]) if lines[0].isdigit() else 0
    return Running(pid, Path(lines[1]) if len(lines) > 1 and lines[1] else otherwise)


def _folder(path: Path) -> None:
    """A folder of our own that nobody else can write to. One of another user is none for root either:
    that user could put links there, for root to follow."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = os.stat(path)
    except OSError as error:
        raise ConfigError(
            f"cannot make the folder {path}: {error.strerror}",
            hint="set OCKAM_HOME to a folder of yours",
        ) from None
    if found.st_uid not in (0, os.geteuid()):
        raise ConfigError(
            f"the folder {path} belongs to user {found.st_uid}, not to you",
            hint=f"do this as that user: sudo -u '#{found.st_uid}' …",
        )
    if found.st_mode & 0o022:
        raise ConfigError(f"others can write to the folder {path}", hint=f"chmod go-w {path}")


def _short_folder() -> Path:
    """A folder with a short name for sockets, checked to be ours: /tmp is everybody's."""
    uid = os.geteuid()
    runtime = Path(f"/run/user/{uid}")
    path = runtime if runtime.is_dir() and os.stat(runtime).st_uid == uid else None
    path = (path or Path("/tmp")) / f"ockam-edge-{uid}"
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        found = os.lstat(path)
    except OSError as error:
        raise ConfigError(f"cannot make the folder {path}: {error.strerror}") from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != uid or found.st_mode & 0o077:
        raise ConfigError(
            f"{path} is not a private folder of this user, so no socket is put there",
            hint="remove it, or use a home with a shorter path",
        )
    return path
