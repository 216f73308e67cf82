"""Root file systems of Debian, made once by mmdebstrap and never written to again.

They are kept under $EDGE_BOOT_CACHE (about 500 MB each), by default ~/.cache/ockam-edge/boot. One is
made anew when what it is made from changes.

    python -m tests.boot.roots bookworm trixie
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

RECIPE = 2
"""Raised when what is done to a root file system changes."""
SYSTEM = "systemd systemd-sysv dbus init iproute2 procps netbase libpam-systemd kmod"
PYTHON = "python3"
TOKENS = "softhsm2 swtpm libtpm2-pkcs11-1 libtss2-tcti-swtpm0"
SERVICES = "openssh-server openssh-client postgresql"
PACKAGES = {
    "bookworm": f"{SYSTEM} {PYTHON} {TOKENS} {SERVICES}",
    "trixie": f"{SYSTEM} {PYTHON} {TOKENS} {SERVICES}",
}
MASKED = (
    "apt-daily.timer", "apt-daily-upgrade.timer", "e2scrub_all.timer", "e2scrub_reap.service",
    "fstrim.timer", "dpkg-db-backup.timer", "systemd-tmpfiles-clean.timer",
    "systemd-firstboot.service", "getty.target", "console-getty.service", "dev-hugepages.mount",
)  # fmt: skip
"""Of no use in a container that lives for a minute."""
OFF = ("postgresql.service", "ssh.service", "ssh.socket")
"""Started by the test that wants it."""
APT = (
    "--aptopt=APT::Install-Recommends false",
    "--aptopt=Acquire::Languages none",
    "--aptopt=Acquire::Retries 3",
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
)


def cache() -> Path:
    given = os.environ.get("EDGE_BOOT_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "ockam-edge" / "boot"


def root(suite: str) -> Path:
    """The root file system of a suite; made if it is missing. CalledProcessError, with the end of
    what mmdebstrap said as a note, where that fails."""
    recipe = f"{RECIPE} {PACKAGES[suite]} {MASKED} {OFF} {APT}"
    name = f"{suite}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    folder = cache()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{suite}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = folder / name
        if not made.is_dir():
            for old in folder.glob(f"{suite}-*"):
                shutil.rmtree(old, ignore_errors=True)
            _make(suite, made)
    return made


def _make(suite: str, made: Path) -> None:
    building = made.with_name(f"{made.name}.building")
    command = [
        "mmdebstrap", "--mode=root", "--variant=minbase", *APT,
        f"--include={','.join(PACKAGES[suite].split())}", suite, str(building),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        shutil.rmtree(building, ignore_errors=True)
        error = subprocess.CalledProcessError(done.returncode, command)
        error.add_note(done.stderr[-2000:])
        raise error
    _arrange(building)
    building.rename(made)


def _arrange(root: Path) -> None:
    etc, system = root / "etc", root / "etc/systemd/system"
    (etc / "hostname").write_text("gateway\n")
    (etc / "hosts").write_text("127.0.0.1 localhost gateway\n::1 localhost\n")
    for empty in ("resolv.conf", "machine-id"):
        (etc / empty).unlink(missing_ok=True)
        (etc / empty).touch()
    journal = etc / "systemd/journald.conf.d/test.conf"
    journal.parent.mkdir(parents=True, exist_ok=True)
    journal.write_text("[Journal]\nStorage=volatile\nRuntimeMaxUse=32M\nRateLimitBurst=0\n")
    for unit in MASKED:
        (system / unit).unlink(missing_ok=True)
        (system / unit).symlink_to("/dev/null")
    for unit in OFF:
        for wanted in system.glob(f"*.wants/{unit}"):
            wanted.unlink()


if __name__ == "__main__":
    for wanted in sys.argv[1:] or PACKAGES:
        print(root(wanted))
