"""What a power cut leaves, and what comes of it: the change of a PIN, the initialisation of a token,
a key pair of which one half is there. Over SoftHSM."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

pkcs11 = pytest.importorskip("pkcs11")

from pkcs11 import Attribute, ObjectClass  # noqa: E402

from vault_backends import open_vault  # noqa: E402
from vault_backends.pkcs11 import (  # noqa: E402
    admin,
    change,
    initialise,
    learn,
    module,
    pinfile,
    profiles,
    survey,
)
from vault_backends.pkcs11.change import NewPin, Outcome, change_pin  # noqa: E402
from vault_backends.pkcs11.objects import search  # noqa: E402
from vault_backends.pkcs11.token import TokenLogin  # noqa: E402
from vault_backends.pkcs11.vault import Pkcs11Vault  # noqa: E402
from vault_backends.uri import Pkcs11Uri, parse  # noqa: E402
from vault_backends.vault import (  # noqa: E402
    DeviceGone,
    Exists,
    Kind,
    Locked,
    Misconfigured,
    VaultError,
)

from .conftest import PIN, SoftToken, secret_file  # noqa: E402


class PowerCut(BaseException):
    """Nothing catches it."""


@pytest.fixture
def uri(soft_token: SoftToken) -> Pkcs11Uri:
    found = parse(soft_token.uri())
    assert isinstance(found, Pkcs11Uri)
    return found


def silent(prompt: str) -> str | None:
    raise AssertionError(f"nobody is to be asked: {prompt}")


GENERATED = NewPin(None, silent)


def opens(uri: Pkcs11Uri, state: Path) -> int:
    """Log in as a process that was started anew does; how many logins it took."""
    module.stop_all()
    login = TokenLogin(uri, None, state)
    try:
        with login.logged_in():
            return login.logins
    finally:
        login.close()


def cut(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, *, after: bool = False) -> None:
    """The power goes when `name` is called, or after it did its work."""
    real = getattr(owner, name)

    def cutting(*arguments: object, **named: object) -> None:
        if after:
            real(*arguments, **named)
        raise PowerCut

    monkeypatch.setattr(owner, name, cutting)


# --- the change of a PIN

CUTS = [
    ("prepare", False, "old"),
    ("prepare", True, "old"),
    ("_set", False, "old"),
    ("_set", True, "new"),
    ("succeed", False, "new"),
    ("succeed", True, "new"),
]


@pytest.mark.parametrize(("step", "after", "good"), CUTS)
@pytest.mark.parametrize("way_back", ["the command again", "a node's login"])
def test_a_power_cut_never_loses_the_pin(
    uri: Pkcs11Uri, soft_token: SoftToken, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    step: str, after: bool, good: str, way_back: str,
) -> None:  # fmt: skip
    with monkeypatch.context() as power:
        cut(power, change if step == "_set" else pinfile, step, after=after)
        with pytest.raises(PowerCut):
            change_pin(uri, GENERATED, None, tmp_path)
    module.stop_all()
    before = soft_token.pin_file.read_text().strip()
    if way_back == "the command again":
        outcome = change_pin(uri, GENERATED, None, tmp_path)
        broken = good == "new" and before == PIN
        assert outcome is (Outcome.FINISHED if broken else Outcome.CHANGED)
        assert not pinfile.successor(soft_token.pin_file).exists()
    elif good == "new" and before == PIN:  # the file was behind the token: it catches up by itself
        with pytest.raises(Locked, match="taken its place") as told:
            opens(uri, tmp_path)
        assert told.value.retry
    assert opens(uri, tmp_path) == 1
    assert (soft_token.pin_file.read_text().strip() == PIN) is (
        good == "old" and way_back != "the command again"
    )
    assert soft_token.pin_file.stat().st_mode & 0o777 == 0o600


def test_a_power_cut_between_the_refusal_and_the_new_file(
    uri: Pkcs11Uri, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for raising in (
        lambda: change_pin(uri, GENERATED, None, tmp_path),
        lambda: opens(uri, tmp_path),
    ):
        with monkeypatch.context() as power:
            cut(power, pinfile, "succeed")
            with pytest.raises(PowerCut):
                raising()
        module.stop_all()
    login = TokenLogin(uri, None, tmp_path)
    with pytest.raises(Locked, match="taken its place"), login.logged_in():
        pass
    assert login.logins == 0  # the refusal is remembered, and is enough
    login.close()
    assert opens(uri, tmp_path) == 1


def test_at_most_one_login_with_each_pin(
    uri: Pkcs11Uri, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logins: list[int] = []
    real = TokenLogin._try_pin

    def counted(self: TokenLogin, token: object) -> object:
        logins.append(1)
        return real(self, token)

    monkeypatch.setattr(TokenLogin, "_try_pin", counted)
    with monkeypatch.context() as power:
        cut(power, pinfile, "succeed")
        with pytest.raises(PowerCut):
            change_pin(uri, GENERATED, None, tmp_path)
    module.stop_all()
    logins.clear()
    assert change_pin(uri, GENERATED, None, tmp_path) is Outcome.FINISHED
    assert len(logins) == 2


def test_a_wrong_pin_without_a_change_gives_way_to_nothing(
    uri: Pkcs11Uri, soft_token: SoftToken, tmp_path: Path
) -> None:
    soft_token.pin_file.write_text("wrong\n")
    with pytest.raises(Locked, match="refused the PIN"):
        change_pin(uri, GENERATED, None, tmp_path)
    with pytest.raises(Locked, match="not tried again"):
        change_pin(uri, GENERATED, None, tmp_path)
    assert soft_token.pin_file.read_text() == "wrong\n"


def test_after_a_change_no_refusal_of_old_counts(
    uri: Pkcs11Uri, soft_token: SoftToken, tmp_path: Path
) -> None:
    """Refused PINs are known by a byte of their hash: the new PIN might look like one."""
    soft_token.pin_file.write_text("wrong\n")
    with pytest.raises(Locked):
        opens(uri, tmp_path)
    soft_token.pin_file.write_text(f"{PIN}\n")
    (marker,) = tmp_path.glob("pin-*.json")
    assert json.loads(marker.read_text())["refused"]
    assert change_pin(uri, GENERATED, None, tmp_path) is Outcome.CHANGED
    assert not json.loads(marker.read_text())["refused"]


def test_what_lies_beside_must_be_private(
    uri: Pkcs11Uri, soft_token: SoftToken, tmp_path: Path
) -> None:
    soft_token.pin_file.write_text("wrong\n")
    beside = secret_file(pinfile.successor(soft_token.pin_file), PIN)
    beside.chmod(0o644)
    with pytest.raises(Misconfigured, match="read by others"):
        opens(uri, tmp_path)
    assert soft_token.pin_file.read_text() == "wrong\n"


def test_a_token_that_refuses_the_new_pin_keeps_the_old(
    uri: Pkcs11Uri, soft_token: SoftToken, tmp_path: Path
) -> None:
    short = secret_file(tmp_path / "short", "1\n")
    with pytest.raises(Misconfigured, match="PINs of"):
        change_pin(uri, NewPin(f"file:{short}", silent), None, tmp_path)
    assert not pinfile.successor(soft_token.pin_file).exists()
    assert opens(uri, tmp_path) == 1


def test_a_token_that_goes_away_in_the_middle_leaves_both_pins(
    uri: Pkcs11Uri, soft_token: SoftToken, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Gone:
        def set_pin(self, old: str, new: str) -> None:
            raise pkcs11.DeviceRemoved

    @contextmanager
    def logged_in(self: TokenLogin, *, fresh: bool = False) -> Iterator[object]:
        with self.started():
            yield Gone()

    with monkeypatch.context() as broken:
        broken.setattr(TokenLogin, "logged_in", logged_in)
        with pytest.raises(DeviceGone, match="while its PIN was changed") as told:
            change_pin(uri, GENERATED, None, tmp_path)
    assert ".new" in told.value.hint
    assert soft_token.pin_file.read_text().strip() == PIN
    assert pinfile.successor(soft_token.pin_file).exists()
    assert opens(uri, tmp_path) == 1


def test_a_random_pin_needs_a_place(uri: Pkcs11Uri, tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="place to be kept"):
        change_pin(replace(uri, pin_source="ask"), GENERATED, None, tmp_path)


# --- initialisation


def sources(folder: Path) -> initialise.Sources:
    return initialise.Sources(f"file:{folder}/so", f"file:{folder}/pin", True, silent)


@pytest.mark.parametrize(
    ("step", "after"),
    [("init_token", False), ("init_token", True), ("_set_user_pin", True), ("_opens", True)],
)
def test_an_initialisation_goes_on_after_a_power_cut(
    uri: Pkcs11Uri, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, after: bool
) -> None:
    blank = Pkcs11Uri(uri.module_path)
    with monkeypatch.context() as power:
        cut(power, initialise, step, after=after)
        with pytest.raises(PowerCut):
            initialise.initialise(blank, "second", sources(tmp_path), None, tmp_path)
    module.stop_all()
    pins = [(tmp_path / name).read_text() for name in ("pin", "so")]
    made = initialise.initialise(blank, "second", sources(tmp_path), None, tmp_path)
    assert made.fresh is (step == "init_token")
    assert [(tmp_path / name).read_text() for name in ("pin", "so")] == pins
    again = initialise.initialise(blank, "second", sources(tmp_path), None, tmp_path)
    assert not again.fresh
    assert again.uri == made.uri
    assert opens(made.uri, tmp_path) == 1


def test_a_wrong_so_pin_is_tried_once(
    uri: Pkcs11Uri, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blank = Pkcs11Uri(uri.module_path)
    with monkeypatch.context() as power:
        cut(power, initialise, "init_token", after=True)
        with pytest.raises(PowerCut):
            initialise.initialise(blank, "second", sources(tmp_path), None, tmp_path)
    module.stop_all()
    (tmp_path / "so").write_text("another\n")
    for said in ("refused the PIN", "not tried again"):
        with pytest.raises(Locked, match=said):
            initialise.initialise(blank, "second", sources(tmp_path), None, tmp_path)


def test_a_pin_file_is_never_overwritten(tmp_path: Path) -> None:
    pinfile.make(tmp_path / "pin", "1234")
    with pytest.raises(Exists):
        pinfile.make(tmp_path / "pin", "5678")
    assert (tmp_path / "pin").read_text() == "1234\n"
    assert [one.name for one in tmp_path.iterdir()] == ["pin"]
    with pytest.raises(VaultError, match="folder"):
        pinfile.make(tmp_path / "no" / "pin", "1234")


def test_random_pins_are_as_long_as_the_token_takes() -> None:
    assert [len(pinfile.random_pin(4, longest)) for longest in (None, 255, 8)] == [24, 24, 8]
    assert pinfile.random_pin(4, None) != pinfile.random_pin(4, None)


# --- keys


def test_half_a_pair_is_deleted_too(uri: Pkcs11Uri, tmp_path: Path) -> None:
    vault = Pkcs11Vault(uri, None, tmp_path)
    vault.generate(Kind.P256, "k")
    with vault.login.logged_in() as session:
        search(session, ObjectClass.PRIVATE_KEY, label="k")[0].destroy()
    assert admin.delete_key(vault.login, "k") is None
    with vault.login.logged_in() as session:
        assert search(session, ObjectClass.PUBLIC_KEY, label="k") == []
    vault.close()


def test_another_key_of_the_same_id_stays(uri: Pkcs11Uri, tmp_path: Path) -> None:
    vault = Pkcs11Vault(uri, None, tmp_path)
    for label in ("k", "other"):
        vault.generate(Kind.P256, label)
    with vault.login.logged_in() as session:
        for what in (ObjectClass.PRIVATE_KEY, ObjectClass.PUBLIC_KEY):
            for one in search(session, what):
                one[Attribute.ID] = b"\7"
    assert admin.delete_key(vault.login, "k")
    with vault.login.logged_in() as session:
        for what in (ObjectClass.PRIVATE_KEY, ObjectClass.PUBLIC_KEY):
            assert [one[Attribute.LABEL] for one in search(session, what)] == ["other"]
    vault.close()


def test_two_keys_of_one_label_are_told_apart_by_id(uri: Pkcs11Uri, tmp_path: Path) -> None:
    for key_id in (b"\1", b"\2"):
        vault = Pkcs11Vault(replace(uri, id=key_id), None, tmp_path)
        vault.generate(Kind.ED25519, "a")
        vault.close()
        vault = Pkcs11Vault(uri, None, tmp_path)
        with vault.login.logged_in() as session:
            for one in search(session, ObjectClass.PRIVATE_KEY, label="a"):
                one[Attribute.LABEL] = "k"
            for one in search(session, ObjectClass.PUBLIC_KEY, label="a"):
                one[Attribute.LABEL] = "k"
        vault.close()
    login = TokenLogin(uri, None, tmp_path)
    uris = [one.uri for one in admin.keys(login)]
    with pytest.raises(Misconfigured) as told:
        admin.delete_key(login, "k")
    assert all(one in str(told.value) for one in uris)
    login.close()
    first = parse(uris[0])
    assert isinstance(first, Pkcs11Uri)
    login = TokenLogin(first, None, tmp_path)
    gone = admin.delete_key(login, "k")
    login.close()
    assert gone is not None
    login = TokenLogin(uri, None, tmp_path)
    assert [one.uri for one in admin.keys(login)] == [uris[1]]
    login.close()


def test_a_key_that_can_be_read_out_is_not_taken(
    uri: Pkcs11Uri, soft_token: SoftToken, tmp_path: Path
) -> None:
    soft_token.tool(
        "--keypairgen", "--key-type", "EC:prime256v1", "--label", "weak", "--extractable", "--id", "07"
    )  # fmt: skip
    vault = Pkcs11Vault(uri, None, tmp_path)
    with pytest.raises(VaultError, match="can be read out"):
        admin.create_key(vault, "weak", None)
    vault.close()


def test_a_survey_says_what_a_vault_finds(
    uri: Pkcs11Uri, soft_token: SoftToken, tmp_path: Path
) -> None:
    (found,) = survey.survey([(soft_token.module, None)])
    ((_, slot),) = survey.candidates([found])
    assert found.uri(slot) == Pkcs11Uri(soft_token.module, token="edge")
    vault = open_vault(f"pkcs11:?module-path={soft_token.module}", state_dir=tmp_path)
    assert json.loads(json.dumps(vault.login.ask_state()._asdict()))["serial"] == slot.serial  # type: ignore[attr-defined]
    vault.close()
    assert os.path.exists(found.path)


# --- what a token is like


def test_a_probe_tells_where_the_row_is_wrong(
    uri: Pkcs11Uri, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = replace(
        profiles.ROWS[0], ed25519_curves=(profiles.ED25519_NAME,), id_length=2, stale_view=True
    )
    monkeypatch.setattr("vault_backends.pkcs11.token.profile_for", lambda *_: wrong)
    found = learn.learn(uri, None, tmp_path, lambda _: None)
    assert set(found.differences()) == {"ed25519_curves", "id_length", "stale_view"}
    assert "stale_view" not in learn.row_text(found.found)


def test_a_probe_with_a_wrong_pin_is_one_login(
    uri: Pkcs11Uri, soft_token: SoftToken, tmp_path: Path
) -> None:
    soft_token.pin_file.write_text("wrong\n")
    with pytest.raises(Locked, match="refused the PIN"):
        learn.learn(uri, None, tmp_path, lambda _: None)
    with pytest.raises(Locked, match="not tried again"):
        learn.learn(uri, None, tmp_path, lambda _: None)
