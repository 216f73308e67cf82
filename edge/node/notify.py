"""What systemd is told, and what it asks for: readiness, a status for people, signs of life, reloads.

sd_notify(3) is one datagram. The package systemd-python sends it where it is installed; it has no
wheels, so that a gateway without a compiler may be without it, and then a few lines do the same.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress

LONGEST = 400
"""Characters of a status."""


class Systemd:
    """What is said on $NOTIFY_SOCKET, if there is one."""

    def __init__(self) -> None:
        self.address = os.environ.get("NOTIFY_SOCKET", "")
        self.watchdog: float | None = None
        """Seconds between two signs of life: half of what systemd waits."""
        self._status = ""
        microseconds = os.environ.get("WATCHDOG_USEC", "")
        if self.address and microseconds.isdigit() and int(microseconds):
            self.watchdog = int(microseconds) / 2_000_000

    def __bool__(self) -> bool:
        """Whether systemd started us."""
        return bool(self.address)

    def ready(self, status: str) -> None:
        """After the start, and after each reload."""
        self._status = _one_line(status)
        self._say("READY=1", f"STATUS={self._status}")

    def status(self, status: str) -> None:
        """Said only when it is another one."""
        if (line := _one_line(status)) != self._status:
            self._status = line
            self._say(f"STATUS={line}")

    def alive(self) -> None:
        if self.watchdog is not None:
            self._say("WATCHDOG=1")

    def reloading(self) -> None:
        """Followed by ready(). The moment tells systemd which reload it is that ended."""
        self._say("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        self._say("STOPPING=1")

    def _say(self, *lines: str) -> None:
        if not self.address:
            return
        with suppress(OSError):  # a systemd that does not listen is no reason to end
            _send(self.address, "\n".join(lines))


def _send(address: str, text: str) -> None:
    try:
        import systemd.daemon  # noqa: PLC0415 - only under systemd, and not everywhere
    except ImportError:
        name = "\0" + address[1:] if address.startswith("@") else address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.connect(name)
            sock.send(text.encode())
    else:
        systemd.daemon.notify(text)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:LONGEST]
