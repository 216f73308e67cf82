"""The connector and its switches, as a process, over HTTP."""

import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from tests.tokens.yubihsm.simulator import Simulator

ECHO = b"\1\0\2hi"


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    made = Simulator("000a:a password:sign-eddsa,get-pseudo-random")
    yield made
    made.end()


@pytest.fixture(autouse=True)
def all_well(simulator: Simulator) -> None:
    simulator.order(connector="up", slow=0, taken=0)


def ask(simulator: Simulator, path: str = "/connector/api", data: bytes | None = ECHO) -> bytes:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(simulator.connector + path, data, timeout=10) as answer:
        return bytes(answer.read())


def status(simulator: Simulator) -> list[str]:
    return ask(simulator, "/connector/status", None).decode().splitlines()


def test_frames(simulator: Simulator) -> None:
    assert ask(simulator) == b"\x81\0\2hi"
    assert "status=OK" in status(simulator)


def test_no_device(simulator: Simulator) -> None:
    simulator.order(connector="no-device")
    assert "status=NO_DEVICE" in status(simulator)
    with pytest.raises(urllib.error.HTTPError, match="503"):
        ask(simulator)
    simulator.order(connector="up")
    assert ask(simulator) == b"\x81\0\2hi"


def test_down_and_up_at_the_same_address(simulator: Simulator) -> None:
    for _ in range(3):
        assert simulator.order(connector="down")["connector"] == "down"
        with pytest.raises(urllib.error.URLError, match="refused"):
            ask(simulator)
        simulator.order(connector="up")
        assert ask(simulator) == b"\x81\0\2hi"


def test_counts(simulator: Simulator) -> None:
    before = simulator.counted("ECHO")
    ask(simulator)
    assert simulator.counted("ECHO") == before + 1


@pytest.mark.parametrize("path", ["/", "/connector", "/control"])
def test_unknown_paths(simulator: Simulator, path: str) -> None:
    for data in (None, ECHO):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            ask(simulator, path, data)


@pytest.mark.parametrize("order", [{"connector": "sideways"}, {"slow": "x"}, {"melt": True}])
def test_unknown_orders(simulator: Simulator, order: dict[str, object]) -> None:
    with pytest.raises(urllib.error.HTTPError, match="400"):
        simulator.order(**order)
