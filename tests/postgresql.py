"""A PostgreSQL server of our own: in a temporary folder, on a unix socket and a port of loopback."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

OWNER = "postgres"
"""Of the processes, where we are root: PostgreSQL does not run as root."""
PASSWORD = "p:a/s?s#w@rd é"
"""Of the database user `fleet`, over TCP. Every character has to be written otherwise in a URL."""
QUICK = ("-c", "fsync=off", "-c", "full_page_writes=off")
START = 30.0


def program(name: str) -> str | None:
    """Debian keeps those of each version in a folder of its own."""
    places = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=_version)
    return str(places[-1]) if places else shutil.which(name)


def _version(path: Path) -> int:
    version = path.parts[-3]
    return int(version) if version.isdigit() else 0


def missing() -> str | None:
    """Why there can be no server here."""
    if program("initdb") is None or program("postgres") is None:
        return "no PostgreSQL server on this machine: apt-get install postgresql"
    if os.geteuid() == 0 and OWNER not in {entry.pw_name for entry in pwd.getpwall()}:
        return f"no user {OWNER} on this machine: apt-get install postgresql"
    return None


class Server:
    """Use `serving`."""

    def __init__(self, folder: Path, options: Sequence[str]) -> None:
        self.folder, self._options = folder, options
        self._process: subprocess.Popen[bytes] | None = None
        self._databases = 0
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self._user = OWNER if os.geteuid() == 0 else None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def prepare(self) -> None:
        if self._user is not None:
            shutil.chown(self.folder, self._user)
        secret = self.folder / "password"
        secret.write_text(PASSWORD)
        if self._user is not None:
            shutil.chown(secret, self._user)
        self._run(
            "initdb", "--no-sync", "--no-instructions", "--locale=C", "--encoding=UTF8",
            "--username=fleet", f"--pwfile={secret}", "--auth-local=trust",
            "--auth-host=scram-sha-256", f"--pgdata={self.folder / 'data'}",
        )  # fmt: skip

    def _run(self, name: str, *arguments: str) -> None:
        found = program(name)
        assert found is not None, missing()
        done = subprocess.run(
            [found, *arguments],
            user=self._user,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{name}: {done.stdout}\n{done.stderr}"

    def start(self) -> None:
        found = program("postgres")
        assert found is not None, missing()
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    found, "-D", str(self.folder / "data"), "-k", str(self.folder),
                    "-h", "127.0.0.1", "-p", str(self.port), *self._options,
                ],
                user=self._user, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        end = time.monotonic() + START
        while not self._accepts():
            assert self._process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < end, "PostgreSQL does not start"
            time.sleep(0.05)

    def _accepts(self) -> bool:
        done = subprocess.run(
            [program("pg_isready") or "pg_isready", "-q", "-h", self.folder, "-p", str(self.port)],
            stdin=subprocess.DEVNULL,
            timeout=10,
            check=False,
        )
        return done.returncode == 0

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT: at once and orderly; SIGQUIT: as a crash."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(how)
            try:
                process.wait(START)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(START)

    def database(self) -> str:
        """A fresh one; its name."""
        self._databases += 1
        name = f"fleet{self._databases}"
        self.sql(f"CREATE DATABASE {name}")
        return name

    def sql(self, text: str, database: str = "postgres") -> None:
        self._run(
            "psql", "-q", "-X", "-v", "ON_ERROR_STOP=1", "-h", str(self.folder),
            "-p", str(self.port), "-U", "fleet", "-d", database, "-c", text,
        )  # fmt: skip

    def url(self, database: str) -> str:
        """Over the unix socket, where nobody asks for a password."""
        return f"postgresql://fleet@/{database}?host={self.folder}&port={self.port}"

    def tcp_url(self, database: str, password: str = PASSWORD) -> str:
        secret = self.quoted(password)
        return f"postgresql://fleet:{secret}@127.0.0.1:{self.port}/{database}"

    @staticmethod
    def quoted(password: str) -> str:
        """As it stands in a URL."""
        return quote(password, safe="")


@contextlib.contextmanager
def serving(options: Sequence[str] = QUICK) -> Iterator[Server]:
    folder = Path(tempfile.mkdtemp(prefix="edge-pg-"))
    server = Server(folder, options)
    try:
        server.prepare()
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)
