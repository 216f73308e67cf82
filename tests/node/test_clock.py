"""The clock: right, unset, raised, set again; and what a node makes of it."""

import asyncio
from pathlib import Path

import pytest

from edge.errors import TrustError
from edge.node.clock import BUILD_DATE, LONG, SHORT, STEP, YEAR, Clock, identity_validity
from edge.node.home import Home
from edge.node.node import Node
from edge.node.store import Store
from tests.node.world import address, eventually, make_node, run, running

TODAY = BUILD_DATE + 2 * YEAR


def test_a_right_clock() -> None:
    clock = Clock(wall=lambda: TODAY + 0.5)
    assert not clock.unset()
    assert clock.now() == TODAY
    assert clock.lifetime() == SHORT
    clock.proved(TODAY + YEAR)
    assert clock.now() == TODAY


def test_a_clock_in_1970() -> None:
    raised: list[int] = []
    wall = 100.0
    clock = Clock(wall=lambda: wall, raised=raised.append)
    assert clock.unset()
    assert clock.now() == clock.floor == BUILD_DATE
    assert clock.lifetime() == LONG
    clock.proved(BUILD_DATE + STEP - 1)
    assert not raised
    clock.proved(TODAY)
    clock.proved(TODAY - YEAR)
    assert raised == [TODAY]
    assert clock.now() == TODAY
    wall = TODAY + 5.0
    assert not clock.unset()
    assert Clock(wall=lambda: 0, floor=TODAY).now() == TODAY


def test_identities_outlive_a_wrong_clock() -> None:
    for now in (0, BUILD_DATE + 5, BUILD_DATE + 10 * YEAR):
        start, end = identity_validity(now)
        assert start == BUILD_DATE
        assert end >= BUILD_DATE + 30 * YEAR


class Wall:
    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def test_a_node_in_1970_talks_to_a_hub_of_today(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.node.presence.LOOK_AT_CLOCK", 0.05)

    async def test(home: Home) -> None:
        hub_name = make_node(home, "hub")
        make_node(home, "device", None)
        hub = Node(home, "hub", clock=Clock(wall=lambda: TODAY))
        await hub.start()
        wall = Wall(5.0)
        store = Store(home.database)
        device = Node(home, "device", clock=Clock(wall=wall, raised=store.raise_time_floor))
        # The store of this test is of this thread, and so is the callback.
        await device.start()
        at = f"{address(hub)}/secure/api"
        assert device.present().attestation.expires_at == BUILD_DATE + LONG
        # A stranger of the future is not believed, and moves nothing.
        with pytest.raises(TrustError, match="future"):
            await device.send(f"{at}/service/echo", b"", [], 5)
        assert device.clock.floor == BUILD_DATE
        # The hub that is named is, and sets the floor.
        relay = await device.relays.create({"at": at, "authorized": hub_name})
        assert relay["connection_status"] == "Up"
        assert device.clock.now() == store.time_floor() == TODAY
        await eventually(lambda: device.present().attestation.created_at == TODAY)
        # NTP arrives: attestations are short again.
        wall.now = TODAY + 100
        await eventually(lambda: device.present().attestation.created_at == TODAY + 100)
        await device.presence.present_anew()
        assert device.present().attestation.expires_at == TODAY + 100 + SHORT
        await device.close()
        await hub.close()
        store.close()

    run(test, tmp_path)


def test_a_clock_that_was_ahead_is_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.node.presence.LOOK_AT_CLOCK", 0.05)

    async def test(home: Home) -> None:
        make_node(home, "n")
        wall = Wall(TODAY + 10 * YEAR)
        node = Node(home, "n", clock=Clock(wall=wall))
        await node.start()
        assert node.present().attestation.created_at == TODAY + 10 * YEAR
        wall.now = TODAY
        await eventually(lambda: node.present().attestation.created_at == TODAY)
        await node.close()

    run(test, tmp_path)


def test_the_vault_fails_when_the_clock_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("edge.node.presence.LOOK_AT_CLOCK", 0.02)

    async def test(home: Home) -> None:
        make_node(home, "n")
        wall = Wall(TODAY + YEAR)
        node = Node(home, "n", clock=Clock(wall=wall))
        await node.start()
        key = tmp_path / "vault.sealed.key"
        text = key.read_text()
        vault = tmp_path / "vault.sealed"
        vault.rename(tmp_path / "away")
        wall.now = TODAY
        await eventually(lambda: "cannot attest anew" in caplog.text)
        (tmp_path / "away").rename(vault)
        key.write_text(text)
        await eventually(lambda: node.present().attestation.created_at == TODAY)
        await node.close()

    run(test, tmp_path)


def test_the_floor_is_kept(tmp_path: Path) -> None:
    async def test(home: Home) -> None:
        make_node(home, "n")
        async with running(home, "n") as (node,):
            node.clock._wall = lambda: 0.0
            node.clock.proved(TODAY)
            await node.store.settled()
        store = Store(home.database)
        assert store.time_floor() == TODAY
        store.close()
        await asyncio.sleep(0)

    run(test, tmp_path)
