"""Yubico's connector in front of the simulated device: HTTP on 127.0.0.1, and a second port by
which a test makes things go wrong.

    GET  /connector/status   ->  status=OK and more, a line each
    POST /connector/api      ->  one frame for one frame

The control port takes JSON by POST /control, each key optional, and answers with what GET /control
says:

    {"connector": "up" | "no-device" | "down"}   no-device: 503; down: nobody listens
    {"slow": seconds}                            before each answer
    {"idle": seconds}                            after which a session ends
    {"taken": n}                                 sessions that others hold
    {"reboot": true}                             all sessions end
"""

import json
import socket
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.tokens.yubihsm.device import Device
from tests.tokens.yubihsm.frames import LONGEST

_LOCAL = "127.0.0.1"


class Connector:
    """The port stays the same over "down" and "up" again."""

    def __init__(self, device: Device, port: int = 0) -> None:
        self.device = device
        self.port = port
        self.state = "down"
        self.slow = 0.0
        self.lock = threading.Lock()  # of the device: it does one thing at a time
        self._server: _Server | None = None

    def up(self) -> None:
        if self._server is None:
            self._server = _Server(self.port, self)
            self.port = self._server.server_port
        self.state = "up"

    def no_device(self) -> None:
        self.up()
        self.state = "no-device"

    def down(self) -> None:
        self.state = "down"
        if self._server is not None:
            self._server.end()
            self._server = None

    def exchange(self, raw: bytes) -> bytes:
        with self.lock:
            time.sleep(self.slow)
            return self.device.exchange(raw)


class _Server(ThreadingHTTPServer):
    """Runs until end(), which hangs up on everybody."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, port: int, connector: Connector) -> None:
        super().__init__((_LOCAL, port), _Requests)
        self.connector = connector
        self._open: set[socket.socket] = set()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients hang up, and end() hangs up on them: nothing to report."""

    def end(self) -> None:
        self.shutdown()
        self.server_close()
        for one in list(self._open):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._thread.join()


class _Http(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each command waits 40 ms for an acknowledgement
    timeout = 120.0

    def body(self, longest: int) -> bytes:
        length = int(self.headers.get("Content-Length", 0))
        return self.rfile.read(min(length, longest))

    def say(self, status: int, data: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _Requests(_Http):
    server: _Server

    def do_GET(self) -> None:
        connector = self.server.connector
        if self.path != "/connector/status":
            return self.send_error(404)
        status = "OK" if connector.state == "up" else "NO_DEVICE"
        lines = (
            f"status={status}", f"serial={connector.device.serial:010}", "version=3.0.0", "pid=1",
            f"address={_LOCAL}", f"port={connector.port}",
        )  # fmt: skip
        return self.say(200, "".join(f"{line}\n" for line in lines).encode(), "text/plain")

    def do_POST(self) -> None:
        connector = self.server.connector
        raw = self.body(LONGEST + 3)
        if self.path != "/connector/api":
            return self.send_error(404)
        if connector.state != "up":
            return self.send_error(503)
        return self.say(200, connector.exchange(raw), "application/octet-stream")


class Control(ThreadingHTTPServer):
    """The port for tests. One thread at a time changes things."""

    daemon_threads = True

    def __init__(self, connector: Connector, port: int = 0) -> None:
        super().__init__((_LOCAL, port), _Orders)
        self.connector = connector
        self.lock = threading.Lock()

    def obey(self, orders: dict[str, Any]) -> None:
        connector, device = self.connector, self.connector.device
        with self.lock:
            for name, value in orders.items():
                match name:
                    case "connector":
                        {
                            "up": connector.up,
                            "no-device": connector.no_device,
                            "down": connector.down,
                        }[value]()
                    case "slow":
                        connector.slow = float(value)
                    case "idle":
                        device.idle_seconds = float(value)
                    case "taken":
                        device.take(int(value))
                    case "reboot":
                        with connector.lock:
                            device.reboot()
                    case _:
                        raise KeyError(name)

    def report(self) -> dict[str, Any]:
        connector, device = self.connector, self.connector.device
        with connector.lock:
            return {
                "connector": connector.state,
                "port": connector.port,
                "sessions": device.sessions,
                "counted": dict(device.counted),
            }


class _Orders(_Http):
    server: Control

    def do_GET(self) -> None:
        self.say(200, json.dumps(self.server.report()).encode(), "application/json")

    def do_POST(self) -> None:
        try:
            self.server.obey(json.loads(self.body(4096)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return self.say(400, repr(error).encode(), "text/plain")
        return self.do_GET()
