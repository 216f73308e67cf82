"""Processes of the tests: started in a group of their own, waited for with a limit, always ended."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def until(what: str, true: Callable[[], T], seconds: float, step: float = 0.02) -> T:
    """The first true answer; fails after so many seconds."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, f"{what}: not within {seconds:g} s"
        time.sleep(step)
    return found


def run(
    command: Sequence[str | Path],
    variables: Mapping[str, str] | None = None,
    *,
    seconds: float = 60,
    check: bool = True,
    fed: str = "",
) -> subprocess.CompletedProcess[str]:
    """A command to its end."""
    done = subprocess.run(
        [str(part) for part in command],
        env={**os.environ, **(variables or {})},
        input=fed,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    if check and done.returncode:
        raise RuntimeError(
            f"{command[0]} ended with {done.returncode}: {done.stderr or done.stdout}"
        )
    return done


def start(
    command: Sequence[str | Path], log: Path, variables: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """A process in the background; what it says goes to `log`."""
    with log.open("ab") as out:
        return subprocess.Popen(
            [str(part) for part in command],
            env={**os.environ, **(variables or {})},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )


def end(process: subprocess.Popen[bytes] | None, *, orderly: bool = True) -> None:
    """The process and its group are gone when this returns."""
    if process is None:
        return
    if orderly and process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(5)
