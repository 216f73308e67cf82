"""The login to a token: its PIN, and what is missing. Over SoftHSM."""

import json
import re
import shutil
import traceback

import pytest

pkcs11 = pytest.importorskip("pkcs11")


from pkcs11 import TokenFlag  # noqa: E402

from vault_backends import open_vault  # noqa: E402
from vault_backends.pkcs11 import token as token_file  # noqa: E402
from vault_backends.pkcs11 import which  # noqa: E402
from vault_backends.vault import (  # noqa: E402
    DeviceGone,
    Key,
    Kind,
    Locked,
    Misconfigured,
    NotFound,
    Refused,
    VaultError,
)

from .conftest import PIN  # noqa: E402


def test_wrong_pin_is_tried_once(soft_token, opened, tmp_path) -> None:
    soft_token.pin_file.write_text("999999")
    vault = opened(soft_token.uri(), state_dir=tmp_path / "state")
    for _ in range(3):
        with pytest.raises(Locked) as caught:
            list(vault.keys())
        assert "999999" not in str(caught.value)
        assert not caught.value.retry
    assert vault.logins == 1
    assert vault.state().pin_tried
    again = opened(soft_token.uri(), state_dir=tmp_path / "state")  # as after a restart
    with pytest.raises(Locked, match="refused this PIN"):
        list(again.keys())
    assert again.logins == 0
    soft_token.pin_file.write_text("999999\n")  # touched, but the same PIN
    with pytest.raises(Locked, match="not tried again"):
        list(vault.keys())
    assert vault.logins == 1
    soft_token.pin_file.write_text(PIN)
    assert list(vault.keys()) == []
    assert list(again.keys()) == []
    assert not vault.state().pin_tried


def test_marker_holds_nothing_of_the_pin(soft_token, opened, tmp_path) -> None:
    list(opened(soft_token.uri(), state_dir=tmp_path / "state").keys())
    (marker,) = (tmp_path / "state").glob("*.json")
    assert marker.stat().st_mode & 0o777 == 0o600
    assert PIN not in marker.read_text()
    assert '"ok"' in marker.read_text()


def test_asked_pin(soft_token, opened) -> None:
    asked: list[str] = []
    answers = iter(["000000", "000000", None, PIN])

    def ask(prompt: str) -> str | None:
        asked.append(prompt)
        return next(answers)

    vault = opened(f"pkcs11:token=edge?module-path={soft_token.module}", ask)
    for said in ("refused the PIN", "not tried again", "is needed"):
        with pytest.raises(Locked, match=said):
            list(vault.keys())
    list(vault.keys())
    assert vault.logins == 2
    assert "edge" in asked[0]


def test_reopen_is_no_leave_to_try_again(soft_token, opened) -> None:
    soft_token.pin_file.write_text("999999")
    vault = opened(soft_token.uri())
    for _ in range(2):
        with pytest.raises(Locked):
            vault.reopen()
    assert vault.logins == 1


@pytest.mark.parametrize("kept", [True, False])
def test_a_person_may_vouch_for_the_pin(soft_token, opened, tmp_path, kept) -> None:
    soft_token.pin_file.write_text("999999")
    vault = opened(soft_token.uri(), state_dir=tmp_path / "state" if kept else None)
    for logins in (1, 2):
        with pytest.raises(Locked):
            list(vault.keys())
        assert vault.logins == logins
        vault.login.vouch_for_pin()
    soft_token.pin_file.write_text(PIN)
    assert list(vault.keys()) == []


def test_pin_of_impossible_length(soft_token, opened) -> None:
    soft_token.pin_file.write_text("1")
    vault = opened(soft_token.uri())
    with pytest.raises(Locked, match=r"PinLenRange|PinIncorrect"):
        list(vault.keys())


@pytest.mark.parametrize("flag", ["pin_locked", "pin_final_try"])
def test_last_try_is_not_ours(soft_token, opened, monkeypatch, flag) -> None:
    real = token_file.state_of
    monkeypatch.setattr(token_file, "state_of", lambda token: real(token)._replace(**{flag: True}))
    vault = opened(soft_token.uri())
    with pytest.raises(Locked, match=r"locked|one PIN try left"):
        list(vault.keys())
    assert vault.logins == 0
    assert getattr(vault.state(), flag)


def test_login_of_other_code_is_shared(soft_token, vault, key) -> None:
    vault.login.module.sessions.clear()  # as if someone else held it
    vault.login._session = None
    assert list(vault.keys()) == [key]


def test_missing_pin_file(soft_token, opened) -> None:
    soft_token.pin_file.unlink()
    with pytest.raises(Locked, match="No such file"):
        list(opened(soft_token.uri()).keys())
    soft_token.pin_file.write_text(PIN)
    soft_token.pin_file.chmod(0o644)
    with pytest.raises(Misconfigured, match="read by others"):
        list(opened(soft_token.uri()).keys())


# --- what is missing


def test_missing_token_lists_those_there(soft_token, opened) -> None:
    vault = opened(soft_token.uri("token=other;serial=77"))
    with pytest.raises(
        NotFound, match=r"'other', serial '77'.*'edge' \(serial [0-9a-f]+\)"
    ) as caught:
        list(vault.keys())
    assert not caught.value.retry
    assert vault.logins == 0
    assert not vault.state().present
    soft_token.tool("--list-objects")
    for text in ("manufacturer=x", "model=x", "slot-id=12345", "serial=0"):
        with pytest.raises(NotFound):
            opened(soft_token.uri(text)).probe()


def test_no_token_at_all(soft_token, opened) -> None:
    shutil.rmtree(soft_token.files)
    with pytest.raises(NotFound, match="Tokens there: none"):
        opened(soft_token.uri("", f"&pin-source=file:{soft_token.pin_file}")).probe()


def test_token_that_comes_later_is_found(soft_token, opened) -> None:
    vault = opened(soft_token.uri("token=late"))
    with pytest.raises(NotFound):
        list(vault.keys())
    soft_token.init("late")
    assert list(vault.keys()) == []


def test_two_tokens_match(soft_token, opened) -> None:
    soft_token.init("edge")
    vault = opened(soft_token.uri())
    with pytest.raises(Misconfigured, match=r"2 tokens match.*edge.*edge"):
        list(vault.keys())


def test_missing_key_says_where(vault, key) -> None:
    with pytest.raises(NotFound, match=r"'edge' \(serial [0-9a-f]+\) in /\S+ has no p256 key 'x'"):
        vault.sign(Key(Kind.P256, "x"), b"x")


def test_module_that_does_not_start(soft_token, monkeypatch, opened) -> None:
    monkeypatch.setenv("SOFTHSM2_CONF", "/nowhere/softhsm2.conf")
    vault = opened(soft_token.uri())
    with pytest.raises((DeviceGone, NotFound)):
        vault.probe()


def test_each_of_several_tokens_can_be_typed(soft_token, opened) -> None:
    soft_token.init("edge")
    with pytest.raises(Misconfigured) as caught:
        opened(soft_token.uri()).probe()
    uris = re.findall(r"\n  (pkcs11:\S+)", caught.value.hint)
    vaults = [opened(uri) for uri in uris]
    assert len({vault.state().serial for vault in vaults}) == 2
    assert [list(vault.keys()) for vault in vaults] == [[], []]


def test_tokens_with_one_serial_number_are_told_apart_by_slot(soft_token, opened, monkeypatch):
    soft_token.init("edge")
    real = which.state_of
    monkeypatch.setattr(which, "state_of", lambda token: real(token)._replace(serial="0000"))
    with pytest.raises(Misconfigured) as caught:
        opened(soft_token.uri()).probe()
    uris = re.findall(r"\n  (pkcs11:token=edge;serial=0000;slot-id=[0-9]+\S+)", caught.value.hint)
    assert len(set(uris)) == 2
    for uri in uris:
        opened(uri).probe()


def test_another_token_is_not_given_the_pin(soft_token, vault, key, opened) -> None:
    public, serial = vault.public(key), vault.state().serial
    pinned = opened(soft_token.uri())
    pinned.pin(key, public, serial)
    assert pinned.public(key) == public
    vault.close()
    pinned.close()
    exchanged = opened(soft_token.uri())
    exchanged.pin(key, public, "0123")
    with pytest.raises(Refused, match=f"{serial}.*another token than the one with serial 0123"):
        exchanged.public(key)
    assert exchanged.logins == 0


# --- the order of things at a login


class Told:
    """A token that says and does something else in places."""

    def __init__(self, token, flags=None, error=None) -> None:
        self._token, self._error = token, error
        self.flags = token.flags if flags is None else flags

    def __getattr__(self, name):
        return getattr(self._token, name)

    def open(self, **how):
        if "user_pin" in how and self._error is not None:
            how.clear()
            raise self._error()
        return self._token.open(**how)


@pytest.fixture
def told(monkeypatch):
    """Make tokens say and do something else, from now on or from the second look on."""
    real = token_file.TokenLogin._find_token

    def tell(*, later=False, flags=0, error=None):
        looks = []

        def find(login):
            looks.append(1)
            token = real(login)
            if later and len(looks) == 1:
                return token
            token = Told(token, token.flags | flags, error)
            login.state = which.state_of(token)
            return token

        monkeypatch.setattr(token_file.TokenLogin, "_find_token", find)

    return tell


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        (TokenFlag.USER_PIN_LOCKED, "is locked"),
        (TokenFlag.USER_PIN_FINAL_TRY, "one PIN try left"),
        (TokenFlag.USER_PIN_TO_BE_CHANGED, "must be changed"),
    ],
)
def test_flags_are_read_again_when_it_is_our_turn(vault, told, flag, said) -> None:
    """Another process may have used the last try but one while we waited."""
    told(later=True, flags=flag)
    with pytest.raises(Locked, match=said) as caught:
        list(vault.keys())
    assert caught.value.hint
    assert vault.logins == 0


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (pkcs11.PinExpired, "must be changed"),
        (pkcs11.PinLocked, "is locked"),
        (pkcs11.UserPinNotInitialized, "no user PIN was ever set"),
    ],
)
def test_answers_that_are_no_verdict(
    soft_token, opened, tmp_path, told, monkeypatch, error, said
) -> None:
    vault = opened(soft_token.uri(), state_dir=tmp_path / "state")
    with monkeypatch.context():
        told(error=error)
        for _ in range(3):
            with pytest.raises(Locked, match=said) as caught:
                list(vault.keys())
            assert caught.value.hint
    assert json.loads(vault.login.pin_marker.read_text())["state"] == "new"
    told()
    assert list(vault.keys()) == []


def test_a_wrong_pin_that_was_counted_is_one_whatever_the_answer(
    soft_token, opened, tmp_path, told, monkeypatch
) -> None:
    vault = opened(soft_token.uri(), state_dir=tmp_path / "state")
    told(error=pkcs11.FunctionFailed)
    real = which.state_of
    monkeypatch.setattr(
        token_file, "state_of", lambda token: real(token)._replace(pin_tried=vault.logins > 0)
    )
    for _ in range(2):
        with pytest.raises(Locked, match="refused"):
            list(vault.keys())
    assert vault.logins == 1


def test_nothing_logs_in_before_the_device_has_answered(vault, key, monkeypatch) -> None:
    def silent(token):
        raise pkcs11.DeviceError

    vault.login.drop()
    with monkeypatch.context() as patch:
        patch.setattr(token_file, "_probe", silent)
        for _ in range(3):
            with pytest.raises(DeviceGone):
                vault.sign(key, b"x")
        assert vault.logins == 1
    vault.sign(key, b"x")
    assert vault.logins == 2


# --- where a PIN may show


def test_pin_value(soft_token, opened) -> None:
    uri = soft_token.uri(query="&pin-value=999999")
    with pytest.raises(Misconfigured, match="pin-value is refused"):
        open_vault(uri)
    vault = opened(uri, allow_pin_value=True)
    with pytest.raises(Locked, match="from the vault URI") as caught:
        list(vault.keys())
    assert "999999" not in everything(caught.value)
    assert list(opened(uri.replace("999999", PIN), allow_pin_value=True).keys()) == []


@pytest.mark.parametrize("error", [None, pkcs11.DeviceError, pkcs11.PinExpired])
def test_pin_is_in_no_traceback(soft_token, opened, told, error) -> None:
    soft_token.pin_file.write_text("999999")
    vault = opened(soft_token.uri())
    told(error=error)
    with pytest.raises(VaultError) as caught:
        list(vault.keys())
    assert vault.logins == 1
    assert "999999" not in everything(caught.value)


def everything(error: BaseException | None) -> str:
    """All that a crash reporter could write down: messages, causes, and the locals of every frame
    but those of the test."""
    texts = []
    while error is not None:
        texts += [repr(error), str(error), getattr(error, "hint", "")]
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        texts += [repr(f.f_locals) for f in frames if f.f_code.co_filename != __file__]
        error = error.__cause__ or error.__context__
    assert "TokenLogin" in "".join(texts)
    return "".join(texts)
