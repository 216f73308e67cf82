"""The process of a node: its lock, its loop, signals, what systemd is told, memory, and its end.

`python -m edge.node.service --home H --name N [--ready-fd FD]` is how the command line starts one in
the background. On the descriptor goes one line of JSON: {"ready": true, "pid": ...}, or the error.
Further options: --foreground, --log-level LEVEL, and --log-format text or json.

Under systemd SIGHUP means: read again what may have changed, and go on. uvloop is a choice
of this file.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import json
import logging
import os
import resource
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from edge.errors import EdgeError
from edge.events import event
from edge.node import logs
from edge.node.control import Control, open_socket
from edge.node.home import Home, Lock
from edge.node.node import Node
from edge.node.notify import Systemd
from edge.node.recent import Recent
from edge.node.store import Store
from edge.node.summary import status
from vault_backends.nocore import keep_no_core
from vault_backends.vault import VaultError

log = logging.getLogger("edge.service")

FAILED = 70
MISUSED = 64
OPTIONS = "[--ready-fd FD] [--foreground] [--log-level LEVEL] [--log-format text|json]"
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD, ARENA_MAX = -1, -2, -3, -8
"""Names of mallopt(3)."""
MEMORY = ((ARENA_MAX, 1), (MMAP_THRESHOLD, 8 << 20), (TRIM_THRESHOLD, 16 << 20), (TOP_PAD, 1 << 20))
"""So that glibc does not give every record's block back to the kernel and ask for it again."""
FILES = 65_536
"""Descriptors that a node asks for."""
LOOK = 5.0
"""Seconds between two looks at what systemd should show."""
STOPPING = (signal.SIGTERM, signal.SIGINT)
Prepare = Callable[[Node], Awaitable[None]]


def run_node(
    home: Home,
    name: str,
    *,
    foreground: bool = False,
    ready_fd: int | None = None,
    level: str = "info",
    log_format: str | None = None,
    ask: Callable[[str], str | None] | None = None,
    exit_on_eof: bool = False,
    prepare: Prepare | None = None,
) -> int:
    """Be the node `name` until a signal or a request ends it; returns the exit code. `prepare` does
    what is left to do before it is ready.

    In the foreground, without a `ready_fd`, errors of the start are raised.
    """
    try:
        home.prepare()
        recent = Recent()
        ration = logs.set_up(
            file=None if foreground else home.log(name),
            level=level,
            form=log_format or _log_format(home, name),
            node=name,
            recent=recent,
        )
        lock = home.take(name)
    except EdgeError as error:
        return _not_started(error, ready_fd)
    try:
        keep_no_core()
        _save_memory()
        _many_files()
        with _loop() as runner:
            node = Node(home, name, ask=ask, recent=recent, ration=ration)
            runner.run(_serve(node, lock, ready_fd, exit_on_eof, prepare))
    except (EdgeError, VaultError) as error:
        log.error(
            "the node %s could not be started: %s", name, error, extra=event("node-failed", error)
        )
        return _not_started(error, ready_fd)
    finally:
        lock.close()
    return 0


async def _serve(
    node: Node, lock: Lock, ready_fd: int | None, exit_on_eof: bool, prepare: Prepare | None
) -> None:
    home, name = node.home, node.name
    systemd = Systemd()
    _heed_signals(node, systemd)
    await node.start()
    control = Control(node)
    path = home.socket(name)
    try:
        listener = await open_socket(node, path)
        lock.write(path)
        if prepare is not None:
            await prepare(node)
        if exit_on_eof:
            asyncio.get_running_loop().add_reader(0, _read_to_end, node)
        _say(ready_fd, {"ready": True, "pid": os.getpid(), "warning": _warning(node)})
        identifier = node.identity.history.identifier
        log.info("the node %s is ready, as %s", name, identifier, extra=event("node-ready"))
        gc.collect()
        gc.freeze()
        try:
            await _stay(node, systemd)
        finally:
            listener.close()
    finally:
        await control.close()
        await node.close()
        log.info("the node %s has stopped", name, extra=event("node-stopped"))


def _warning(node: Node) -> str | None:
    """What the start did not fail by, and people should know."""
    endpoint = node.endpoint.failure if node.endpoint is not None else None
    return "; ".join(filter(None, [node.presence.waiting_for, endpoint])) or None


async def _stay(node: Node, systemd: Systemd) -> None:
    """Tell systemd that we live, until the node is to stop."""
    systemd.ready(status(node))
    while not node.stopping.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(node.stopping.wait(), min(systemd.watchdog or LOOK, LOOK))
        systemd.alive()
        systemd.status(status(node))
    systemd.stopping()


class _Reload:
    """What SIGHUP begins. One that comes meanwhile is answered by another reload after this one."""

    def __init__(self, node: Node, systemd: Systemd) -> None:
        self._node, self._systemd = node, systemd
        self._task: asyncio.Task[None] | None = None
        self._again = False

    def begin(self) -> None:
        self._again = True
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="reload")

    async def _run(self) -> None:
        while self._again and not self._node.stopping.is_set():
            self._again = False
            self._systemd.reloading()
            self._systemd.ready(await self._reloaded())

    async def _reloaded(self) -> str:
        try:
            await self._node.reload()
        except (EdgeError, VaultError) as error:
            log.error(
                "what was to be reloaded is refused, all stays as it was: %s",
                error,
                extra=event("reload-refused", error),
            )
            return f"{status(self._node)}; the reload was refused: {error}"
        log.info("the node %s was reloaded", self._node.name, extra=event("node-reloaded"))
        return status(self._node)


def _heed_signals(node: Node, systemd: Systemd) -> None:
    """SIGHUP comes from a terminal that goes away, or from systemctl reload."""
    loop = asyncio.get_running_loop()
    for number in STOPPING:
        loop.add_signal_handler(number, node.stopping.set)
    hangup = _Reload(node, systemd).begin if systemd else node.stopping.set
    loop.add_signal_handler(signal.SIGHUP, hangup)


def _read_to_end(node: Node) -> None:
    """Standard input: its end is the node's end."""
    if not os.read(0, 4096):
        asyncio.get_running_loop().remove_reader(0)
        node.stopping.set()


@contextlib.contextmanager
def _loop() -> Iterator[asyncio.Runner]:
    """A loop: that of uvloop where it is installed and wanted."""
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    if os.environ.get("EDGE_LOOP") != "asyncio":
        with contextlib.suppress(ImportError):
            import uvloop  # noqa: PLC0415 - only here

            factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        yield runner


def _log_format(home: Home, name: str) -> str:
    """As the environment says, else as the node was made; a bad store is for the start to tell of."""
    given = os.environ.get("OCKAM_LOG_FORMAT")
    if given is not None:
        return "json" if given == "json" else "text"
    with contextlib.suppress(EdgeError), contextlib.closing(Store(home.database)) as store:
        return str(store.node(name).settings.get("log_format", "text"))
    return "text"


def _save_memory() -> None:
    """Under any way of starting, which environment variables are not."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        for name, value in MEMORY:
            libc.mallopt(name, value)


def _many_files() -> None:
    """As many connections as the system lets us have: a shell gives 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _say(fd: int | None, line: dict[str, Any]) -> None:
    if fd is not None:
        with contextlib.suppress(OSError):
            os.write(fd, json.dumps(line).encode() + b"\n")
            os.close(fd)


def _not_started(error: EdgeError | VaultError, ready_fd: int | None) -> int:
    if ready_fd is None:
        raise error
    _say(ready_fd, {"error": str(error), "hint": error.hint, "exit_code": error.exit_code})
    return FAILED


def main(arguments: list[str] | None = None) -> int:
    """Options are read by hand: argparse costs a node a megabyte."""
    try:
        given = _options(sys.argv[1:] if arguments is None else arguments)
        ready_fd = given.get("ready-fd")
        return run_node(
            Home(Path(given["home"])),
            given["name"],
            foreground="foreground" in given,
            ready_fd=None if ready_fd is None else int(ready_fd),
            level=given.get("log-level") or os.environ.get("OCKAM_LOG_LEVEL", "info"),
            log_format=given.get("log-format"),
        )
    except (EdgeError, VaultError) as error:
        print(f"error: {error}" + (f"\nhint: {error.hint}" if error.hint else ""), file=sys.stderr)
        return FAILED
    except (KeyError, ValueError):
        print(f"usage: --home H --name N {OPTIONS}", file=sys.stderr)
        return MISUSED


def _options(arguments: list[str]) -> dict[str, str]:
    """Pairs of --name and value, and the flag. Raises ValueError."""
    rest, given = iter(arguments), {}
    for option in rest:
        name = option.removeprefix("--")
        if name == "foreground":
            given[name] = ""
        elif name in ("home", "name", "ready-fd", "log-level", "log-format"):
            given[name] = next(rest, "")
        else:
            raise ValueError(option)
    return given


if __name__ == "__main__":
    sys.exit(main())
