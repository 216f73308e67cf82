"""Starts the process of a node, and knows when it is ready or why it is not."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from edge.errors import ConfigError, EdgeError
from edge.node.home import Home

Ask = Callable[[str], str | None]
PATIENCE = 30.0
"""Seconds for a node to be ready; a token may be slow."""
LONGEST_STOP = 10.0


def background(home: Home, name: str) -> str | None:
    """Start the node and wait until it is ready; what it warns of. Raises what it says it failed
    with."""
    reading, writing = os.pipe()
    command = [
        sys.executable, "-P", "-m", "edge.node.service",
        "--home", str(home.root), "--name", name, "--ready-fd", str(writing),
    ]  # fmt: skip
    try:
        with open(home.log(name), "ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=(writing,),
                cwd=home.root,
                env=_environment(),
            )
    finally:
        os.close(writing)
    return _wait_ready(home, name, process, reading)


def foreground(home: Home, name: str, *, ask: Ask, exit_on_eof: bool, prepare: Any = None) -> int:
    """Be the node until it ends; its exit code. Raises what kept it from being ready. `prepare`: see
    run_node()."""
    from edge.node.service import run_node  # noqa: PLC0415  (asyncio and all that a node is)

    reading, writing = os.pipe()
    status = run_node(
        home,
        name,
        foreground=True,
        ready_fd=writing,
        ask=ask,
        exit_on_eof=exit_on_eof,
        prepare=prepare,
    )
    said = _parsed(os.read(reading, 65536))
    os.close(reading)
    if "error" in said:
        raise _refusal(said)
    return status


def become(home: Home, name: str) -> NoReturn:
    """Put the node in the place of this process, so that nothing of the command line stays in memory.
    It keeps the process id, which is the one that systemd listens to."""
    command = [
        sys.executable, "-P", "-m", "edge.node.service",
        "--home", str(home.root), "--name", name, "--foreground",
    ]  # fmt: skip
    sys.stdout.flush()
    sys.stderr.flush()
    os.chdir(home.root)
    os.execve(sys.executable, command, _environment())


def _environment() -> dict[str, str]:
    """Where this package is, the node finds it too."""
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def _wait_ready(home: Home, name: str, process: subprocess.Popen[bytes], pipe: int) -> str | None:
    """Read the one line that the node writes. A node that is not ready in time is killed."""
    try:
        line = _line(pipe, time.monotonic() + PATIENCE)
    except BaseException:
        _end(process)
        raise
    finally:
        os.close(pipe)
    if line is None:
        _end(process)
        raise ConfigError(
            f"node {name} was not ready within {PATIENCE:.0f} seconds", hint=f"see {home.log(name)}"
        )
    said = _parsed(line)
    if said.get("ready"):
        return said.get("warning")
    status = process.wait()
    if "error" not in said:
        raise ConfigError(
            f"node {name} ended with status {status} before it was ready",
            hint=f"see {home.log(name)}",
        )
    raise _refusal(said)


def _refusal(said: dict[str, Any]) -> EdgeError:
    """The error that a node reports instead of being ready."""
    error = EdgeError(str(said["error"]), hint=str(said.get("hint", "")))
    error.exit_code = int(said.get("exit_code", error.exit_code))
    return error


def _line(pipe: int, until: float) -> bytes | None:
    """What comes before a newline or the end; None when time is over."""
    data = b""
    while not data.endswith(b"\n"):
        ready, _, _ = select.select([pipe], [], [], max(0.0, until - time.monotonic()))
        if not ready:
            return None
        if not (part := os.read(pipe, 65536)):
            break
        data += part
    return data


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line or b"{}")
    except ValueError:
        found = {}
    return found if isinstance(found, dict) else {}


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask a process of ours to end, and see that it does."""
    process.terminate()
    try:
        process.wait(LONGEST_STOP)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def stop(home: Home, name: str, *, force: bool = False) -> bool:
    """Stop the node of that name; whether it ran. SIGTERM first, SIGKILL where that does not do."""
    running = home.running(name)
    if running is None:
        return False
    if not running.pid:
        raise ConfigError(f"node {name} is just starting", hint="try again")
    for number in (signal.SIGKILL,) if force else (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.kill(running.pid, number)
        if _gone(home, name, LONGEST_STOP):
            return True
    raise ConfigError(f"node {name}, process {running.pid}, cannot be stopped")


def _gone(home: Home, name: str, patience: float) -> bool:
    until = time.monotonic() + patience
    while time.monotonic() < until:
        if home.running(name) is None:
            return True
        time.sleep(0.03)
    return False
