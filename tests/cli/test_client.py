"""The client against a small server that speaks real frames, and breaks the rules on demand."""

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge.cli import client
from edge.cli.client import Client
from edge.errors import ApiError, ConfigError, NetworkError
from edge.wire import cbor
from edge.wire.api import Failure, Request, Response, Status
from edge.wire.message import encode_transport, parse_transport
from edge.wire.route import Route

Answer = Callable[[Request, Route], list[bytes]]


class Server:
    """One connection at a time; every frame is answered by `answer`, which gives whole frames."""

    def __init__(self, path: Path) -> None:
        self.answer: Answer = lambda request, back: []
        self.requests: list[Request] = []
        self.greeting = b"\x01"
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(path))
        self._listening.listen()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join(5)

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as stream:
                connection.sendall(self.greeting)
                if stream.read(1) == b"\x01":
                    self._serve(connection, stream)

    def _serve(self, connection: socket.socket, stream: Any) -> None:
        while start := stream.read(4):
            body = stream.read(struct.unpack(">I", start)[0])
            onward, back, payload = parse_transport(memoryview(body))
            assert [str(address) for address in onward] == ["0#control"]
            self.requests.append(Request.decode(payload))
            frames = self.answer(self.requests[-1], back)
            for frame in frames:
                connection.sendall(frame)
            if not frames:
                return


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path / "s")
    yield made
    made.close()


@pytest.fixture
def peer(tmp_path: Path, server: Server) -> Iterator[Client]:
    made = Client("n", tmp_path / "s", timeout=2.0)
    yield made
    made.close()


def reply(request: Request, back: Route, body: bytes | None, status: Status = Status.OK) -> bytes:
    response = Response(1, request.id, status, body)
    return encode_transport(back, Route.of(b"control"), response.encode())


def test_questions_and_answers_over_one_connection(server: Server, peer: Client) -> None:
    server.answer = lambda request, back: [
        reply(request, back, request.body or cbor.encode("none"))
    ]
    assert peer.get("/node") == "none"
    assert peer.post("/x", {"a": 1, "b": None, "c": b"\x00"}) == {"a": 1, "c": b"\x00"}
    assert [(request.path, request.method) for request in server.requests] == [
        ("/node", 0),
        ("/x", 1),
    ]


def test_an_answer_without_a_body(server: Server, peer: Client) -> None:
    for body in (None, b""):
        server.answer = lambda request, back, body=body: [reply(request, back, body)]  # type: ignore[misc]
        assert peer.delete("/node/outlet/x") is None


def test_messages_for_somebody_else_are_skipped(server: Server, peer: Client) -> None:
    server.answer = lambda request, back: [
        reply(request, Route.of(b"other"), cbor.encode(1)),
        reply(request, back, cbor.encode(2)),
    ]
    assert peer.get("/x") == 2


def test_a_large_answer(server: Server, peer: Client) -> None:
    server.answer = lambda request, back: [reply(request, back, cbor.encode(b"x" * 3_000_000))]
    assert len(peer.get("/x")) == 3_000_000


@pytest.mark.parametrize(
    ("body", "message", "hint"),
    [
        (Failure(message="name taken\nchoose another").encode(), "name taken", "choose another"),
        (Failure(message="a", cause=Failure(message="b")).encode(), "a: b", ""),
        (cbor.encode("as a text"), "as a text", ""),
        (None, "node n refused, without a reason", ""),
        (b"\xff", "node n refused, without a reason", ""),
    ],
)
def test_refusals(
    server: Server, peer: Client, body: bytes | None, message: str, hint: str
) -> None:
    server.answer = lambda request, back: [reply(request, back, body, Status.CONFLICT)]
    with pytest.raises(ApiError) as caught:
        peer.get("/x")
    assert (str(caught.value), caught.value.hint, caught.value.status) == (message, hint, 409)


def test_silence_has_an_end(tmp_path: Path, server: Server) -> None:
    server.answer = lambda request, back: [reply(request, Route.of(b"other"), None)]
    peer = Client("n", tmp_path / "s", timeout=0.2)
    with pytest.raises(NetworkError, match="did not answer"):
        peer.get("/x")
    peer.close()


@pytest.mark.parametrize(
    "frame", [b"\x00\x00\x00\x00", b"\xff\xff\xff\xff", b"\x00\x00\x00\x01\xff"]
)
def test_nonsense_is_an_error(server: Server, peer: Client, frame: bytes) -> None:
    server.answer = lambda request, back: [frame]
    with pytest.raises(NetworkError):
        peer.get("/x")


def test_a_closed_connection_is_an_error(server: Server, peer: Client) -> None:
    with pytest.raises(NetworkError, match="closed"):
        peer.get("/x")


def test_another_version_is_an_error(server: Server, peer: Client) -> None:
    server.greeting = b"\x02"
    with pytest.raises(NetworkError, match="version"):
        peer.get("/x")


def test_a_node_that_does_not_run_says_how_to_start_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        Client("n", tmp_path / "nothing").get("/x")
    assert caught.value.hint == "start it: ockam-edge node start n"


def test_listeners_as_multi_addresses() -> None:
    assert client.multiaddr("127.0.0.1:4000") == "/ip4/127.0.0.1/tcp/4000"
    assert client.multiaddr("0.0.0.0:4000") == "/ip4/127.0.0.1/tcp/4000"
    assert client.multiaddr("[::]:4000") == "/ip6/::1/tcp/4000"
    assert client.multiaddr("[fd00::1]:4000") == "/ip6/fd00::1/tcp/4000"
    assert client.multiaddr("edge.local:4000") == "/dnsaddr/edge.local/tcp/4000"
