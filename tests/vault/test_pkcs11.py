"""What goes wrong with tokens, and what may not happen then. Over SoftHSM."""

import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pkcs11 = pytest.importorskip("pkcs11")

from pkcs11 import Attribute, KeyType, Mechanism  # noqa: E402

from vault_backends import open_vault  # noqa: E402
from vault_backends.pkcs11 import module as module_file  # noqa: E402
from vault_backends.pkcs11 import points, profiles  # noqa: E402
from vault_backends.pkcs11 import token as token_file  # noqa: E402
from vault_backends.pkcs11 import vault as vault_file  # noqa: E402
from vault_backends.vault import (  # noqa: E402
    Attests,
    DeviceGone,
    Exists,
    Key,
    Kind,
    Locked,
    Misconfigured,
    NotFound,
    Refused,
    Token,
    Unsupported,
    VaultError,
)

from .conftest import PIN  # noqa: E402


@pytest.fixture
def vault(soft_token, opened):
    return opened(soft_token.uri())


@pytest.fixture
def key(vault):
    return vault.generate(Kind.ED25519, "identity")


def unplug(token) -> Path:
    away = token.folder / "away"
    shutil.move(token.files, away)
    return away


def plug(token, away: Path) -> None:
    shutil.move(away, token.folder / "tokens" / "back")


# --- keys


def test_key_stays_inside(vault, key) -> None:
    for one in (key, vault.generate(Kind.P256, "p256")):
        said = vault.describe(one)
        expected = {
            "extractable": False,
            "sensitive": True,
            "always_sensitive": True,
            "never_extractable": True,
            "local": True,
            "private": True,
        }
        assert expected.items() <= said.items()
        assert (said["token"], said["profile"]) == ("edge", "softhsm")
        assert said["serial"]
        assert said["module"].startswith("/")
        private = vault._found[one].private
        with pytest.raises(pkcs11.AttributeSensitive):
            private[Attribute.VALUE]
        with pytest.raises(pkcs11.AttributeReadOnly):
            private[Attribute.EXTRACTABLE] = True


def test_powers(vault) -> None:
    assert isinstance(vault, Token)
    assert isinstance(vault, Attests)


def test_one_login(vault, key) -> None:
    for _ in range(5):
        vault.sign(key, b"x")
    vault.public(key)
    list(vault.keys())
    vault.state()
    vault.probe()
    with pytest.raises(NotFound):
        vault.public(Key(Kind.ED25519, "absent"))
    assert (vault.logins, vault.signs) == (1, 5)


def test_two_vaults_share_the_login(soft_token, vault, key, opened) -> None:
    other = opened(soft_token.uri())
    assert other.public(key) == vault.public(key)
    assert vault.logins + other.logins == 1
    other.close()  # and does not log the first one out
    vault.sign(key, b"x")
    assert vault.logins == 1


def test_two_tokens_of_one_module(soft_token, vault, key, opened) -> None:
    vault.close()
    soft_token.init("second")
    first, second = opened(soft_token.uri()), opened(soft_token.uri("token=second"))
    there = second.generate(Kind.ED25519, "identity")
    assert first.public(key) != second.public(there)
    first.reopen()  # ends the sessions of both
    assert second.sign(there, b"x")
    assert first.sign(key, b"x")
    assert list(first.keys()) == [key]


def test_generate_twice(vault, key) -> None:
    public = vault.public(key)
    for kind in Kind:
        with pytest.raises(Exists, match="identity"):
            vault.generate(kind, "identity")
    assert vault.public(key) == public


def test_id_is_taken(soft_token, opened, key) -> None:
    taken = points.key_id("identity", 20)
    uri = soft_token.uri("token=edge;id=" + "".join(f"%{byte:02x}" for byte in taken))
    with pytest.raises(Exists, match=taken.hex()):
        opened(uri).generate(Kind.P256, "other")


def test_object_and_id_in_the_uri(soft_token, vault, key, opened) -> None:
    named = opened(soft_token.uri("token=edge;object=second;id=%01%02;type=private"))
    assert list(named.keys()) == []
    with pytest.raises(NotFound):
        named.public(key)
    with pytest.raises(Misconfigured, match="object=second"):
        named.generate(Kind.P256, "third")
    made = named.generate(Kind.P256, "second")
    assert list(named.keys()) == [made]
    assert vault.describe(made)["id"] == "0102"


def test_keys_of_others_are_left_alone(vault, key) -> None:
    session = vault.login._session
    x25519 = bytes.fromhex("06032b656e")
    session.create_domain_parameters(
        KeyType.EC_EDWARDS, {Attribute.EC_PARAMS: x25519}, local=True
    ).generate_keypair(
        id=b"x", label="x", store=True, mechanism=Mechanism.EC_EDWARDS_KEY_PAIR_GEN, capabilities=0
    )
    session.generate_keypair(KeyType.RSA, 1024, id=b"r", label="rsa", store=True)
    session.create_domain_parameters(
        KeyType.EC, {Attribute.EC_PARAMS: bytes.fromhex("06052b81040022")}, local=True
    ).generate_keypair(id=b"3", label="p384", store=True, mechanism=Mechanism.EC_KEY_PAIR_GEN)
    assert list(vault.keys()) == [key]
    for label in ("x", "rsa", "p384"):
        for kind in Kind:
            with pytest.raises(NotFound):
                vault.sign(Key(kind, label), b"x")


def test_duplicates_are_listed(soft_token, vault, opened) -> None:
    for number in ("0a", "0b"):
        soft_token.tool(
            "--keypairgen", "--key-type", "EC:prime256v1", "--label", "k", "--id", number
        )
    vault.reopen()
    for act in (vault.public, vault.delete):
        with pytest.raises(Misconfigured, match=r"ids 0[ab], 0[ab]"):
            act(Key(Kind.P256, "k"))
    one = opened(soft_token.uri("token=edge;id=%0b"))
    one.sign(Key(Kind.P256, "k"), b"x")
    one.delete(Key(Kind.P256, "k"))
    assert vault.describe(Key(Kind.P256, "k"))["id"] == "0a"


def test_extractable_key_is_refused(vault, key) -> None:
    vault.login._session.create_domain_parameters(
        KeyType.EC, {Attribute.EC_PARAMS: profiles.P256_OID}, local=True
    ).generate_keypair(
        id=b"e",
        label="loose",
        store=True,
        mechanism=Mechanism.EC_KEY_PAIR_GEN,
        private_template={Attribute.EXTRACTABLE: True, Attribute.SENSITIVE: False},
    )
    with pytest.raises(Refused, match="can be read out"):
        vault.sign(Key(Kind.P256, "loose"), b"x")


def public_objects(vault):
    return list(vault.login._session.get_objects({Attribute.CLASS: pkcs11.ObjectClass.PUBLIC_KEY}))


def test_missing_public_object(vault, key) -> None:
    public = vault.public(key)
    for one in public_objects(vault):
        one.destroy()
    vault.reopen()
    assert vault.public(key) == public  # pinned by the first look
    vault.sign(key, b"x")
    vault._pinned.clear()
    vault._found.clear()
    with pytest.raises(Refused, match="no public keys"):
        vault.sign(key, b"x")
    vault.pin(key, public)
    vault.sign(key, b"x")


def test_half_a_pair_can_be_deleted(vault, key) -> None:
    vault._found[key].private.destroy()
    vault.reopen()
    with pytest.raises(Exists):
        vault.generate(Kind.ED25519, "identity")
    with pytest.raises(NotFound):
        vault.sign(key, b"x")
    vault.delete(key)
    vault.generate(Kind.ED25519, "identity")


def test_exchanged_key_is_noticed(soft_token, vault, key, opened) -> None:
    vault.sign(key, b"x")
    other = opened(soft_token.uri())
    other.delete(key)
    other.generate(Kind.ED25519, "identity")
    with pytest.raises(DeviceGone):
        vault.sign(key, b"x")
    with pytest.raises(Refused, match="another key"):
        vault.sign(key, b"x")
    pinned = opened(soft_token.uri())
    pinned.pin(key, b"\0" * 32)
    with pytest.raises(Refused, match="another key"):
        pinned.public(key)


def test_bad_signature_never_leaves(vault, key, monkeypatch) -> None:
    monkeypatch.setattr(
        points, "signature", lambda kind, value: value[:-1] + bytes([value[-1] ^ 1])
    )
    with pytest.raises(Refused, match="does not verify"):
        vault.sign(key, b"x")


# --- the PIN


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


def test_missing_module(tmp_path) -> None:
    for path, error, said in (
        ("/nowhere/x.so", NotFound, "/nowhere/x.so"),
        ("x.so", Misconfigured, "absolute"),
        ("/usr/lib", NotFound, "/usr/lib"),
    ):
        with pytest.raises(error, match=said):
            open_vault(f"pkcs11:token=edge?module-path={path}")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs files of root")
def test_what_is_no_module(tmp_path, opened) -> None:
    folder = tmp_path / "modules"
    folder.mkdir(mode=0o755)
    text = folder / "text.so"
    text.write_text("no library")
    with pytest.raises(Misconfigured, match="does not load"):
        list(opened(f"pkcs11:?module-path={text}").keys())
    libm = next(iter(Path("/usr/lib").glob("*/libm.so.6")))
    with pytest.raises(Misconfigured, match="does not load"):
        list(opened(f"pkcs11:?module-path={libm}").keys())


@pytest.mark.skipif(os.geteuid() != 0, reason="needs files of root")
@pytest.mark.parametrize("place", ["folder", "file", "above", "owner"])
def test_module_that_others_can_change(soft_token, tmp_path, place) -> None:
    folder = tmp_path / "above" / "modules"
    folder.mkdir(parents=True, mode=0o755)
    copy = folder / "m.so"
    shutil.copy(soft_token.module, copy)
    copy.chmod(0o644)
    uri = f"pkcs11:token=edge?module-path={copy}"
    module_file.check_path(str(copy))
    changed = {"folder": folder, "file": copy, "above": folder.parent, "owner": folder}[place]
    if place == "owner":
        os.chown(folder, 12345, -1)
    else:
        changed.chmod(0o777)
    with pytest.raises(Refused, match="12345" if place == "owner" else "0777") as caught:
        open_vault(uri)
    assert str(changed) in str(caught.value)
    link = tmp_path / "link.so"  # a link in a good folder leads to the same place
    link.symlink_to(copy)
    with pytest.raises(Refused, match=str(changed)):
        module_file.check_path(str(link))


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


# --- the device goes away


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


# --- rows


def test_rows() -> None:
    assert profiles.profile_for("SoftHSM").name == "softhsm"
    assert profiles.profile_for("tpm2-software.github.io").name == "tpm2-pkcs11"
    assert profiles.profile_for("Yubico (www.yubico.com)").id_length == 2
    assert profiles.profile_for("Mozilla Foundation").kinds == {Kind.P256}
    assert profiles.profile_for("Somebody") is profiles.GENERIC


def test_rows_name_real_attributes() -> None:
    for row in (*profiles.ROWS, profiles.GENERIC):
        for name in row.omit_public + row.omit_private:
            assert Attribute[name]


@pytest.mark.parametrize("row", [row.name for row in profiles.ROWS])
def test_ways_of_other_rows_work_here_too(soft_token, opened, monkeypatch, row) -> None:
    profile = next(one for one in profiles.ROWS if one.name == row)
    monkeypatch.setattr(token_file, "profile_for", lambda *said: profile)
    vault = opened(soft_token.uri())
    assert vault.kinds == profile.kinds
    for kind in vault.kinds:
        key = vault.generate(kind, f"key-{kind}")
        vault.sign(key, b"x")
        assert len(vault.describe(key)["id"]) == 2 * profile.id_length
    for kind in set(Kind) - vault.kinds:
        with pytest.raises(Unsupported):
            vault.generate(kind, "no")
    with pytest.raises(Misconfigured):
        vault.generate(Kind.P256, "x" * (profile.longest_label + 1))


def test_second_name_of_the_curve_is_tried(soft_token, opened, monkeypatch) -> None:
    profile = profiles.Profile(
        name="odd", makers=(), ed25519_curves=(b"\x13\x03odd", profiles.ED25519_OID)
    )
    monkeypatch.setattr(token_file, "profile_for", lambda *said: profile)
    monkeypatch.setattr(vault_file, "_is_about_curve", lambda error: True)
    vault = opened(soft_token.uri())
    vault.sign(vault.generate(Kind.ED25519, "a"), b"x")


def test_curve_errors() -> None:
    assert vault_file._is_about_curve(pkcs11.PKCS11Error("Unmapped error code 0x140"))
    assert vault_file._is_about_curve(pkcs11.DomainParamsInvalid())
    assert not vault_file._is_about_curve(pkcs11.GeneralError())


# --- threads and processes


def test_fifty_at_once_through_one_executor(vault, key) -> None:
    with ThreadPoolExecutor(1) as executor:
        signed = list(executor.map(lambda n: vault.sign(key, bytes([n])), range(50)))
    for n, one in enumerate(signed):
        assert points.verifies(key.kind, vault.public(key), bytes([n]), one)
    assert vault.logins == 1


def test_threads_do_no_harm(vault, key) -> None:
    failed: list[BaseException] = []

    def work(n: int) -> None:
        try:
            for turn in range(20):
                vault.sign(key, bytes([n, turn]))
                if turn % 10 == n:
                    vault.reopen()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_locking_inside_the_module(soft_token) -> None:
    """In a process of its own: without CKF_OS_LOCKING_OK it crashes within seconds."""
    code = """
import sys, threading
from vault_backends import open_vault
from vault_backends.vault import Kind
vault = open_vault(sys.argv[1])
key = vault.generate(Kind.ED25519, "t")
token = vault.login._session.token
def work():
    session = token.open()
    for _ in range(3):
        for found in list(session.get_objects()):
            if hasattr(found, "sign"):
                for n in range(300):
                    found.sign(b"x", mechanism=__import__("pkcs11").Mechanism.EDDSA)
threads = [threading.Thread(target=work) for _ in range(4)]
[t.start() for t in threads]; [t.join() for t in threads]
print("done")
"""
    ran = subprocess.run(
        [sys.executable, "-c", code, soft_token.uri()], capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stdout.strip()) == (0, "done"), ran.stderr


def test_fork_poisons_the_child(soft_token, vault, key) -> None:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            vault.sign(key, b"x")
        except VaultError as error:
            code = 0 if "fork" in str(error) else 2
        try:
            open_vault(soft_token.uri())
            code = 3
        except VaultError:
            pass
        vault.close()
        module_file.stop_all()
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    vault.sign(key, b"x")
    assert vault.logins == 1


def test_other_parameters_for_the_same_module(soft_token, vault) -> None:
    with pytest.raises(Misconfigured, match="x-parameters"):
        open_vault(soft_token.uri() + "&x-parameters=a")


# --- points


def test_points() -> None:
    raw32, raw65 = b"\1" * 32, b"\4" + b"\1" * 64
    assert points.point(Kind.ED25519, raw32) == raw32
    assert points.point(Kind.ED25519, b"\4\x20" + raw32) == raw32
    assert points.point(Kind.P256, raw65) == raw65
    assert points.point(Kind.P256, b"\4\x41" + raw65) == raw65
    for bad in (b"", raw32[:-1], b"\4\x21" + raw32, b"\2" + raw65[1:]):
        assert points.point(Kind.P256, bad) is None
    assert points.point(Kind.ED25519, raw65) is None


def test_signatures() -> None:
    der = bytes.fromhex("3006020101020102")
    assert points.signature(Kind.P256, der) == b"\0" * 31 + b"\1" + b"\0" * 31 + b"\2"
    for odd in (b"", b"x" * 63, bytes.fromhex("3008020101") + b"\x02\x03\0"):
        assert points.signature(Kind.P256, odd) == odd
    assert not points.verifies(Kind.P256, b"\4" + b"\0" * 64, b"x", b"\1" * 64)
    assert not points.verifies(Kind.ED25519, b"\0" * 32, b"x", b"\1" * 63)


def test_key_ids() -> None:
    assert points.key_id("identity", 2) == points.key_id("identity", 20)[:2]
    assert points.key_id("a", 20) != points.key_id("b", 20)
    assert points.key_id("a", 0) == b""
