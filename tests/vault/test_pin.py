"""The memory of a refused PIN: across restarts, power cuts and changes of the PIN's file."""

import json
from pathlib import Path

import pytest

from vault_backends.pkcs11.pin import Pin, WrongPin
from vault_backends.vault import Locked, VaultError

from .conftest import secret_file


class Killed(BaseException):
    """Stands for the process ending inside the login."""


@pytest.fixture
def pin_file(tmp_path: Path) -> Path:
    return secret_file(tmp_path / "pin", "98765\n")


@pytest.fixture
def restarted(tmp_path: Path, pin_file: Path):
    """Makes the Pin of a new process."""
    return lambda: Pin(f"file:{pin_file}", None, tmp_path / "state")


def login(pin: Pin, outcome: BaseException | None = None) -> str:
    with pin.attempt("/m.so", "edge") as text:
        if outcome is not None:
            raise outcome
    return text


def marker(tmp_path: Path) -> Path:
    (found,) = (tmp_path / "state").iterdir()
    return found


def test_good_pin(restarted) -> None:
    for _ in range(5):
        assert login(restarted()) == "98765"


def test_refused_across_restarts_until_the_file_changes(restarted, pin_file, tmp_path) -> None:
    with pytest.raises(Locked, match="refused"):
        login(restarted(), WrongPin("PinIncorrect"))
    for _ in range(2):
        with pytest.raises(Locked, match="before a restart") as caught:
            login(restarted())
        assert str(marker(tmp_path)) in caught.value.hint
    assert "98765" not in marker(tmp_path).read_text()
    pin_file.write_text("55555")
    assert login(restarted()) == "55555"


def test_refused_until_the_marker_is_removed(restarted, tmp_path) -> None:
    with pytest.raises(Locked):
        login(restarted(), WrongPin("PinIncorrect"))
    marker(tmp_path).unlink()
    assert login(restarted()) == "98765"


def test_broken_off_login_may_be_tried_once_more(restarted) -> None:
    for _ in range(2):
        with pytest.raises(Killed):
            login(restarted(), Killed())
    with pytest.raises(Locked, match="broke off"):
        login(restarted())


def test_broken_off_then_good(restarted) -> None:
    with pytest.raises(Killed):
        login(restarted(), Killed())
    login(restarted())
    for _ in range(5):  # a PIN that was right is not suspected
        with pytest.raises(Killed):
            login(restarted(), Killed())
    login(restarted())


def test_half_a_marker_counts_as_broken_off(restarted, tmp_path) -> None:
    login(restarted())
    marker(tmp_path).write_text('{"sta')
    with pytest.raises(Killed):
        login(restarted(), Killed())
    with pytest.raises(Locked, match="broke off"):
        login(restarted())


def test_other_error_is_no_verdict(restarted, tmp_path) -> None:
    for _ in range(5):
        with pytest.raises(RuntimeError):
            login(restarted(), RuntimeError("device gone"))
    login(restarted())
    assert json.loads(marker(tmp_path).read_text())["state"] == "ok"


def test_tokens_are_apart(restarted) -> None:
    with pytest.raises(Locked):
        login(restarted(), WrongPin("PinIncorrect"))
    with restarted().attempt("/m.so", "other") as text:
        assert text == "98765"


def test_credential_is_not_new_after_each_start(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    file = secret_file(tmp_path / "edge-pin", "98765")
    state = tmp_path / "state"
    with pytest.raises(Locked):
        login(Pin("credential:edge-pin", None, state), WrongPin("PinIncorrect"))
    file.unlink()
    secret_file(file, "98765")  # as systemd does
    with pytest.raises(Locked, match="before a restart"):
        login(Pin("credential:edge-pin", None, state))


def test_answers_leave_no_marker(tmp_path) -> None:
    pin = Pin("ask", lambda prompt: "98765", tmp_path / "state")
    login(pin)
    assert not (tmp_path / "state").exists()


def test_state_that_cannot_be_written(tmp_path, pin_file) -> None:
    (tmp_path / "state").write_text("a file")
    with pytest.raises(VaultError, match="cannot keep"):
        login(Pin(f"file:{pin_file}", None, tmp_path / "state"))
