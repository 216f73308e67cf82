"""Runs inside the sandbox of the unit: tries what it must forbid and what it must allow, and prints
which of it succeeded, as JSON. Needs nothing but Python."""

import ctypes
import json
import mmap
import os
import socket
import subprocess
import sys
from pathlib import Path

STATE = Path("/var/lib/ockam-edge")


def write(path: str) -> None:
    Path(path).write_text("x")
    Path(path).unlink()


def read(path: str) -> None:
    with open(path, "rb") as file:
        file.read(1)


def run_from(folder: Path) -> None:
    program = folder / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o700)
    try:
        subprocess.run([program], check=True)
    finally:
        program.unlink()


def writable_code() -> None:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()


def unshare() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(0x10000000):  # CLONE_NEWUSER
        raise OSError(ctypes.get_errno(), "unshare")


def open_socket(family: int, kind: int) -> None:
    socket.socket(family, kind).close()


def see_others() -> None:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (entry / "cmdline").read_bytes()[:40].endswith(b"systemd\0"):
            return
    raise OSError("nobody else is seen")


TRIALS = {
    "write /etc": lambda: write("/etc/probe"),
    "write /usr": lambda: write("/usr/lib/ockam-edge/probe"),
    "write the configuration": lambda: write("/etc/ockam-edge/probe"),
    "read /etc/shadow": lambda: read("/etc/shadow"),
    "read the credentials of the machine": lambda: read("/etc/credstore/ockam-edge.pin"),
    "run from the state folder": lambda: run_from(STATE),
    "run from /tmp": lambda: run_from(Path("/tmp")),
    "run from /dev/shm": lambda: run_from(Path("/dev/shm")),
    "make writable code": writable_code,
    "make a namespace": unshare,
    "open a packet socket": lambda: open_socket(17, socket.SOCK_RAW),
    "open a netlink socket": lambda: open_socket(16, socket.SOCK_RAW),
    "open a raw socket": lambda: open_socket(socket.AF_INET, socket.SOCK_RAW),
    "open a kernel log": lambda: read("/dev/kmsg"),
    "see other processes": see_others,
    "become root": lambda: os.setuid(0),
    "set the clock": lambda: __import__("time").clock_settime(0, 0),
    "write the state folder": lambda: write(str(STATE / "probe")),
    "write /run/ockam-edge": lambda: write("/run/ockam-edge/probe"),
    "write /tmp": lambda: write("/tmp/probe"),
    "open a TCP socket": lambda: open_socket(socket.AF_INET6, socket.SOCK_STREAM),
    "open a unix socket": lambda: open_socket(socket.AF_UNIX, socket.SOCK_STREAM),
    "start a process": lambda: subprocess.run(["/bin/true"], check=True),
    "resolve a name": lambda: socket.getaddrinfo("localhost", 1),
    "read its own PIN": lambda: read(os.environ["CREDENTIALS_DIRECTORY"] + "/ockam-edge.pin"),
}


def main() -> None:
    succeeded = {}
    for name, trial in TRIALS.items():
        try:
            trial()
            succeeded[name] = True
        except (OSError, ValueError, subprocess.CalledProcessError):
            succeeded[name] = False
    json.dump(succeeded, sys.stdout)


if __name__ == "__main__":
    main()
