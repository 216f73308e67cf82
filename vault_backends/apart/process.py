"""The other process as the node sees it: started, asked, and ended one way or another."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from vault_backends.apart.complaints import last_words
from vault_backends.apart.messages import Broken, Conversation, Ended, Late
from vault_backends.vault import DeviceGone, Misconfigured

ORDERLY, POLITE = 5.0, 2.0
"""Seconds to finalise the module when the vault is closed, and after SIGTERM."""

QUESTIONS = 8
"""To the person, at most, in one call: their time does not count, so there is an end to it."""

Ask = Callable[[str], str | None]


class Process:
    """One life of the other process."""

    def __init__(self) -> None:
        with ExitStack() as ours, ExitStack() as theirs:
            try:
                here, there = socket.socketpair()
                ours.callback(here.close)
                theirs.callback(there.close)
                self._stderr, writing = os.pipe()
                ours.callback(os.close, self._stderr)
                theirs.callback(os.close, writing)
                self._process = _started(there.fileno(), self._stderr, writing)
            except OSError as error:
                raise Misconfigured(
                    f"cannot start {sys.executable}: {error.strerror}",
                    hint="is there memory, and a file descriptor left (LimitNOFILE=)?",
                ) from None
            ours.pop_all()
        self.pid = self._process.pid
        self.calls = 0
        self._conversation = Conversation(here)

    def ask(self, call: str, given: list[Any], limit: float, ask: Ask | None) -> dict[str, Any]:
        """The answer to one call. DeviceGone, and this process has ended, where none came in
        `limit` seconds; the time a person needs for an answer does not count."""
        self.calls += 1
        try:
            request = {"call": call, "with": given, "ms": round(limit * 1000)}
            self._conversation.send(request, time.monotonic() + limit)
            for _ in range(QUESTIONS + 1):
                said = self._conversation.receive(time.monotonic() + limit)
                if not isinstance(said, dict):
                    raise Broken("no map")
                if "ask" not in said:
                    return said
                answer = ask(str(said["ask"])[:500]) if ask is not None else None
                self._conversation.send({"answer": answer}, time.monotonic() + limit)
            raise Broken(f"more than {QUESTIONS} questions")
        except Late:
            self.kill()
            raise DeviceGone(
                f"the PKCS#11 module is stuck: no answer to {call!r} within {limit:g} s",
                hint="its process was ended; the next call starts a new one",
            ) from None
        except Ended:
            raise self._gone(call) from None
        except Broken as error:
            self.kill()
            raise DeviceGone(
                f"the PKCS#11 module's process is out of its mind: it sent {error}",
                hint="it was ended; the next call starts a new one",
            ) from None

    def alive(self) -> bool:
        return self._process.poll() is None

    def end(self) -> None:
        """In order: it finalises the module and goes."""
        self._conversation.close()
        self._wait_or_kill(ORDERLY)

    def kill(self) -> None:
        """It does not answer: SIGTERM, then SIGKILL."""
        self._conversation.close()
        self._wait_or_kill(0.0)

    def _wait_or_kill(self, patience: float) -> None:
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self._process.terminate()
            try:
                self._process.wait(POLITE)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        with suppress(OSError):
            os.close(self._stderr)
        self._stderr = -1

    def _gone(self, call: str) -> DeviceGone:
        """It closed its end: most likely it is dying."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(POLITE)
        why = _end_of(self._process.poll())
        words = last_words(self._stderr)
        self.kill()
        return DeviceGone(
            f"the PKCS#11 module's process {why} in {call!r}" + (f" ({words})" if words else ""),
            hint="the next call starts a new one; report it to the maker of the module",
        )


def _started(conversation: int, stderr: int, writing: int) -> subprocess.Popen[bytes]:
    """It speaks at the first descriptor; what it writes elsewhere goes to the third, and comes out
    at the second. Raises OSError."""
    # Where the pipe is full the module's words are lost; it never waits for us.
    os.set_blocking(writing, False)
    program = str(Path(__file__).with_name("__main__.py"))
    return subprocess.Popen(
        [sys.executable, "-I", program, str(conversation), str(stderr)],
        stdin=subprocess.DEVNULL,
        stdout=writing,
        stderr=writing,
        pass_fds=(conversation, stderr),
        cwd="/",  # modules look for their settings where they are started
    )


def _end_of(status: int | None) -> str:
    if status is None:
        return "fell silent"
    if status >= 0:
        return f"ended with status {status}"
    with suppress(ValueError):
        return f"crashed with {signal.Signals(-status).name}"
    return f"crashed with signal {-status}"
