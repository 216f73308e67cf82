"""The node's control API: requests at the address `control`, over the node's own unix socket.

Reach, guard and peer credentials each suffice to keep others out; all three are asked. A request runs
in a task of its own, so that nothing here stops the path of a byte.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import struct
from collections.abc import Awaitable, Callable, Container
from pathlib import Path
from typing import Any, cast

from edge.errors import DecodeError, EdgeError, NetworkError, TrustError
from edge.events import event
from edge.identity.history import Identifier
from edge.node import status
from edge.node.fields import Fields
from edge.node.node import Node
from edge.node.policies import Policy, check_type, read, shown
from edge.node.shelf import Shelf
from edge.node.store import Store, Taken, Unknown
from edge.node.transports import CONNECT
from edge.routing.hop import Message
from edge.routing.link import Limits, Link, LinkListener
from edge.routing.reach import Origin
from edge.routing.router import Router
from edge.wire import cbor
from edge.wire.api import Failure, Method, Request, Response, Status
from edge.wire.route import Route
from vault_backends.vault import VaultError

log = logging.getLogger("edge.control")

ADDRESS = b"control"
AT_ONCE = 64
"""Requests in progress; more are refused."""
_CREDENTIALS = struct.Struct("3i")

Answer = Callable[[str | None, Any], Awaitable[Any]]


class Control:
    """Answers requests about one node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._back = Route.of(ADDRESS)
        self._tasks: set[asyncio.Task[None]] = set()
        self._paths: dict[str, Shelf[Any]] = {
            "node/outlet": node.outlets,
            "node/inlet": node.inlets,
            "node/relay": node.relays,
            "node/tcp/listener": node.listeners,
            "node/tcp/connection": node.connections,
            "node/secure_channel": node.channels,
            "node/secure_channel_listener": node.channel_listeners,
        }
        self._others: dict[tuple[Method, str], Callable[[Any], Awaitable[Any]]] = {
            (Method.GET, "node"): self._show,
            (Method.GET, "node/status"): self._status,
            (Method.POST, "node/stop"): self._stop,
            (Method.POST, "node/identity"): self._follow,
            (Method.POST, "message"): self._send,
            (Method.GET, "worker"): self._workers,
            (Method.GET, "service"): self._services,
            (Method.POST, "service"): self._start_service,
            (Method.POST, "credential"): self._look_at_credential,
            (Method.GET, "policy"): self._policies,
            (Method.POST, "policy"): self._set_policy,
            (Method.POST, "policy/check"): self._check_policy,
            (Method.POST, "node/configuration"): self._node.configuration.apply,
        }
        node.router.add(ADDRESS, self, self._guard)
        node.wiring.open(ADDRESS, Origin.CONTROL)

    async def close(self) -> None:
        self._node.router.remove(ADDRESS)
        self._node.wiring.shut(ADDRESS)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def deliver(self, message: Message) -> None:
        try:
            request = Request.decode(bytes(message.payload))
        except DecodeError as error:
            log.warning("a request does not decode: %s", error, extra=event("request-invalid"))
            return
        if len(self._tasks) >= AT_ONCE:
            self._reply(message, _refused(request, NetworkError("too many requests at once")))
            return
        work = self._answer(request, message)
        task = asyncio.create_task(work, name=f"control {request.path}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _guard(self, message: Message) -> bool:
        flow = message.flow
        return isinstance(flow, OwnLink) and flow.parent is self._node.wiring.control

    async def _answer(self, request: Request, message: Message) -> None:
        message = Message(message.onward, message.back, b"", message.flow)  # the payload goes now
        try:
            body = None if request.body is None else cbor.decode(request.body)
            found = await self._find(request, body)
            encoded = None if found is None else cbor.encode(found)
            response = Response(_id(), request.id, Status.OK, encoded)
        except (EdgeError, VaultError) as error:
            response = _refused(request, error)
        except Exception as error:
            log.exception("a bug in the answer to %s", request.path, extra=event("bug"))
            response = _refused(request, error)
        self._reply(message, response)

    def _reply(self, message: Message, response: Response) -> None:
        self._node.router.reply(message, self._back, response.encode())

    async def _find(self, request: Request, body: Any) -> Any:
        path = request.path.strip("/")
        method = request.method
        other = self._others.get((method, path)) if method is not None else None
        if other is not None:
            return await other(body)
        if method is Method.DELETE and path.startswith("policy/"):
            return await self._delete_policy(path)
        for start, shelf in self._paths.items():
            if path == start or path.startswith(f"{start}/"):
                return await _of_shelf(shelf, method, path[len(start) + 1 :], body)
        raise _invalid(method, path)

    async def _show(self, body: Any) -> Any:
        return await self._node.show()

    async def _status(self, body: Any) -> Any:
        return status.status(self._node)

    async def _stop(self, body: Any) -> Any:
        """Confirmed first: the process ends when this answer is on its way."""
        await self._node.store.call(Store.set_wanted, self._node.name, "stopped")
        asyncio.get_running_loop().call_later(0.02, self._node.stopping.set)

    async def _follow(self, body: Any) -> Any:
        """The store has a rotated identity. Where it cannot be adopted now, it is tried again."""
        adopted = await self._node.presence.follower.follow()
        changes = len(self._node.identity.history.changes)
        return {"name": self._node.identity.name, "changes": changes, "adopted": adopted}

    async def _send(self, body: Any) -> Any:
        fields = Fields(body, ("to", "payload", "timeout", "authorized"))
        timeout = fields.seconds("timeout", CONNECT)
        authorized = fields.identifiers("authorized")
        payload = fields.data("payload")
        return {"payload": await self._node.send(fields.route("to"), payload, authorized, timeout)}

    async def _workers(self, body: Any) -> Any:
        return self._node.list_workers()

    async def _services(self, body: Any) -> Any:
        return self._node.list_services()

    async def _start_service(self, body: Any) -> Any:
        return await self._node.services.create(body)

    async def _look_at_credential(self, body: Any) -> Any:
        """One was stored for us; whether it is what we present now."""
        membership = self._node.fleet.membership
        return membership is not None and await membership.look_again()

    async def _policies(self, body: Any) -> Any:
        return [shown(policy) for policy in self._node.policies.list()]

    async def _set_policy(self, body: Any) -> Any:
        fields = Fields(body, ("resource", "type", "expression"))
        resource, kind = fields.optional_text("resource"), fields.optional_text("type")
        if (resource is None) == (kind is None):
            raise EdgeError("a policy is of a resource or of a type")
        policy = Policy(resource, kind, read(fields.text("expression")))
        await self._node.set_policy(policy)
        return shown(policy)

    async def _delete_policy(self, path: str) -> Any:
        _, part, name = [*path.split("/", 2), "", ""][:3]
        if part == "type":
            return await self._node.remove_policy(kind=name)
        return await self._node.remove_policy(resource=name)

    async def _check_policy(self, body: Any) -> Any:
        fields = Fields(body, ("peer", "resource", "type", "attributes"))
        given = body.get("attributes")
        if given is not None and not (
            isinstance(given, dict)
            and all(isinstance(one, str) for one in (*given, *given.values()))
        ):
            raise EdgeError("the attributes are texts by name")
        peer = Identifier.parse(fields.text("peer"))
        kind, name = check_type(fields.text("type")), fields.text("resource")
        decision = self._node.policies.decide(kind, name, peer, given)
        return {"allowed": decision.allowed, "reason": decision.reason}


async def _of_shelf(shelf: Shelf[Any], method: Method | None, name: str, body: Any) -> Any:
    """Create, list, show or delete."""
    if method is Method.POST and not name:
        return await shelf.create(body)
    if method is Method.GET:
        return shelf.show(name) if name else shelf.list()
    if method is Method.DELETE and name:
        return await shelf.delete(name)
    raise _invalid(method, f"{shelf.kind} {name}".strip())


def _invalid(method: Method | None, path: str) -> EdgeError:
    word = method.name if method is not None else "?"
    return EdgeError(f"Invalid endpoint: {word} {path[:200]}")


def _refused(request: Request, error: Exception) -> Response:
    """The failure as `api-error`: the message, and the hint in a second line."""
    text = str(error)
    if not isinstance(error, EdgeError | VaultError):
        text = f"a bug in the node, see its log: {type(error).__name__}"
    hint = getattr(error, "hint", "")
    failure = Failure(
        message=f"{text}\n{hint}" if hint else text, path=request.path, method=request.method
    )
    return Response(_id(), request.id, _status(error), failure.encode())


def _status(error: Exception) -> Status:
    if isinstance(error, Unknown):
        return Status.NOT_FOUND
    if isinstance(error, Taken):
        return Status.CONFLICT
    if isinstance(error, NetworkError):
        return Status.TIMEOUT
    if isinstance(error, TrustError):
        return Status.FORBIDDEN
    known = isinstance(error, EdgeError | VaultError)
    return Status.BAD_REQUEST if known else Status.INTERNAL_SERVER_ERROR


def _id() -> int:
    return 1 + secrets.randbelow(0xFFFF_FFFE)


# -- the socket


class OwnLink(Link):
    """A connection over the node's unix socket, by this user or root."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        sock: socket.socket = transport.get_extra_info("socket")
        raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        _, uid, _ = _CREDENTIALS.unpack(raw)
        super().connection_made(transport)
        if uid not in (0, os.geteuid()):
            self.abort(f"user {uid} is not the owner of this node")


class OwnSocket(LinkListener):
    """The unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__(Limits(links=64))
        self._path = path

    def accept(self, router: Router, reach: Container[bytes]) -> asyncio.BaseProtocol:
        accepted = super().accept(router, reach)
        if not isinstance(accepted, Link):
            return accepted
        self.links.discard(accepted)
        link = OwnLink(router, reach=reach, closed=self.links.discard)
        self.links.add(link)
        return link

    def close(self) -> None:
        super().close()
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()


async def open_socket(node: Node, path: Path) -> OwnSocket:
    """Listen at `path`. The caller holds the node's lock, so whatever is there is dead."""
    listener = OwnSocket(path)
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    before = os.umask(0o177)
    try:
        server = await asyncio.get_running_loop().create_unix_server(
            lambda: cast(asyncio.Protocol, listener.accept(node.router, node.wiring.control)),
            str(path),
        )
    except OSError as error:
        raise NetworkError(f"cannot listen at {path}: {error.strerror}") from None
    finally:
        os.umask(before)
    listener.start(server)
    return listener
