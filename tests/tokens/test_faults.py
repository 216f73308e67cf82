"""Errors of the module, put in by the shim: the vault is back by itself, one login per start."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tokens.cells import scenario
from tests.tokens.checks import check
from tests.tokens.conftest import Hold
from tests.tokens.environments import Environment, Outage
from tests.tokens.holder import first_good
from tests.tokens.processes import until
from tests.tokens.shim import Shim
from vault_backends.vault import DeviceGone, Kind, Refused, VaultError

PATIENCE = 40.0
CODES = {
    "GeneralError": 0x05,
    "FunctionFailed": 0x06,
    "DeviceError": 0x30,
    "DeviceMemory": 0x31,
    "DeviceRemoved": 0x32,
    "KeyHandleInvalid": 0x60,
    "OperationActive": 0x90,
    "SessionClosed": 0xB0,
    "SessionHandleInvalid": 0xB3,
    "TokenNotPresent": 0xE0,
    "UserNotLoggedIn": 0x101,
}


@scenario("the token answers a signature with", variants=tuple(CODES))
def test_error_in_sign(
    hold: Hold, shim: Shim, kind: Kind, label: str, variant: str, figure: Callable[..., None]
) -> None:
    with hold(module=shim.path) as vault:
        key = vault.generate(kind, label)
        public = vault.public(key)
        vault.sign(key, b"before")
        logins, starts = shim.count("C_Login"), shim.count("C_Initialize")
        shim.on("C_SignInit", "rv", CODES[variant])
        took = first_good(lambda: vault.sign(key, b"x"), PATIENCE)
        check(kind, public, vault.sign(key, b"y"), b"y")
        assert shim.count("C_Login") - logins <= shim.count("C_Initialize") - starts <= 1
        figure("recovery_s", round(took, 2))
        vault.delete(key)


@scenario("every call fails until the module is started anew", quick=("softhsm-ed25519",))
def test_stuck(hold: Hold, shim: Shim, kind: Kind, label: str, figure: Callable[..., None]) -> None:
    with hold(module=shim.path) as vault:
        key = vault.generate(kind, label)
        public = vault.public(key)
        vault.sign(key, b"before")
        shim.on("C_SignInit", "stuck", CODES["GeneralError"])
        figure("recovery_s", round(first_good(lambda: vault.sign(key, b"x"), PATIENCE), 2))
        check(kind, public, vault.sign(key, b"y"), b"y")
        vault.delete(key)


@scenario("no session is free at first", quick=("softhsm-ed25519",))
def test_session_count(
    hold: Hold, shim: Shim, kind: Kind, label: str, figure: Callable[..., None]
) -> None:
    with hold(module=shim.path) as vault:
        key = vault.generate(kind, label)
    shim.on("C_OpenSession", "rv", 0xB1, always=True)
    logins = shim.count("C_Login")
    with hold(module=shim.path) as vault:
        for _ in range(3):
            with pytest.raises(VaultError) as caught:
                vault.sign(key, b"x")
            assert caught.value.retry
        assert shim.count("C_Login") == logins
        shim.calm()
        figure("recovery_s", round(first_good(lambda: vault.sign(key, b"x"), PATIENCE), 2))
        assert shim.count("C_Login") == logins + 1
        vault.delete(key)


@scenario("a signature that does not verify is refused")
def test_faulty_signature(hold: Hold, shim: Shim, kind: Kind, label: str) -> None:
    with hold(module=shim.path) as vault:
        key = vault.generate(kind, label)
        shim.on("C_Sign", "flip", always=True)
        with pytest.raises(Refused, match="verify"):
            vault.sign(key, b"x")
        shim.calm()
        check(kind, vault.public(key), vault.sign(key, b"y"), b"y")
        vault.delete(key)


@scenario("gone and back", quick=("softhsm-ed25519", "swtpm"))
def test_outage(
    token: Environment,
    hold: Hold,
    shim: Shim,
    outage: Outage,
    outage_name: str,
    kind: Kind,
    label: str,
    figure: Callable[..., None],
) -> None:
    with hold(module=shim.path) as vault:
        key = vault.generate(kind, label)
        public = vault.public(key)
        vault.sign(key, b"before")
        logins = shim.count("C_Login")
        with outage.gone():
            for _ in range(3):
                with pytest.raises(VaultError) as caught:
                    vault.sign(key, b"x")
                assert caught.value.retry, caught.value
        figure("recovery_s", round(first_good(lambda: vault.sign(key, b"x"), PATIENCE), 2))
        check(kind, public, vault.sign(key, b"y"), b"y")
        assert shim.count("C_Login") - logins <= 2
        vault.delete(key)


# --- with the module in a process apart, as nodes keep it


IN = ("C_Sign", "C_Login", "C_Initialize")


@pytest.mark.timeout(120)
@scenario("apart: the module crashes in", variants=IN)
def test_crash(
    token: Environment,
    hold: Hold,
    shim: Shim,
    kind: Kind,
    label: str,
    variant: str,
    tmp_path: Path,
    figure: Callable[..., None],
) -> None:
    with hold(module=shim.path) as plain:
        key = plain.generate(kind, label)
        public = plain.public(key)
    shim.on(variant, "crash")
    with hold(module=shim.path, apart=True, state_dir=tmp_path / "state") as vault:
        figure("recovery_s", round(_through(token, vault, key), 2))
        check(kind, public, vault.sign(key, b"y"), b"y")
        assert shim.inside(variant) == 1
        vault.delete(key)


@pytest.mark.timeout(180)
@scenario("apart: the module hangs in C_Sign")
def test_hang(
    token: Environment,
    hold: Hold,
    shim: Shim,
    kind: Kind,
    label: str,
    figure: Callable[..., None],
) -> None:
    with hold(module=shim.path, apart=True) as vault:
        key = vault.generate(kind, label)
        public = vault.public(key)
        shim.on("C_Sign", "hang")
        figure("recovery_s", round(_through(token, vault, key), 2))
        check(kind, public, vault.sign(key, b"y"), b"y")
        vault.delete(key)


@pytest.mark.timeout(120)
@scenario("apart: the process of the module is killed", quick=("softhsm-ed25519",))
def test_killed(
    token: Environment,
    hold: Hold,
    kind: Kind,
    label: str,
    figure: Callable[..., None],
) -> None:
    with hold(apart=True) as vault:
        key = vault.generate(kind, label)
        public = vault.public(key)
        vault.sign(key, b"x")
        children = Path(f"/proc/{vault.pid}/task/{vault.pid}/children")
        until("the process", children.read_text, 5)
        for pid in children.read_text().split():
            import os  # noqa: PLC0415
            import signal  # noqa: PLC0415

            os.kill(int(pid), signal.SIGKILL)
        figure("recovery_s", round(_through(token, vault, key), 2))
        check(kind, public, vault.sign(key, b"y"), b"y")
        vault.delete(key)


def _through(token: Environment, vault: object, key: object) -> float:
    """Sign until it works; a killed process leaves its objects in a TPM that nobody manages."""

    def sign() -> None:
        try:
            vault.sign(key, b"x", patience=100)  # type: ignore[attr-defined]
        except DeviceGone:
            token.clean()
            raise

    return first_good(sign, 100)
