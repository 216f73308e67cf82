"""What systemd is told, over its socket, with and without the package systemd-python."""

import builtins
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge.node.notify import Systemd


@pytest.fixture(params=["path", "abstract"])
def heard(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[socket.socket]:
    address = str(tmp_path / "notify") if request.param == "path" else f"@{tmp_path}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0" + address[1:] if address.startswith("@") else address)
        sock.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        yield sock


@pytest.fixture(params=["with", "without"])
def package(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """systemd-python, there and not."""
    if request.param == "with":
        pytest.importorskip("systemd.daemon", reason="install systemd-python to test with it")
        return
    real = builtins.__import__

    def imported(name: str, *rest: Any) -> Any:
        if name.startswith("systemd"):
            raise ModuleNotFoundError(name)
        return real(name, *rest)

    for name in [name for name in sys.modules if name.split(".")[0] == "systemd"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", imported)


@pytest.mark.usefixtures("package")
def test_each_word(heard: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    systemd = Systemd()
    assert systemd
    assert systemd.watchdog == 15.0
    systemd.ready("node n:\nnothing to do")
    assert heard.recv(4096) == b"READY=1\nSTATUS=node n: nothing to do"
    systemd.status("node n: nothing to do")  # known
    systemd.alive()
    assert heard.recv(4096) == b"WATCHDOG=1"
    systemd.status("x" * 1000)
    assert heard.recv(4096) == b"STATUS=" + b"x" * 400
    systemd.reloading()
    reloading, moment = heard.recv(4096).split(b"\nMONOTONIC_USEC=")
    assert reloading == b"RELOADING=1"
    assert int(moment) > 0
    systemd.stopping()
    assert heard.recv(4096) == b"STOPPING=1"


def test_without_systemd_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    systemd = Systemd()
    assert not systemd
    assert systemd.watchdog is None
    systemd.ready("x")
    systemd.alive()


def test_a_systemd_that_does_not_listen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    Systemd().ready("x")


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("watchdog", ["", "0", "-1", "soon"])
def test_no_watchdog(watchdog: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", watchdog)
    assert Systemd().watchdog is None
