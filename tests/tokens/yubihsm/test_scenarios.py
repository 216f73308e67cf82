"""What only a YubiHSM 2 does to its user, as rows of the matrix."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.tokens.cells import scenario
from tests.tokens.checks import check
from tests.tokens.conftest import Hold
from tests.tokens.holder import first_good
from tests.tokens.yubihsm.device import IDLE_SECONDS, SESSIONS
from tests.tokens.yubihsm.environment import YubiHsm
from vault_backends.vault import Kind, NotFound, VaultError

ONLY = ("yubihsm",)
PATIENCE = 10


@scenario("YubiHSM: others hold all 16 sessions, then one is free", only=ONLY)
def test_sessions_taken(
    token: YubiHsm, hold: Hold, kind: Kind, label: str, figure: Callable[[str, Any], None]
) -> None:
    with hold() as vault:
        key = vault.generate(kind, label)
        token.order(taken=SESSIONS, reboot=True)
        try:
            for _ in range(3):
                with pytest.raises(VaultError, match="no session") as caught:
                    vault.sign(key, b"x")
                assert caught.value.retry
        finally:
            token.order(taken=0)
        figure("recovery_s", round(first_good(lambda: vault.sign(key, b"x"), PATIENCE), 2))
        vault.delete(key)


@scenario("YubiHSM: the device reboots or ends an idle session; no new login", only=ONLY)
def test_session_lost(token: YubiHsm, hold: Hold, kind: Kind, label: str) -> None:
    """The module opens a new session by itself."""
    with hold() as vault:
        key = vault.generate(kind, label)
        public = vault.public(key)
        token.order(reboot=True)
        check(kind, public, vault.sign(key, b"x"), b"x")
        opened = token.counted("CREATE_SESSION")
        token.order(idle=0.05)
        time.sleep(0.1)  # for the device's clock, which is a real one
        assert token.order()["sessions"] == 0
        token.order(idle=IDLE_SECONDS)
        check(kind, public, vault.sign(key, b"y"), b"y")
        assert token.counted("CREATE_SESSION") == opened + 1
        assert vault.ask("logins") == 1
        vault.delete(key)


@scenario("YubiHSM: the module starts while the connector is down, which comes later", only=ONLY)
def test_started_without_a_connector(token: YubiHsm, hold: Hold, kind: Kind, label: str) -> None:
    with hold() as vault:
        key = vault.generate(kind, label)
        public = vault.public(key)
    with hold() as vault:
        with token.outages["connector down"].gone():
            for _ in range(3):
                with pytest.raises(NotFound) as caught:
                    vault.sign(key, b"x")
                assert caught.value.retry
            assert vault.ask("logins") == 0
        check(kind, public, vault.sign(key, b"x"), b"x")
        vault.delete(key)


@scenario("YubiHSM: 20 processes one after the other leave no session behind", only=ONLY)
def test_sessions_given_back(token: YubiHsm, hold: Hold, kind: Kind, label: str) -> None:
    for _ in range(SESSIONS + 4):
        with hold() as vault:
            vault.ask("keys")
        assert token.order()["sessions"] == 0


@scenario("YubiHSM: an unknown authentication key is a wrong PIN, tried once", only=ONLY)
def test_unknown_authentication_key(token: YubiHsm, hold: Hold, kind: Kind) -> None:
    before = token.counted("CREATE_SESSION")
    token.write_pin(f"0abc{token.pin[4:]}")
    try:
        with hold() as vault:
            for _ in range(3):
                with pytest.raises(VaultError, match="refused") as caught:
                    vault.ask("keys")
                assert not caught.value.retry
    finally:
        token.write_pin(token.pin)
    assert token.counted("CREATE_SESSION") == before + 1
