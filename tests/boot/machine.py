"""A machine: systemd-nspawn boots a root file system of Debian, with a layer in memory above it.

Nothing outlives it: nspawn dies with this process, its mounts are in a mount namespace of their own,
and its control group is removed. Commands run in a unit of their own inside, by nsenter and
systemd-run, since a host without systemd has no machined to ask.
"""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

BOOT, STOP, COMMAND = 60.0, 20.0, 60.0
"""Seconds at most."""
ENTER = """
set -eu
name=$1; shift
if [ "$(stat -f -c %T /sys/fs/cgroup)" != cgroup2fs ]; then
    umount -l /sys/fs/cgroup
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
fi
mkdir "/sys/fs/cgroup/$name"
echo $$ >"/sys/fs/cgroup/$name/cgroup.procs"
mkdir -p /run/systemd/nspawn
mount -t tmpfs -o mode=755 tmpfs /run/systemd/nspawn
exec "$@"
"""
"""nspawn copies the host's layout of control groups: it gets the one that systemd wants, to itself."""
REMOVE = """
mount -t cgroup2 cgroup2 /sys/fs/cgroup
for try in $(seq 50); do
    [ -d "/sys/fs/cgroup/$1" ] || exit 0
    find "/sys/fs/cgroup/$1" -depth -type d -exec rmdir {} + && exit 0
    echo 1 >"/sys/fs/cgroup/$1/cgroup.kill" || true
    sleep 0.1
done
exit 1
"""
BPF = ("--capability=CAP_BPF,CAP_NET_ADMIN,CAP_PERFMON", "--system-call-filter=bpf")
"""Without these nspawn takes IPAddressDeny= and DevicePolicy= and does not enforce them."""
TOOLS = {"systemd-nspawn": "systemd-container", "mmdebstrap": "mmdebstrap", "ip": "iproute2"}


def missing() -> str | None:
    """Why no machine can be booted here."""
    if os.geteuid() != 0:
        return "only root can boot a machine: run it as root"
    absent = [package for tool, package in TOOLS.items() if shutil.which(tool) is None]
    if absent:
        return f"install {' '.join(absent)}"
    for kind in ("overlay", "cgroup2"):
        if kind not in Path("/proc/filesystems").read_text().split():
            return f"the kernel has no {kind}"
    probe = ["unshare", "--mount", "--propagation", "private", "mount", "-t", "tmpfs", "t", "/mnt"]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        return "namespaces cannot be made here"
    return None


class Machine:
    """One, booted when it is made. A context manager: it is off afterwards."""

    def __init__(self, root: Path, name: str, *, netns: str, binds: Sequence[str] = ()) -> None:
        self.name = name
        self._group = f"ockam-edge-test-{os.getpid()}-{name}"
        self._folder = tempfile.TemporaryDirectory(prefix="edge-boot-")
        self.console = Path(self._folder.name) / "console"
        command = [
            "setpriv", "--pdeathsig", "TERM", "unshare", "--mount", "--propagation", "private",
            "sh", "-c", ENTER, "sh", self._group,
            "systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit",
            f"--directory={root}", f"--machine={name}", "--volatile=overlay", "--console=pipe",
            "--settings=no", "--link-journal=no", "--resolv-conf=off", "--timezone=off",
            f"--network-namespace-path=/run/netns/{netns}", "--rlimit=RLIMIT_NOFILE=65536", *BPF,
            *(f"--bind-ro={bind}" for bind in binds),
        ]  # fmt: skip
        started = time.monotonic()
        with self.console.open("wb") as console:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=console, stderr=console,
                env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}, start_new_session=True,
            )  # fmt: skip
        try:
            self._leader = self._booted(started + BOOT)
        except BaseException:
            self.stop()
            raise
        self.boot_seconds = time.monotonic() - started

    def __enter__(self) -> "Machine":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # -- commands

    def run(
        self, *command: str, check: bool = True, timeout: float = COMMAND, text: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """One command in a unit of its own. AssertionError, with what it said, where it fails."""
        done = subprocess.run(
            [*self._enter(), "systemd-run", "--quiet", "--pipe", "--wait", "--collect",
             "--service-type=exec", "--property=KillMode=mixed", "--", *command],
            capture_output=True, text=True, timeout=timeout, check=False,
            input=text if text is not None else "",
        )  # fmt: skip
        if check and done.returncode:
            said = f"{done.stdout}{done.stderr}"
            raise AssertionError(f"{self.name}: {' '.join(command)}: {done.returncode}\n{said}")
        return done

    def sh(self, script: str, *, check: bool = True, timeout: float = COMMAND) -> str:
        """What a shell prints."""
        return self.run("sh", "-euc", script, check=check, timeout=timeout).stdout.strip()

    def start(self, *command: str) -> "subprocess.Popen[str]":
        """A command that goes on beside the test, with pipes."""
        inside = ["systemd-run", "--quiet", "--pipe", "--wait", "--collect", "--", *command]
        return subprocess.Popen(
            [*self._enter(), *inside], text=True, bufsize=1,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def write(self, path: str, text: str, mode: str = "0644") -> None:
        self.run("sh", "-euc", f"umask 077; cat >{path}; chmod {mode} {path}", text=text)

    def show(self, unit: str, key: str) -> str:
        return self.sh(f"systemctl show --value --property={key} {unit}")

    def journal(self, unit: str) -> str:
        return self.sh(f"journalctl --sync; journalctl --no-pager --output=cat --unit={unit}")

    def said(self) -> str:
        """The last words of everything of ours, and what failed."""
        return self.sh(
            "systemctl --failed --no-legend;"
            " systemctl status 'ockam-edge*' | grep -E 'Status:|Active:';"
            " journalctl --no-pager -o short-precise -n 40 -t ockam-edge -t python3 -t softhsm2-util",
            check=False,
        )

    def wait(self, script: str, why: str, *, seconds: float = 30.0) -> str:
        """Until the script succeeds: what it prints."""
        until = time.monotonic() + seconds
        while True:
            done = self.run("sh", "-euc", script, check=False)
            if done.returncode == 0:
                return done.stdout.strip()
            if time.monotonic() > until:
                said = f"not within {seconds:g} s: {why}"
                raise AssertionError(f"{self.name}: {said}\n{done.stderr}")
            time.sleep(0.2)

    def _enter(self) -> list[str]:
        return ["nsenter", f"--target={self._leader}", "--all", "--"]

    # -- on and off

    def _booted(self, until: float) -> int:
        """The process of systemd, once all that it starts is started."""
        leader = None
        while time.monotonic() < until:
            if self._process.poll() is not None:
                break
            leader = leader or next(_leaders(self._process.pid), None)
            if leader is not None and self._is_running(leader):
                return leader
            time.sleep(0.05)
        raise RuntimeError(f"{self.name} does not boot:\n{self.console.read_text()[-2000:]}")

    def _is_running(self, leader: int) -> bool:
        ask = ["nsenter", f"--target={leader}", "--all", "--", "systemctl", "is-system-running"]
        done = subprocess.run(ask, capture_output=True, text=True, check=False)
        return done.stdout.strip() in ("running", "degraded")

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP)
            except subprocess.TimeoutExpired:
                with suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", REMOVE, "sh"]
        subprocess.run([*command, self._group], capture_output=True, check=False)
        self._folder.cleanup()


def _leaders(pid: int) -> Iterator[int]:
    """Descendants that are the first process of a namespace, and systemd."""
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in map(int, children.read_text().split()):
                if _is_leader(child):
                    yield child
                yield from _leaders(child)


def _is_leader(pid: int) -> bool:
    with suppress(OSError):
        status = Path(f"/proc/{pid}/status").read_text()
        name, spaces = status.splitlines()[0], status.partition("NSpid:")[2].splitlines()[0].split()
        return name.endswith("\tsystemd") and len(spaces) > 1 and spaces[-1] == "1"
    return False
