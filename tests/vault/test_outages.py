"""Tokens that go away and come back, and errors of every sort. Over SoftHSM."""

import shutil
from pathlib import Path

import pytest

pkcs11 = pytest.importorskip("pkcs11")


from vault_backends.pkcs11 import module as module_file  # noqa: E402
from vault_backends.pkcs11 import token as token_file  # noqa: E402
from vault_backends.vault import (  # noqa: E402
    DeviceGone,
    Kind,
    Locked,
    NotFound,
    Refused,
    Unsupported,
)


def unplug(token) -> Path:
    away = token.folder / "away"
    shutil.move(token.files, away)
    return away


def plug(token, away: Path) -> None:
    shutil.move(away, token.folder / "tokens" / "back")


def test_unplugged_and_back(soft_token, vault, key) -> None:
    vault.sign(key, b"x")
    away = unplug(soft_token)
    for _ in range(3):
        with pytest.raises(DeviceGone) as caught:
            vault.sign(key, b"x")
        assert caught.value.retry
    assert not vault.state().present
    with pytest.raises(DeviceGone):
        vault.probe()
    with pytest.raises(DeviceGone):
        list(vault.keys())
    assert vault.logins == 1
    plug(soft_token, away)
    vault.sign(key, b"x")
    assert vault.logins == 2
    assert vault.state().present


def test_unplugged_is_not_an_empty_token(soft_token, vault, key) -> None:
    unplug(soft_token)
    with pytest.raises(DeviceGone):
        list(vault.keys())


def test_unplugged_is_not_a_missing_key(soft_token, vault, key) -> None:
    vault._found.clear()
    away = unplug(soft_token)
    with pytest.raises(DeviceGone):
        vault.public(key)
    plug(soft_token, away)
    vault.public(key)


def test_unplugged_is_not_a_free_label(soft_token, vault, key) -> None:
    unplug(soft_token)
    with pytest.raises(DeviceGone):
        vault.generate(Kind.ED25519, "identity")


def test_logged_out_is_not_an_empty_token(soft_token, vault, key) -> None:
    vault._found.clear()
    logout = vault.login.module.library.function(20, module_file.ctypes.c_ulong)
    assert logout(vault.login._session.handle) == 0
    assert vault.public(key)
    assert vault.logins == 2
    assert logout(vault.login._session.handle) == 0
    assert list(vault.keys()) == [key]


def test_key_deleted_behind_the_back(soft_token, vault, key) -> None:
    vault.sign(key, b"x")
    soft_token.tool("--delete-object", "--type", "privkey", "--label", "identity")
    with pytest.raises(DeviceGone):
        vault.sign(key, b"x")
    for _ in range(2):
        with pytest.raises(NotFound, match="identity"):
            vault.sign(key, b"x")
    assert vault.logins <= 4


@pytest.mark.parametrize(
    ("error", "ours", "dropped"),
    [
        (pkcs11.DeviceRemoved(), DeviceGone, True),
        (pkcs11.OperationActive(), DeviceGone, True),
        (pkcs11.SessionCount(), DeviceGone, True),
        (pkcs11.PKCS11Error("Unmapped error code 0x182"), DeviceGone, True),
        (pkcs11.PKCS11Error("Unmapped error code 0x68"), Refused, False),
        (pkcs11.FunctionRejected(), Refused, False),
        (pkcs11.DataLenRange(), Refused, False),
        (pkcs11.MechanismInvalid(), Unsupported, False),
        (pkcs11.PinLocked(), Locked, False),
    ],
)
def test_errors_of_the_device(vault, key, error, ours, dropped) -> None:
    class Failing:
        def sign(self, data, mechanism):
            raise error

    vault._found[key] = vault._found[key]._replace(private=Failing())
    with pytest.raises(ours, match=type(error).__name__):
        vault.sign(key, b"x")
    assert (vault.login._session is None) == dropped
    vault._found.pop(key, None)
    vault.sign(key, b"x")


def test_device_error_at_login_is_no_verdict(soft_token, opened, tmp_path, monkeypatch) -> None:
    vault = opened(soft_token.uri(), state_dir=tmp_path / "state")
    real = token_file.TokenLogin._find_token

    class Failing:
        def __init__(self, token) -> None:
            self.slot, self.flags = token.slot, token.flags

        def open(self, **kwargs):
            raise pkcs11.DeviceError()

    with monkeypatch.context() as patch:
        patch.setattr(token_file.TokenLogin, "_find_token", lambda self: Failing(real(self)))
        for _ in range(3):
            with pytest.raises(DeviceGone):
                list(vault.keys())
    assert list(vault.keys()) == []
