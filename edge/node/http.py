"""The status endpoint: one small HTTP server on loopback, read-only, off where nobody asked for it.

    GET /          a page for people        HEAD /   200, nothing else (as stock)
    GET /show      `node show`, as stock    GET /status   the picture of docs/status.md
    GET /metrics   for Prometheus           GET /healthz  /readyz   for supervisors

One request per connection. Whoever can connect may read: every user of this machine, and nobody's web
page, since a request must name this host by a loopback name (DNS rebinding) and no answer may be read
from another origin. Requests have no effect.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from edge.errors import ConfigError
from edge.events import event
from edge.node import page, status
from edge.node.fields import host_port
from edge.node.health import obstacles
from edge.tasks import end, keep_running

if TYPE_CHECKING:
    from edge.node.node import Node

log = logging.getLogger("edge.http")

CONNECTIONS = 16
"""At one time; more are closed at once."""
LONGEST = 8 * 1024
"""Bytes of a request."""
PATIENCE = 5.0
"""Seconds that a request may take to come, and its answer to go."""
AGAIN = 10.0
"""Seconds between attempts to listen."""
HEADERS = (
    ("Cache-Control", "no-store"),
    ("Content-Security-Policy", page.POLICY),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Connection", "close"),
)
REASONS = {
    200: "OK", 400: "Bad Request", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed",
    431: "Request Header Fields Too Large", 500: "Internal Server Error", 503: "Service Unavailable",
}  # fmt: skip
TEXT, HTML, JSON = "text/plain; charset=utf-8", "text/html; charset=utf-8", "application/json"


class Answer(NamedTuple):
    status: int
    kind: str
    body: bytes


def said(status_: int, text: str) -> Answer:
    return Answer(status_, TEXT, f"{text}\n".encode())


class Wrong(Exception):
    """A request that is answered with an error."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer


class Endpoint:
    """Of one node."""

    def __init__(self, node: Node, address: str) -> None:
        """`address` is HOST:PORT, of this machine only. Raises ConfigError."""
        self.host, self.port = check_address(address)
        self.address: str | None = None
        """Where it listens, while it does."""
        self.failure: str | None = None
        self._node = node
        self._server: asyncio.Server | None = None
        self._retrying: asyncio.Task[None] | None = None
        self._open: set[asyncio.Task[None]] = set()
        self._scraped: Callable[[], bytes] | None = None
        self._pages: dict[str, Callable[[], Awaitable[Answer]]] = {
            "/": self._page,
            "/show": self._show,
            "/status": self._status,
            "/metrics": self._scrape,
            "/healthz": self._alive,
            "/readyz": self._ready,
        }

    async def start(self) -> None:
        """Listen; where that cannot be now, later: no tunnel waits for a status page."""
        if not await self._listen():
            self._retrying = keep_running(self._retry(), "listen for the status")

    async def close(self) -> None:
        await end(self._retrying)
        if self._server is not None:
            self._server.close()
        for task in list(self._open):
            await end(task)
        self.address = None

    async def _listen(self) -> bool:
        try:
            self._server = await asyncio.start_server(
                self._connected, self.host, self.port, limit=LONGEST, backlog=CONNECTIONS
            )
        except OSError as error:
            text = f"cannot listen at {self.host}:{self.port}: {error.strerror or error}"
            if text != self.failure:
                told = event("status-endpoint-failed", resource="status-endpoint")
                log.error("the status endpoint %s", text, extra=told)
            self.failure = text
            return False
        bound = self._server.sockets[0].getsockname()
        self.address, self.failure = str(host_port(f"{_bracketed(bound[0])}:{bound[1]}")), None
        told = event("status-endpoint-up", resource="status-endpoint")
        log.info("the status endpoint is http://%s/", self.address, extra=told)
        return True

    async def _retry(self) -> None:
        while not await self._listen():
            await asyncio.sleep(AGAIN)

    # -- a connection

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._open) >= CONNECTIONS:
            writer.transport.abort()
            return
        task = asyncio.create_task(self._serve(reader, writer), name="status endpoint")
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                method, answer = await self._answer(reader)
                writer.write(encoded(method, answer))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (OSError, EOFError, TimeoutError):
            pass  # whoever asked has gone, or does not read
        finally:
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader) -> tuple[str, Answer]:
        method = "GET"
        try:
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.LimitOverrunError:
                raise Wrong(said(431, "the request is too long")) from None
            method, path = parsed(head)
            return method, await self._found(method, path)
        except Wrong as wrong:
            return method, wrong.answer
        except Exception:
            log.exception("a bug in the status endpoint", extra=event("bug"))
            return method, said(500, "a bug in the node, see its log")

    async def _found(self, method: str, path: str) -> Answer:
        if method == "HEAD" and path == "/":
            return Answer(200, HTML, b"")
        if method not in ("GET", "HEAD"):
            return said(405, "only GET and HEAD: nothing can be changed here")
        found = self._pages.get(path)
        return said(404, "there are: " + " ".join(self._pages)) if found is None else await found()

    # -- the answers

    async def _page(self) -> Answer:
        return Answer(200, HTML, page.page(status.status(self._node)))

    async def _status(self) -> Answer:
        return _json(status.status(self._node))

    async def _show(self) -> Answer:
        return _json(await self._node.show())

    async def _alive(self) -> Answer:
        return said(200, "alive")

    async def _ready(self) -> Answer:
        reasons = obstacles(self._node)
        return said(503, "\n".join(reasons)) if reasons else said(200, "ready")

    async def _scrape(self) -> Answer:
        """The first one loads the library, in another thread: it takes a moment."""
        loop = asyncio.get_running_loop()
        module = await loop.run_in_executor(None, import_module, "edge.node.metrics")
        self._scraped = self._scraped or module.Metrics(self._node).text
        return Answer(200, module.CONTENT_TYPE, self._scraped())


def check_address(address: str) -> tuple[str, int]:
    """Host and port of a loopback address. Raises ConfigError."""
    host, port = host_port(address)
    if host != "localhost" and not _is_loopback(host):
        raise ConfigError(
            f"the status endpoint is for this machine only, and {host} is not",
            hint="give 127.0.0.1:PORT, and reach it from elsewhere by an outlet to it",
        )
    return ("127.0.0.1" if host == "localhost" else host.strip("[]")), port


def parsed(head: bytes) -> tuple[str, str]:
    """Method and path. Raises Wrong for what is no request, or not for us."""
    try:
        first, *lines = head.decode("ascii").removesuffix("\r\n\r\n").split("\r\n")
        method, target, version = first.split(" ")
        pairs = [line.split(":", 1) for line in lines]
        hosts = [value.strip() for name, value in pairs if name.lower() == "host"]
    except ValueError:  # not ASCII, or a part is missing
        raise Wrong(said(400, "this is no HTTP request")) from None
    if version not in ("HTTP/1.0", "HTTP/1.1") or not target.startswith("/"):
        raise Wrong(said(400, "this is no HTTP/1.1 request for a path"))
    if len(hosts) != 1 or not _is_ours(hosts[0]):
        raise Wrong(said(403, "the Host header must name this machine: 127.0.0.1 or localhost"))
    return method, target.partition("?")[0]


def encoded(method: str, answer: Answer) -> bytes:
    """As bytes; without the body where only its head is asked for."""
    lines = [
        f"HTTP/1.1 {answer.status} {REASONS[answer.status]}",
        f"Content-Type: {answer.kind}",
        f"Content-Length: {len(answer.body)}",
        *(f"{name}: {value}" for name, value in HEADERS),
    ]
    head = "\r\n".join([*lines, "", ""]).encode()
    return head if method == "HEAD" else head + answer.body


def _is_ours(host: str) -> bool:
    """By any port: a tunnel to us may have another one."""
    name, colon, port = host.rpartition(":")
    name = name if colon and port.isdigit() else host
    return name.lower() in ("localhost", "localhost.") or _is_loopback(name)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _json(value: Any) -> Answer:
    return Answer(200, JSON, json.dumps(value, separators=(",", ":"), default=str).encode())
