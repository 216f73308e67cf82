"""The control API, over a real unix socket; and everybody who is not to reach it."""

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from edge.errors import ApiError, NetworkError
from edge.node import control as controls
from edge.node.control import Control, open_socket
from edge.node.home import Home
from edge.node.node import Node
from edge.routing.link import connect, connect_unix
from edge.routing.router import Router
from edge.wire import cbor
from edge.wire.api import Method, Request, Response, Status
from edge.wire.route import Address, Route
from tests.node.world import address, make_node, run, running


class Client:
    def __init__(self, path: Path) -> None:
        self.router = Router()
        self.path = path

    async def open(self) -> "Client":
        self.link = await connect_unix(self.router, str(self.path))
        return self

    async def ask(self, method: Method | None, path: str, body: Any = None) -> Response:
        data = None if body is None else cbor.encode(body)
        route = Route.of(Address(0, self.link.address), Address(0, b"control"))
        answer = await self.router.request(
            route, Request(7, path, method, data).encode(), timeout=5, peer_flow=self.link
        )
        response = Response.decode(bytes(answer.payload))
        assert response.re == 7
        return response

    async def get(self, path: str, method: Method = Method.GET, body: Any = None) -> Any:
        response = await self.ask(method, path, body)
        if response.status is not Status.OK:
            raise ApiError(response.error, status=response.status or 0)
        return cbor.decode(response.body) if response.body else None


@asynccontextmanager
async def controlled(home: Home, name: str = "n") -> AsyncIterator[tuple[Node, Client]]:
    async with running(home, name) as (node,):
        control = Control(node)
        listener = await open_socket(node, home.socket(name))
        client = await Client(home.socket(name)).open()
        try:
            yield node, client
        finally:
            client.link.close()
            listener.close()
            await control.close()
            assert not home.socket(name).exists()


PATHS = {
    "/node/outlet": ({"to": "127.0.0.1:1"}, "worker_addr"),
    "/node/inlet": ({"to": "/service/outlet", "name": "i", "wait": False}, "alias"),
    "/node/relay": ({"at": "/ip4/127.0.0.1/tcp/1/secure/api", "wait": False}, "name"),
    "/node/tcp/listener": ({"address": "127.0.0.1:0"}, "address"),
    "/node/secure_channel_listener": ({"address": "private"}, "address"),
}


def test_create_list_show_delete(tmp_path: Path) -> None:
    async def test(home: Home) -> None:
        make_node(home, "n")
        async with controlled(home) as (node, client):
            paths: dict[str, tuple[Any, str]] = PATHS | {
                "/node/tcp/connection": ({"to": node.own_listener}, "address"),
                "/node/secure_channel": ({"to": address(node) + "/secure/api"}, "address"),
            }
            for path, (body, key) in paths.items():
                made = await client.get(path, Method.POST, body)
                name = made[key]
                assert name in [one[key] for one in await client.get(path)]
                assert (await client.get(f"{path}/{name}"))[key] == name
                await client.get(f"{path}/{name}", Method.DELETE)
                with pytest.raises(ApiError, match="not found") as caught:
                    await client.get(f"{path}/{name}")
                assert caught.value.status == 404

    run(test, tmp_path)


def test_the_other_requests(tmp_path: Path) -> None:
    async def test(home: Home) -> None:
        who = make_node(home, "n")
        async with controlled(home) as (node, client):
            shown = await client.get("/node")
            assert shown["identifier"] == who
            assert shown["status"] == "running"
            assert shown["pid"] == os.getpid()
            assert shown["listening"] == [node.own_listener]
            sent = await client.get(
                "/message", Method.POST, {"to": "/service/echo", "payload": b"hello"}
            )
            assert sent == {"payload": b"hello"}
            assert {"addr": "control"} in await client.get("/worker")
            assert {"addr": "api", "type": "secure_channel_listener"} in await client.get(
                "/service"
            )
            made = await client.get("/service", Method.POST, {"type": "hop"})
            assert made == {"addr": "hop", "type": "hop"}
            assert not node.stopping.is_set()
            assert await client.get("/node/stop", Method.POST) is None
            await asyncio.wait_for(node.stopping.wait(), 2)

    run(test, tmp_path)


def test_refusals_have_a_status_and_a_hint(tmp_path: Path) -> None:
    async def test(home: Home) -> None:
        make_node(home, "n")
        async with controlled(home) as (node, client):
            to = {"to": "127.0.0.1:1", "name": "o"}
            await client.get("/node/outlet", Method.POST, to)
            at = f"{address(node)}/secure/api"
            for path, body, status in (
                ("/node/outlet", to, Status.CONFLICT),
                ("/node/outlet", {"to": "x"}, Status.BAD_REQUEST),
                ("/node/outlet", None, Status.BAD_REQUEST),
                ("/node/tcp/connection", {"to": "127.0.0.1:1"}, Status.TIMEOUT),
                (
                    "/node/secure_channel",
                    {"to": at, "authorized": "I" + "00" * 32},
                    Status.FORBIDDEN,
                ),
                ("/nothing", {}, Status.BAD_REQUEST),
                ("/node/outlet/o", {}, Status.BAD_REQUEST),
            ):
                response = await client.ask(Method.POST, path, body)
                assert response.status is status, path
                assert response.error
            response = await client.ask(None, "/node")
            assert response.status is Status.BAD_REQUEST
            assert "Invalid endpoint: ? node" in response.error
            response = await client.ask(Method.POST, "/node/outlet", to)
            text = cbor.decode(response.body or b"")
            assert isinstance(text, dict)
            assert str(text[3]).split("\n")[1].startswith("choose another name")

    run(test, tmp_path)


def test_a_bug_is_an_answer_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(home: Home) -> None:
        make_node(home, "n")

        def fail() -> None:
            raise KeyError("x")

        async with controlled(home) as (node, client):
            monkeypatch.setattr(node, "list_workers", fail)
            response = await client.ask(Method.GET, "/worker")
            assert response.status is Status.INTERNAL_SERVER_ERROR
            assert "KeyError" in response.error
            assert "a bug in the answer" in caplog.text
            bad = Route.of(Address(0, client.link.address), Address(0, b"control"))
            client.router.send(bad, Route.of(b"me"), b"\xff")
            assert (await client.ask(Method.GET, "/node")).status is Status.OK

    run(test, tmp_path)


def test_too_many_requests_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controls, "AT_ONCE", 1)

    async def test(home: Home) -> None:
        make_node(home, "n")
        async with controlled(home) as (_, client):
            slow = {"to": "/service/uppercase", "payload": b"", "timeout": 500}
            waiting = asyncio.create_task(client.ask(Method.POST, "/message", slow))
            await asyncio.sleep(0.1)
            assert "too many" in (await client.ask(Method.GET, "/node")).error
            assert (await waiting).status is Status.TIMEOUT

    run(test, tmp_path)


def test_nobody_else_reaches_it(tmp_path: Path) -> None:
    async def test(home: Home) -> None:
        make_node(home, "n")
        make_node(home, "other", None)
        async with controlled(home) as (node, client), running(home, "other") as (other,):
            stop = Request(1, "/node/stop", Method.POST, None).encode()
            ways = [
                f"{address(node)}/service/control",
                f"{address(node)}/secure/api/service/control",
            ]
            for way in ways:
                with pytest.raises(NetworkError):
                    await other.send(way, stop, [], 0.3)
            # Nor along a message that the node sends itself, nor over what it opened.
            refused = node.router.refused
            body = {"to": "/service/control", "payload": stop, "timeout": 200}
            with pytest.raises(ApiError):
                await client.get("/message", Method.POST, body)
            assert node.router.refused == refused + 1
            link = await connect(
                other.router, *_split(node.own_listener), reach=other.wiring.outgoing, timeout=2
            )
            other.router.send(
                Route.of(Address(0, link.address), Address(0, b"control")), Route.of(b"me"), stop
            )
            await asyncio.sleep(0.1)
            assert not node.stopping.is_set()
            link.close()
            # And the socket leads nowhere else.
            before = node.router.unreachable
            route = Route.of(Address(0, client.link.address), Address(0, b"echo"))
            client.router.send(route, Route.of(b"me"), b"x")
            await client.ask(Method.GET, "/node")
            assert node.router.unreachable == before + 1

    run(test, tmp_path)


def _split(text: str | None) -> tuple[str, int]:
    assert text is not None
    host, _, port = text.rpartition(":")
    return host, int(port)


def test_another_user_is_turned_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Foreign:
        size = 12

        def unpack(self, raw: bytes) -> tuple[int, int, int]:
            pid, _, gid = struct.unpack("3i", raw)
            return pid, 4711, gid

    async def test(home: Home) -> None:
        make_node(home, "n")
        async with controlled(home) as (_, client):
            assert os.stat(home.socket("n")).st_mode & 0o777 == 0o600
            assert (await client.ask(Method.GET, "/node")).status is Status.OK
            monkeypatch.setattr(controls, "_CREDENTIALS", Foreign())
            reader, _writer = await asyncio.open_unix_connection(str(home.socket("n")))
            async with asyncio.timeout(2):
                assert len(await reader.read(10)) <= 1
                assert await reader.read() == b""
            _writer.close()

    run(test, tmp_path)


def test_too_many_connections_and_a_bad_place(tmp_path: Path) -> None:
    async def test(home: Home) -> None:
        make_node(home, "n")
        async with controlled(home) as (node, _):
            sockets = []
            for _number in range(70):
                sock = socket.socket(socket.AF_UNIX)
                sock.connect(str(home.socket("n")))
                sockets.append(sock)
            await asyncio.sleep(0.1)
            for sock in sockets:
                sock.close()
            with pytest.raises(NetworkError, match="cannot listen"):
                await open_socket(node, tmp_path / "missing" / "s")

    run(test, tmp_path)
