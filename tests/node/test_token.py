"""A real node with its identity in a SoftHSM token: the token goes while a tunnel carries data, is not
there at the start, and its process dies. Nothing restarts."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge.cli.nodetext import block
from tests.tokens.environments import SoftHsm
from tests.tokens.nodes import GATEWAY, Nodes, Pinger, echo

pytestmark = pytest.mark.timeout(180)

LIFE = 8
"""Seconds that an attestation lives here."""
SOON = 60.0


class Place:
    """A home with nodes, and a token."""

    def __init__(self, token: SoftHsm, folder: Path) -> None:
        self.token = token
        self.nodes = Nodes(folder / "home", token.variables, ())
        self.ids = self.nodes.identities(token.uri(object="gateway"), "ed25519")

    @property
    def vault(self) -> dict[str, Any]:
        vault: dict[str, Any] = self.nodes.show()["vault"]
        return vault

    def opens_a_channel(self) -> bool:
        route = f"/ip4/127.0.0.1/tcp/{self.nodes.port}/secure/api/service/echo"
        try:
            said = self.nodes.do(
                "message", "send", "hello", "--to", route, "--identity", "client",
                "--authorized", self.ids[GATEWAY], "--timeout", "3",
            )  # fmt: skip
        except RuntimeError:
            return False
        return "hello" in said

    def child(self) -> int:
        """The process that the token's module is loaded in."""
        (found,) = [pid for pid in self.nodes.family()[1:] if "apart" in command_of(pid)]
        return found


def command_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def eventually(true: Callable[[], object]) -> None:
    until = time.monotonic() + SOON
    while not true():
        assert time.monotonic() < until
        time.sleep(0.2)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    if why := SoftHsm.missing():
        pytest.skip(why)
    with SoftHsm(tmp_path / "token") as token:
        there = Place(token, tmp_path)
        try:
            yield there
        finally:
            there.nodes.tear_down()


def test_it_goes_and_comes_back_while_a_tunnel_carries_data(place: Place) -> None:
    nodes, outage = place.nodes, place.token.outages["files moved"]
    nodes.start_gateway(LIFE)
    with echo() as target:
        pinger = Pinger(nodes.tunnel(place.ids, target))
        try:
            before = place.vault
            assert before["state"] == "present"
            assert before["serial"]
            assert before["module"] == str(place.token.module)
            assert place.opens_a_channel()
            answers = pinger.answers
            with outage.gone():
                eventually(lambda: place.vault["state"] == "gone")
                gone = place.vault
                assert "edge" in gone["error"]
                assert gone["hint"]
                assert f"gone since {gone['since']}" in block(nodes.show())
                eventually(lambda: "new channels are refused" in nodes.log.read_text())
                assert not place.opens_a_channel()
            eventually(lambda: place.vault["state"] == "present")
            assert place.opens_a_channel()
            after = place.vault
            assert after["error"] is None
            assert after["logins"] == before["logins"] + 1
            assert after["attested_until"] > gone["attested_until"]
            eventually(lambda: pinger.answers > answers + 20)
            # A process that dies costs nothing but itself.
            os.kill(place.child(), signal.SIGKILL)
            eventually(lambda: place.vault["logins"] > after["logins"])
            assert place.opens_a_channel()
        finally:
            pinger.close()
    assert pinger.broken == ""
    log = nodes.log.read_text()
    assert "Traceback" not in log
    assert place.token.pin not in log
    pid = nodes.pid
    module = Path(place.token.module).name
    assert module not in Path(f"/proc/{pid}/maps").read_text()
    assert module in Path(f"/proc/{place.child()}/maps").read_text()
    limits = Path(f"/proc/{pid}/limits").read_text()
    assert "Max core file size        0                    0" in limits


def test_no_connection_asks_the_token(place: Place) -> None:
    place.nodes.start_gateway(3600)
    before = place.vault
    for _ in range(3):
        assert place.opens_a_channel()
    after = place.vault
    counted = ("signatures", "logins")
    assert [after[name] for name in counted] == [before[name] for name in counted]


def test_started_without_it(place: Place) -> None:
    nodes, outage = place.nodes, place.token.outages["files moved"]
    nodes.do("node", "create", GATEWAY, "--identity", GATEWAY)
    nodes.do("node", "stop", GATEWAY)
    with outage.gone():
        nodes.run_gateway(3600)
        vault = place.vault
        assert vault["state"] == "gone"
        assert vault["attested_until"] is None
        assert vault["logins"] == 0
        assert not place.opens_a_channel()
        assert "no channels until" in nodes.log.read_text()
    eventually(lambda: place.vault["state"] == "present")
    assert place.opens_a_channel()
    assert place.vault["logins"] == 1


def test_a_wrong_pin_is_not_waited_for(place: Place) -> None:
    nodes = place.nodes
    nodes.do("node", "create", GATEWAY, "--identity", GATEWAY)
    nodes.do("node", "stop", GATEWAY)
    place.token.write_pin(place.token.wrong_pin())
    with pytest.raises(RuntimeError, match="refused the PIN"):
        nodes.do("node", "start", GATEWAY)
    with pytest.raises(RuntimeError, match="not tried again"):
        nodes.do("node", "start", GATEWAY)


def test_another_token_is_not_given_the_pin(place: Place) -> None:
    """One with the same label, in the place of ours: its PIN may be another one, and count, and its
    maker may be curious. Also where a kept channel key is unsealed before our key is looked at."""
    nodes, token = place.nodes, place.token
    nodes.do("vault", "seal", "edge")
    nodes.do("node", "create", GATEWAY, "--identity", GATEWAY, "--keep-channel-key")
    nodes.do("node", "stop", GATEWAY)
    markers = set(nodes.home.glob("pin-*.json"))
    with token.outages["files moved"].gone():
        token.add_token("edge")
        with pytest.raises(RuntimeError, match="serial"):
            nodes.do("node", "start", GATEWAY)
        assert set(nodes.home.glob("pin-*.json")) == markers
