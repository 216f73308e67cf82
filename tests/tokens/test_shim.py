"""The shim itself: forwards, counts, fails as it is told, and writes no argument down."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.tokens.environments import Environment, SoftHsm
from tests.tokens.holder import Crashed, Holder
from tests.tokens.processes import until
from tests.tokens.shim import Shim, functions
from vault_backends.vault import Key, Kind, Locked, Refused, VaultError

KEY = Key(Kind.ED25519, "shimmed")


@pytest.fixture
def soft(environments: Callable[..., Environment]) -> Environment:
    return environments(SoftHsm)


@pytest.fixture
def shim(soft: Environment, make_shim: Callable[[Path], Shim]) -> Shim:
    return make_shim(soft.module)


@pytest.fixture
def vault(soft: Environment, shim: Shim) -> Iterator[Holder]:
    with Holder(soft.uri(module=shim.path), soft.variables) as made:
        if KEY not in made.keys():  # noqa: SIM118 - not a map
            made.generate(*KEY)
        made.sign(KEY, b"warm")
        yield made


def test_all_functions_of_2_40() -> None:
    names = functions()
    assert len(names) == len(set(names)) == 68
    assert (names[0], names[18], names[43], names[-1]) == (
        "C_Initialize", "C_Login", "C_Sign", "C_WaitForSlotEvent",
    )  # fmt: skip


def test_forwards_and_counts(vault: Holder, shim: Shim) -> None:
    before = shim.count("C_SignInit")
    assert len(vault.sign(KEY, b"x")) == 64
    assert shim.count("C_SignInit") == before + 1
    assert (shim.count("C_Login"), shim.count("C_Initialize")) == (1, 1)
    (call,) = shim.calls("C_Login")
    assert (call.result, call.pid) == ("0x0", vault.pid)
    assert call.session > 0


def test_writes_no_pin(soft: Environment, vault: Holder, shim: Shim) -> None:
    for file in shim.folder.iterdir():
        assert soft.pin.encode() not in file.read_bytes(), file
    line = re.compile(r"\d+ \d+ C_\w+ \d+ (0x[0-9a-f]+|crash|crash-after|hang|exit) \d+")
    for written in (shim.folder / "calls").read_text().splitlines():
        assert line.fullmatch(written), written


def test_return_code_once(vault: Holder, shim: Shim) -> None:
    shim.on("C_SignInit", "rv", 0x68)  # KEY_FUNCTION_NOT_PERMITTED: final, and the session is fine
    with pytest.raises(Refused):
        vault.sign(KEY, b"x")
    assert len(vault.sign(KEY, b"x")) == 64


def test_always_until_calm(vault: Holder, shim: Shim) -> None:
    shim.on("C_SignInit", "rv", 0x68, always=True)
    for _ in range(2):
        with pytest.raises(Refused):
            vault.sign(KEY, b"x")
    shim.calm()
    assert len(vault.sign(KEY, b"x")) == 64


def test_delay(vault: Holder, shim: Shim) -> None:
    shim.on("C_SignInit", "delay", 300)
    vault.sign(KEY, b"x")
    assert shim.calls("C_SignInit")[-1].seconds >= 0.3


@pytest.mark.parametrize(("action", "status"), [("crash", -11), ("crash-after", -11), ("exit", 7)])
def test_ends_the_process(vault: Holder, shim: Shim, action: str, status: int) -> None:
    shim.on("C_SignInit", action, 7)
    with pytest.raises(Crashed) as caught:
        vault.sign(KEY, b"x")
    assert caught.value.status == status
    assert shim.inside("C_SignInit") == 1


def test_hang(vault: Holder, shim: Shim) -> None:
    shim.on("C_SignInit", "hang")
    with pytest.raises(TimeoutError):
        vault.sign(KEY, b"x", patience=0.5)
    until("the call", lambda: shim.inside("C_SignInit"), 5)
    vault.kill()


def test_faulty_signature(vault: Holder, shim: Shim) -> None:
    shim.on("C_Sign", "flip", always=True)
    with pytest.raises(Refused, match="verify"):
        vault.sign(KEY, b"x")


def test_flags(soft: Environment, shim: Shim) -> None:
    shim.on("C_GetTokenInfo", "flags", 0x40000, always=True)
    with Holder(soft.uri(module=shim.path), soft.variables) as vault, pytest.raises(Locked):
        vault.sign(KEY, b"x")
    assert shim.count("C_Login") == 0


def test_stuck_until_started_anew(vault: Holder, shim: Shim) -> None:
    shim.on("C_SignInit", "stuck", 5)
    before = shim.count("C_Initialize")
    for _ in range(3):
        try:
            vault.sign(KEY, b"x")
        except VaultError:
            continue
        break
    assert shim.count("C_Initialize") == before + 1
    assert len(vault.sign(KEY, b"x")) == 64


def test_log_is_bounded(shim: Shim, vault: Holder) -> None:
    with (shim.folder / "calls").open("ab") as file:
        file.truncate(5 << 20)
    before = shim.count("C_SignInit")
    vault.sign(KEY, b"x")
    assert (shim.folder / "calls").stat().st_size == 5 << 20
    assert shim.count("C_SignInit") == before + 1


def test_unknown_action_is_an_error(vault: Holder, shim: Shim) -> None:
    shim.on("C_SignInit", "explode")
    with pytest.raises(Crashed):
        vault.sign(KEY, b"x")


def test_exports_nothing_else(shim: Shim) -> None:
    listed = subprocess.run(
        ["nm", "-D", "--defined-only", shim.path], capture_output=True, text=True, check=True
    ).stdout
    assert [line.split()[-1] for line in listed.splitlines()] == ["C_GetFunctionList"]
