"""What a tunnel is used for in these tests: a server that answers, and clients that check."""

import contextlib
import hashlib
import os
import socket
import threading
from collections.abc import Iterator

CHUNK = 256 * 1024
BLOCK = os.urandom(1 << 20)


def read(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = sock.recv(min(CHUNK, size - len(data)))
        assert part, f"the connection ended after {len(data)} of {size} bytes"
        data += part
    return bytes(data)


def read_hashed(sock: socket.socket, size: int) -> bytes:
    digest = hashlib.sha256()
    while size:
        part = sock.recv(min(CHUNK, size))
        assert part, f"the connection ended {size} bytes early"
        digest.update(part)
        size -= len(part)
    return digest.digest()


def read_all(sock: socket.socket) -> bytes:
    data = bytearray()
    while part := sock.recv(CHUNK):
        data += part
    return bytes(data)


class Server:
    """One letter says what a connection wants: `p`ing, `b`ulk both ways, `u`pload to the end,
    `d`ownload to the end, `l`ate answer."""

    def __init__(self) -> None:
        self.uploads: list[bytes] = []
        self.ended = threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            sock.settimeout(150)
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError, AssertionError):
            wish = sock.recv(1)
            if wish == b"p":
                sock.sendall(b"pong")
                sock.recv(1)
            elif wish == b"b":
                mebi = int.from_bytes(read(sock, 2))
                sock.sendall(read_hashed(sock, mebi << 20))
                for _ in range(mebi):
                    sock.sendall(BLOCK)
                sock.recv(1)
            elif wish == b"u":
                self.uploads.append(read_all(sock))
                self.ended.set()
            elif wish == b"d":
                sock.sendall(BLOCK * 3)
            elif wish == b"l":
                got = len(read_all(sock))
                sock.sendall(b"got %d" % got)

    def close(self) -> None:
        self.listener.close()


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    server = Server()
    try:
        yield server
    finally:
        server.close()


def dial(port: int, wish: bytes, limit: float = 60) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), limit)
    sock.sendall(wish)
    return sock


def ping(port: int, limit: float = 3) -> bool:
    try:
        with dial(port, b"p", limit) as sock:
            return read(sock, 4) == b"pong"
    except (OSError, AssertionError):
        return False


def bulk(port: int, mebi: int) -> None:
    """So many MiB there and as many back, both with their hash."""
    expected = hashlib.sha256(BLOCK * mebi).digest()
    with dial(port, b"b") as sock:
        sock.sendall(mebi.to_bytes(2))
        for _ in range(mebi):
            sock.sendall(BLOCK)
        assert read(sock, 32) == expected
        assert read_hashed(sock, mebi << 20) == expected


def upload(port: int, server: Server) -> None:
    """What was sent before the end arrives, all of it."""
    server.ended.clear()
    with dial(port, b"u") as sock:
        sock.sendall(BLOCK * 3)
        sock.shutdown(socket.SHUT_WR)
        assert server.ended.wait(20), "the server saw no end"
    assert server.uploads.pop() == BLOCK * 3


def download(port: int) -> None:
    with dial(port, b"d") as sock:
        assert read_all(sock) == BLOCK * 3


def late_answer(port: int) -> bytes:
    """What comes back after our end was sent."""
    with dial(port, b"l", 20) as sock:
        sock.sendall(b"x" * 1000)
        sock.shutdown(socket.SHUT_WR)
        try:
            return read_all(sock)
        except ConnectionError:
            return b""
