"""What a row of the table is, and the rows that are not nodes: direct, and two ssh through an sshd."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import time
from abc import ABC, abstractmethod
from pathlib import Path

from benchmarks.harness import (
    LOOPBACK,
    BenchError,
    Harness,
    descendants,
    kill_group,
    listening,
    wait_until,
)
from benchmarks.measure import Targets


class Row(ABC):
    """One way from here to the targets."""

    name: str
    ciphers = "-"  # passes per byte, there: for the reader of the table
    ours = False

    iperf: int = 0  # where on loopback the way to each target begins
    echo: int = 0

    def __init__(self, harness: Harness, targets: Targets) -> None:
        self.harness = harness
        self.targets = targets

    def missing(self) -> str:
        """Why this row cannot run on this machine; "" when it can."""
        return ""

    @abstractmethod
    def start(self) -> None:
        """Bring the way up, sending through it not included."""

    def processes(self) -> dict[str, list[int]]:
        """Who is on the way: name and process numbers, for the memory columns."""
        return {}

    def relaunch(self) -> float:
        """End the near end and execute it again; the time (monotonic) of the exec. BenchError when
        the row has nothing to execute."""
        raise BenchError("nothing to start")


class Direct(Row):
    """The targets themselves."""

    name = "direct"

    def start(self) -> None:
        self.iperf, self.echo = self.targets.iperf, self.targets.echo


class Ssh(Row):
    """`ssh -L` here, `ssh -R` at the far end, one sshd between them: two ciphers per byte."""

    name = "ssh"
    ciphers = "2"
    cipher: str | None = None  # the default of this OpenSSH

    def missing(self) -> str:
        absent = [tool for tool in ("ssh", "ssh-keygen") if not shutil.which(tool)]
        if not _sshd():
            absent.append("sshd")
        return f"not installed: {', '.join(absent)}" if absent else ""

    def start(self) -> None:
        folder = self.harness.sub(self.name)
        for key in ("host", "user"):
            self.harness.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)]
            )
        shutil.copy(folder / "user.pub", folder / "authorized")
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        self.port = self.harness.port()
        (folder / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress {LOOPBACK}\nHostKey {folder}/host\n"
            f"AuthorizedKeysFile {folder}/authorized\nPidFile none\nStrictModes no\nUsePAM no\n"
            "PermitRootLogin prohibit-password\nPasswordAuthentication no\n"
            "KbdInteractiveAuthentication no\nAllowTcpForwarding yes\nUseDNS no\n"
        )
        self._sshd = self.harness.spawn(
            [_sshd(), "-D", "-e", "-f", str(folder / "sshd_config")], log=f"{self.name}-sshd"
        )
        wait_until("sshd", lambda: listening(self.port), 10)
        middle = [self.harness.port(), self.harness.port()]
        self.iperf, self.echo = self.harness.port(), self.harness.port()
        self._far = self._ssh(
            "-R",
            f"{LOOPBACK}:{middle[0]}:{LOOPBACK}:{self.targets.iperf}",
            "-R",
            f"{LOOPBACK}:{middle[1]}:{LOOPBACK}:{self.targets.echo}",
        )
        wait_until("ssh -R", lambda: listening(middle[1]), 10)
        self._forwards = (
            "-L",
            f"{LOOPBACK}:{self.iperf}:{LOOPBACK}:{middle[0]}",
            "-L",
            f"{LOOPBACK}:{self.echo}:{LOOPBACK}:{middle[1]}",
        )
        self._near = self._ssh(*self._forwards)
        wait_until("ssh -L", lambda: listening(self.echo), 10)

    def _ssh(self, *forwards: str) -> subprocess.Popen[bytes]:
        folder = self.harness.folder / self.name
        cipher = [] if self.cipher is None else ["-c", self.cipher]
        return self.harness.spawn(
            [
                "ssh",
                "-F",
                "none",
                "-N",
                "-T",
                "-i",
                str(folder / "user"),
                *cipher,
                "-o",
                f"UserKnownHostsFile={folder}/known",
                "-o",
                "StrictHostKeyChecking=no",
                "-o",
                "BatchMode=yes",
                "-o",
                "IdentitiesOnly=yes",
                "-o",
                "IdentityAgent=none",
                "-o",
                "ExitOnForwardFailure=yes",
                "-o",
                "LogLevel=ERROR",
                *forwards,
                "-p",
                str(self.port),
                f"{getpass.getuser()}@{LOOPBACK}",
            ],
            log=f"{self.name}-client",
        )

    def processes(self) -> dict[str, list[int]]:
        return {
            "hub": [self._sshd.pid, *descendants(self._sshd.pid)],
            "gw": [self._far.pid],
            "client": [self._near.pid],
        }

    def relaunch(self) -> float:
        kill_group(self._near)
        start = time.monotonic()
        self._near = self._ssh(*self._forwards)
        return start


class SshGcm(Ssh):
    """The same with AES-256-GCM, the cipher of the channels."""

    name = "ssh-aes256gcm"
    cipher = "aes256-gcm@openssh.com"


def _sshd() -> str:
    return (
        shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin") or ""
    )
