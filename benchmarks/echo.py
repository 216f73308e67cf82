"""The echo service at the far end: one process, one epoll, little time of its own."""

from __future__ import annotations

import select
import socket
import sys


def serve(port: int) -> None:
    """Echo on 127.0.0.1:port until killed."""
    listener = socket.create_server(("127.0.0.1", port), backlog=4096)
    listener.setblocking(False)
    epoll = select.epoll()
    epoll.register(listener, select.EPOLLIN)
    open_sockets: dict[int, socket.socket] = {}
    home = listener.fileno()
    while True:
        for number, _events in epoll.poll():
            if number == home:
                try:
                    client = listener.accept()[0]
                except OSError:
                    continue
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                open_sockets[client.fileno()] = client
                epoll.register(client, select.EPOLLIN)
                continue
            client = open_sockets[number]
            try:
                data = client.recv(65536)
                if data:
                    client.sendall(data)
            except OSError:
                data = b""
            if not data:
                epoll.unregister(number)
                open_sockets.pop(number).close()


if __name__ == "__main__":
    serve(int(sys.argv[1]))
