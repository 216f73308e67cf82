"""Asks a running node: one request and one answer at a time, over its unix socket, without asyncio."""

import os
import socket
import struct
from pathlib import Path
from typing import Any

from edge.cli import local
from edge.errors import ApiError, ConfigError, DecodeError, NetworkError
from edge.wire import cbor
from edge.wire.api import Failure, Method, Request, Response, Status
from edge.wire.frame import MAX_FRAME, VERSION
from edge.wire.message import encode_transport, parse_transport
from edge.wire.route import Route

TIMEOUT = 20.0
"""Seconds to wait for an answer, beyond what the request itself may take."""
CONTROL = Route.of(b"control")


class Client:
    """A connection to the node `name`. Opened by the first request."""

    def __init__(self, name: str, path: Path, *, timeout: float = TIMEOUT) -> None:
        self.name = name
        self._path = path
        self._timeout = timeout
        self._socket: socket.socket | None = None

    def get(self, path: str) -> Any:
        return self.ask(Method.GET, path)

    def post(self, path: str, body: Any = None) -> Any:
        return self.ask(Method.POST, path, body)

    def delete(self, path: str) -> Any:
        return self.ask(Method.DELETE, path)

    def ask(self, method: Method, path: str, body: Any = None) -> Any:
        """The body of the answer. Raises ApiError with what the node says, or NetworkError."""
        request = Request(
            1 + int.from_bytes(os.urandom(3), "big"),
            path,
            method,
            None if body is None else cbor.encode(_without_none(body)),
        )
        try:
            payload = self._exchange(request.encode())
            response = Response.decode(payload)
        except TimeoutError:
            raise NetworkError(
                f"node {self.name} did not answer in {self._timeout:.0f} seconds"
            ) from None
        except (OSError, DecodeError) as error:
            raise NetworkError(f"node {self.name} broke the connection off: {error}") from None
        return self._answer(response)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _answer(self, response: Response) -> Any:
        if response.status is Status.OK:
            return cbor.decode(response.body) if response.body else None
        text, _, hint = _failure(response).partition("\n")
        raise ApiError(
            text or f"node {self.name} refused, without a reason",
            status=response.status or 0,
            hint=hint,
        )

    def _exchange(self, payload: bytes) -> bytes:
        connection = self._opened()
        back = os.urandom(16).hex().encode()
        connection.sendall(encode_transport(CONTROL, Route.of(back), payload))
        while True:
            (size,) = struct.unpack(">I", _exactly(connection, 4))
            if not 0 < size <= MAX_FRAME:
                raise DecodeError(f"a frame of {size} bytes")
            onward, _, answer = parse_transport(memoryview(_exactly(connection, size)))
            if onward.first is not None and onward.first.value == back:
                return bytes(answer)

    def _opened(self) -> socket.socket:
        if self._socket is not None:
            return self._socket
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(self._timeout)
        try:
            connection.connect(str(self._path))
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            raise not_running(self.name) from None
        connection.sendall(bytes([VERSION]))
        if _exactly(connection, 1)[0] != VERSION:
            raise DecodeError("another version of the transport")
        self._socket = connection
        return connection


def node_name(wanted: str | None) -> str:
    """The name of a node that exists: the wanted one, or the default one."""
    with local.store() as store:
        record = store.node(wanted) if wanted else store.default_node()
    if record is None:
        raise ConfigError("there is no node", hint="make one: ockam-edge node create")
    return record.name


def connect(name: str, *, timeout: float = TIMEOUT) -> Client:
    """A connection to the node `name`, which must run."""
    running = local.home().running(name)
    if running is None:
        raise not_running(name)
    return Client(name, running.socket, timeout=timeout)


def not_running(name: str) -> ConfigError:
    return ConfigError(f"node {name} does not run", hint=f"start it: ockam-edge node start {name}")


def resolved(route: str) -> str:
    """The route with every /node/NAME replaced by that node's listener."""
    parts = route.removeprefix("/").split("/")
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return "".join(
        listener_of(value) if protocol == "node" else f"/{protocol}/{value}"
        for protocol, value in pairs
    )


def listener_of(name: str) -> str:
    """Where the node `name` accepts TCP connections on this machine, as a multi-address."""
    found = connect(node_name(name)).get("/node")["listening"]
    if not found:
        raise ConfigError(
            f"node {name} listens nowhere, so a route cannot lead to it",
            hint=f"add a listener: ockam-edge tcp-listener create 127.0.0.1:0 --at {name}",
        )
    best = next((address for address in found if address.startswith("127.")), found[0])
    return multiaddr(best)


def multiaddr(address: str) -> str:
    """`host:port` as a multi-address that works on this machine."""
    host, _, port = address.rpartition(":")
    host = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)
    if host.startswith("["):
        return f"/ip6/{host[1:-1]}/tcp/{port}"
    kind = "ip4" if host.replace(".", "").isdigit() else "dnsaddr"
    return f"/{kind}/{host}/tcp/{port}"


def _without_none(body: Any) -> Any:
    if isinstance(body, dict):
        return {key: value for key, value in body.items() if value is not None}
    return body


def _failure(response: Response) -> str:
    """The text of an error, with its second line, the hint, if there is one."""
    try:
        value = cbor.decode(response.body or b"")
        return value if isinstance(value, str) else str(Failure.from_value(value))
    except DecodeError:
        return ""


def _exactly(connection: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        if not (part := connection.recv(size - len(parts))):
            raise NetworkError("the node closed the connection")
        parts += part
    return bytes(parts)
