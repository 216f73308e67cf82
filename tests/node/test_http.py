"""The status endpoint: what it answers, to whom, and what it costs; its page in a real browser."""

import asyncio
import contextlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from edge.errors import ConfigError
from edge.events import event
from edge.node import http, page
from edge.node.home import Home
from edge.node.http import CONNECTIONS, LONGEST, check_address
from edge.node.node import Node
from edge.node.recent import Recent
from edge.node.store import Store
from tests.node.test_logs import record
from tests.node.world import address, make_node, run, running, target

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium-headless-shell") or shutil.which("chromium")
HOSTILE = '<script>document.title="owned"</script>'


@asynccontextmanager
async def served(home: Home, name: str = "gw") -> AsyncIterator[Node]:
    make_node(home, name)
    store = Store(home.database)
    store.set_setting(name, "status_endpoint", "127.0.0.1:0")
    store.close()
    async with running(home, name) as (node,):
        yield node


async def raw(node: Node, request: bytes) -> bytes:
    host, _, port = (node.status_endpoint or "").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(request)
        async with asyncio.timeout(10):
            return await reader.read()
    finally:
        writer.close()


async def ask(
    node: Node, path: str, method: str = "GET", host: str | None = "localhost"
) -> tuple[int, dict[str, str], str]:
    """Status, headers and body."""
    named = "" if host is None else f"Host: {host}\r\n"
    said = await raw(node, f"{method} {path} HTTP/1.1\r\n{named}Accept: */*\r\n\r\n".encode())
    head, _, body = said.decode().partition("\r\n\r\n")
    first, *lines = head.split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    assert int(headers["content-length"]) == len(body.encode()) or method == "HEAD"
    return int(first.split()[1]), headers, body


def play(test: Callable[[Node], Awaitable[None]], folder: Path) -> None:
    async def work(home: Home) -> None:
        async with served(home) as node:
            await test(node)

    run(work, folder)


def test_it_is_off_where_nobody_asked(tmp_path: Path) -> None:
    async def work(home: Home) -> None:
        make_node(home, "n")
        async with running(home, "n") as (node,):
            assert node.endpoint is None
            assert (await node.show())["status_endpoint_address"] is None

    run(work, tmp_path)


def test_what_stock_answers(tmp_path: Path) -> None:
    async def work(node: Node) -> None:
        assert (await ask(node, "/", "HEAD"))[0] == 200
        assert await raw(node, b"HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n") == (
            http.encoded("HEAD", http.Answer(200, http.HTML, b""))
        )
        status, _, body = await ask(node, "/show")
        assert status == 200
        shown = json.loads(body)
        assert (shown["name"], shown["status"]) == ("gw", "running")
        assert shown["status_endpoint_address"] == node.status_endpoint

    play(work, tmp_path)


def test_alive_ready_and_why_not(tmp_path: Path) -> None:
    async def work(node: Node) -> None:
        assert (await ask(node, "/healthz"))[::2] == (200, "alive\n")
        assert (await ask(node, "/readyz"))[::2] == (200, "ready\n")
        await node.relays.create(
            {"name": "r", "at": "/ip4/127.0.0.1/tcp/9/secure/api", "wait": False}
        )
        status, _, body = await ask(node, "/readyz")
        assert status == 503
        assert body.startswith("relay r is down")
        assert (await ask(node, "/healthz"))[0] == 200
        await node.relays.delete("r")
        assert (await ask(node, "/readyz"))[0] == 200
        presenter = node.presence.presenter
        assert presenter is not None
        presenter._current = None  # as after a night without the token
        status, _, body = await ask(node, "/readyz")
        assert (status, body) == (
            503,
            "no channel can be opened: our key has not been attested yet\n",
        )

    play(work, tmp_path)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200), ("127.0.0.1:80", 200), ("localhost:8080", 200), ("LOCALHOST", 200),
        ("[::1]", 200), ("[::1]:80", 200), ("127.1.2.3", 200),
        ("evil.example", 403), ("evil.example:80", 403), ("localhost.evil.example", 403),
        ("10.0.0.1", 403), ("127.0.0.1.evil.example", 403), ("127.0.0.1@evil.example", 403),
        ("", 403), (None, 403), ("localhost\r\nHost: evil.example", 403), ("0.0.0.0", 403),
    ],
)  # fmt: skip
def test_the_host_must_be_this_machine(tmp_path: Path, host: str | None, status: int) -> None:
    async def work(node: Node) -> None:
        for path in ("/", "/status", "/metrics", "/nowhere"):
            found = (await ask(node, path, host=host))[0]
            assert found == (404 if (status, path) == (200, "/nowhere") else status)

    play(work, tmp_path)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"\x16\x03\x01\r\n\r\n", 400),
        (b"GET /\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nHost: localhost\r\n\r\n", 400),
        (b"GET http://localhost/ HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost\r\n\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
        (b"OPTIONS /status HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
        (b"GET /../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * LONGEST + b"\r\n\r\n", 431),
        (b"GET /healthz?x=1 HTTP/1.0\r\nHost: localhost\r\n\r\n", 200),
    ],
)
def test_bad_requests(tmp_path: Path, request_: bytes, status: int) -> None:
    async def work(node: Node) -> None:
        assert (await raw(node, request_)).split(b" ", 2)[1] == str(status).encode()
        assert (await ask(node, "/healthz"))[0] == 200

    play(work, tmp_path)


def test_no_other_origin_reads_it(tmp_path: Path) -> None:
    async def work(node: Node) -> None:
        for path in ("/", "/status", "/show", "/metrics", "/healthz", "/nowhere"):
            headers = (await ask(node, path))[1]
            assert not [name for name in headers if name.startswith("access-control")]
            assert headers["cross-origin-resource-policy"] == "same-origin"
            assert headers["content-security-policy"].startswith("default-src 'none'; ")
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["cache-control"] == "no-store"

    play(work, tmp_path)


def test_connections_are_bounded_and_silent_ones_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "PATIENCE", 0.5)

    async def work(node: Node) -> None:
        host, _, port = (node.status_endpoint or "").rpartition(":")
        idle = [await asyncio.open_connection(host, int(port)) for _ in range(CONNECTIONS)]
        reader, writer = await asyncio.open_connection(host, int(port))
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()
        for reader, writer in idle:
            with contextlib.suppress(ConnectionResetError):
                assert await asyncio.wait_for(reader.read(), 10) == b""
            writer.close()
        assert (await ask(node, "/healthz"))[0] == 200

    play(work, tmp_path)


def test_a_port_that_is_taken_stops_no_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "AGAIN", 0.05)

    async def work(home: Home) -> None:
        make_node(home, "n")
        taken = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
        port = taken.sockets[0].getsockname()[1]
        store = Store(home.database)
        store.set_setting("n", "status_endpoint", f"127.0.0.1:{port}")
        store.close()
        async with running(home, "n") as (node,):
            assert node.endpoint is not None
            assert node.status_endpoint is None
            assert "in use" in (node.endpoint.failure or "")
            taken.close()
            async with asyncio.timeout(10):
                while node.status_endpoint is None:
                    await asyncio.sleep(0.02)
            assert (await ask(node, "/healthz"))[0] == 200

    run(work, tmp_path)


@pytest.mark.parametrize("address_", ["0.0.0.0:80", "10.0.0.1:80", "host.example:80", "[::]:80"])
def test_it_is_for_this_machine_only(address_: str) -> None:
    with pytest.raises(ConfigError, match="this machine only"):
        check_address(address_)
    assert check_address("localhost:1") == ("127.0.0.1", 1)
    assert check_address("[::1]:1") == ("::1", 1)


def test_a_bug_is_said_and_costs_one_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(node: Node) -> None:
        raise ValueError("secret detail")

    async def work(node: Node) -> None:
        monkeypatch.setattr(http.status, "status", fail)
        status, _, body = await ask(node, "/status")
        assert (status, "secret" in body) == (500, False)
        assert (await ask(node, "/healthz"))[0] == 200

    play(work, tmp_path)


# -- metrics


def test_the_document_lists_the_metrics(tmp_path: Path) -> None:
    from edge.node.metrics import PREFIX, ROWS  # noqa: PLC0415 - heavy

    rows = re.findall(
        r"^\| `(\w+)` \| (.*?) \| (.*) \|$", (ROOT / "docs/metrics.md").read_text(), re.M
    )
    assert rows == [
        (PREFIX + one.name, ", ".join(f"`{label}`" for label in one.labels), one.help)
        for one in ROWS
    ]
    assert len(rows) >= 40

    async def work(node: Node) -> None:
        node.recent = Recent()
        node.recent.handle(record(**event("relay-up", relay="r")))
        async with target() as port:
            await node.outlets.create({"name": "o", "to": f"127.0.0.1:{port}"})
            await node.inlets.create({
                "name": "i", "to": f"{address(node)}/service/o", "connection_wait": 5000,
            })  # fmt: skip
            await node.relays.create({"name": "r", "at": f"{address(node)}/secure/api"})
            text = (await ask(node, "/metrics"))[2]
        there = set(re.findall(rf"^# TYPE ({PREFIX}\w+) ", text, re.M))
        assert there == {PREFIX + one.name for one in ROWS}
        assert f'{PREFIX}relay_up{{relay="r"}} 1.0' in text
        assert f'{PREFIX}inlet_up{{inlet="i"}} 1.0' in text
        assert f'{PREFIX}outlet_connections_total{{outlet="o"}} 0.0' in text
        assert f'{PREFIX}events_total{{event="relay-up"}} 1.0' in text
        assert "process_resident_memory_bytes" in text
        assert int(float(re.findall(rf"^{PREFIX}link_sent_bytes_total (.*)$", text, re.M)[0])) > 100

    play(work, tmp_path)


def test_nothing_is_lost_of_what_has_ended(tmp_path: Path) -> None:
    async def work(node: Node) -> None:
        from edge.node.metrics import Metrics  # noqa: PLC0415

        def value(name: str) -> float:
            text = Metrics(node).text().decode()
            return float(re.findall(rf"^ockam_edge_{name} (.*)$", text, re.M)[0])

        await node.send(f"{address(node)}/secure/api/service/echo", b"\x41x", [], 5.0)
        async with asyncio.timeout(5):
            while value("links") or value("channels"):
                await asyncio.sleep(0.02)
        assert value("links_ended_total") == 2
        assert value("channels_ended_total") == 2
        assert value("channel_records_sent_total") == value("channel_records_received_total") >= 2
        assert (
            value("link_received_bytes_total") == value("link_sent_bytes_total") + 2 > 100
        )  # versions

    play(work, tmp_path)


def test_the_library_is_loaded_by_the_first_scrape() -> None:
    code = (
        "import sys, edge.node.service, edge.node.http; print('prometheus_client' in sys.modules)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert found.stdout.strip() == "False"


# -- the page


def hostile(picture: dict[str, Any]) -> dict[str, Any]:
    """What a peer or an operator may have put into names and messages."""
    return picture | {
        "name": HOSTILE,
        "obstacles": [HOSTILE],
        "errors": [{"last": "now", "event": None, "message": HOSTILE, "hint": "'\"><img src=x>"}],
    }


def test_whatever_is_shown_is_text(tmp_path: Path) -> None:
    async def work(node: Node) -> None:
        text = page.page(hostile(http.status.status(node))).decode()
        assert "<script" not in text
        assert "<img" not in text
        assert "&lt;script&gt;" in text

    play(work, tmp_path)


@pytest.mark.timeout(120)
def test_the_page_in_a_browser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The style is taken, which the policy names by its digest; nothing of an attacker runs."""
    if CHROMIUM is None:
        pytest.skip("NO BROWSER: apt-get install chromium-headless-shell")
    whole = http.status.status

    async def work(node: Node) -> None:
        monkeypatch.setattr(http.status, "status", lambda one: hostile(whole(one)))
        monkeypatch.setattr(page, "escape", str)  # as if we had forgotten to
        for image, injected in ((tmp_path / "a.png", True), (tmp_path / "b.png", False)):
            if not injected:
                monkeypatch.undo()
            browser = await asyncio.create_subprocess_exec(
                CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
                f"--user-data-dir={image}.d", f"http://{node.status_endpoint}/",
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path,
            )  # fmt: skip
            try:
                async with asyncio.timeout(50):
                    out, said = await browser.communicate()
            except TimeoutError:
                browser.kill()
                raise
            dom = out.decode()
            assert '<span id="state"' in dom, said.decode()[-500:]
            assert "<title>owned" not in dom
            assert ("<script" in dom) is injected

    play(work, tmp_path)
