"""The file: what is on disk, who may read it, and what power cuts and other processes cannot do to
it."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import quote

import pytest

from vault_backends import open_vault, software
from vault_backends.pkcs11 import module
from vault_backends.vault import (
    DeviceGone,
    Exists,
    Key,
    Kind,
    Locked,
    Misconfigured,
    NoSealKey,
    NotFound,
    Provisions,
    Refused,
    Seals,
    VaultError,
)

from .conftest import SoftToken, secret_file


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def uri(path: Path, query: str = "") -> str:
    return f"software:{path}{query}"


def test_modes_and_no_plain_secrets(path: Path) -> None:
    vault = open_vault(uri(path))
    key = vault.generate(Kind.ED25519, "identity")
    for one in (path, Path(f"{path}.key")):
        assert one.stat().st_mode & 0o777 == 0o600
    secret = vault._secret(key)
    assert secret.hex() not in path.read_text()
    assert "identity" not in path.read_text()
    assert sorted(os.listdir(path.parent)) == ["keys", "keys.key", "keys.lock"]


def test_opening_and_looking_create_nothing(path: Path) -> None:
    vault = open_vault(uri(path))
    assert list(vault.keys()) == []
    assert os.listdir(path.parent) == []


def test_key_file_that_exists_is_used(path: Path) -> None:
    source = secret_file(path.parent / "my.key", "11" * 32 + "\n")
    vault = open_vault(uri(path, f"?key-source=file:{source}"))
    vault.generate(Kind.P256, "a")
    assert source.read_text() == "11" * 32 + "\n"


def test_key_as_credential(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(path.parent))
    vault = open_vault(uri(path, "?key-source=credential:seal"))
    with pytest.raises(Locked, match="credential:seal"):  # not ours to create
        vault.generate(Kind.P256, "a")
    secret_file(path.parent / "seal", "22" * 32)
    vault.generate(Kind.P256, "a")


@pytest.mark.parametrize("text", ["11" * 31, "xx" * 32, "\n"])
def test_key_file_that_is_none(path: Path, text: str) -> None:
    secret_file(Path(f"{path}.key"), text)
    with pytest.raises(Locked, match=r"keys\.key"):
        open_vault(uri(path)).generate(Kind.P256, "a")
    assert not path.exists()


def test_missing_key_file_is_not_made_anew(path: Path) -> None:
    open_vault(uri(path)).generate(Kind.P256, "a")
    Path(f"{path}.key").unlink()
    for act in (lambda v: list(v.keys()), lambda v: v.generate(Kind.P256, "b")):
        with pytest.raises(Locked, match=r"keys\.key"):
            act(open_vault(uri(path)))
    assert not Path(f"{path}.key").exists()


def test_wrong_key_and_wrong_passphrase(path: Path) -> None:
    open_vault(uri(path)).generate(Kind.P256, "a")
    secret_file(Path(f"{path}.key"), "33" * 32)
    with pytest.raises(Locked, match="does not open"):
        list(open_vault(uri(path)).keys())
    path.unlink()
    ask = uri(path, "?passphrase-source=ask")
    open_vault(ask, lambda prompt: "right").generate(Kind.P256, "a")
    with pytest.raises(Locked, match="does not open") as caught:
        list(open_vault(ask, lambda prompt: "wrong-one").keys())
    assert "wrong-one" not in str(caught.value)
    assert list(open_vault(ask, lambda prompt: "right").keys()) == [Key(Kind.P256, "a")]
    with pytest.raises(Locked, match="passphrase"):
        list(open_vault(ask).keys())


def test_passphrase_is_asked_once(path: Path) -> None:
    asked: list[str] = []

    def ask(prompt: str) -> str:
        asked.append(prompt)
        return "right"

    vault = open_vault(uri(path, "?passphrase-source=ask"), ask)
    for label in "abc":
        vault.sign(vault.generate(Kind.ED25519, label), b"x")
    assert asked == [f"the passphrase of {path}"]


def test_other_kind_of_sealing(path: Path) -> None:
    with_passphrase = uri(path, "?passphrase-source=ask")
    open_vault(uri(path)).generate(Kind.P256, "a")
    with pytest.raises(Misconfigured, match="key file"):
        list(open_vault(with_passphrase, lambda prompt: "x").keys())
    path.unlink()
    open_vault(with_passphrase, lambda prompt: "x").generate(Kind.P256, "a")
    with pytest.raises(Misconfigured, match="passphrase"):
        list(open_vault(uri(path)).keys())


def test_every_changed_byte_is_noticed(path: Path) -> None:
    vault = open_vault(uri(path))
    vault.generate(Kind.ED25519, "a")
    whole = path.read_bytes().rstrip()
    for at in range(len(whole)):
        changed = bytearray(whole)
        changed[at] ^= 1
        path.write_bytes(changed)
        with pytest.raises(VaultError):
            list(open_vault(uri(path)).keys())


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b"null", b"\xff\xfe", b'{"box": 1}'])
def test_file_that_is_no_vault(path: Path, text: bytes) -> None:
    path.write_bytes(text)
    path.chmod(0o600)
    with pytest.raises(VaultError, match="not a vault file"):
        open_vault(uri(path)).generate(Kind.P256, "a")
    assert path.read_bytes() == text  # never over what might be repaired


def test_truncated_file(path: Path) -> None:
    open_vault(uri(path)).generate(Kind.P256, "a")
    whole = path.read_bytes()
    for length in range(0, len(whole) - 1, 7):
        path.write_bytes(whole[:length])
        with pytest.raises(VaultError):
            list(open_vault(uri(path)).keys())


@pytest.mark.parametrize(
    "change", [{"ops": 1000}, {"memory": 1 << 40}, {"salt": "00"}, {"ops": None}, {"salt": "xy"}]
)
def test_file_cannot_ask_for_too_much(path: Path, change: dict[str, object]) -> None:
    ask = uri(path, "?passphrase-source=ask")
    open_vault(ask, lambda prompt: "x").generate(Kind.P256, "a")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(VaultError, match="not a vault file"):
        list(open_vault(ask, lambda prompt: "x").keys())


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602])
def test_file_that_others_reach(path: Path, mode: int) -> None:
    open_vault(uri(path)).generate(Kind.P256, "a")
    path.chmod(mode)
    with pytest.raises(Misconfigured, match=f"{mode:04o}"):
        list(open_vault(uri(path)).keys())
    path.chmod(0o600)
    Path(f"{path}.key").chmod(mode)
    with pytest.raises(Misconfigured, match=f"{mode:04o}"):
        list(open_vault(uri(path)).keys())


def test_folders_that_are_missing(path: Path) -> None:
    with pytest.raises(Misconfigured, match="folder"):
        open_vault(uri(path / "below"))
    vault = open_vault(uri(path, f"?key-source=file:{path}-nowhere/key"))
    with pytest.raises(Misconfigured, match="folder of the key file"):
        vault.generate(Kind.P256, "a")
    path.mkdir()
    with pytest.raises(VaultError):
        list(open_vault(uri(path)).keys())


def test_path_below_a_file(path: Path) -> None:
    path.mkdir()
    vault = open_vault(uri(path / "keys"))
    path.rmdir()
    path.write_text("a file now")
    with pytest.raises(VaultError, match="cannot read"):
        list(vault.keys())


def test_full_disk_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vault = open_vault(uri(path))
    key = vault.generate(Kind.ED25519, "a")
    before = path.read_bytes()

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(software.os, "fsync", full)
    with pytest.raises(VaultError, match="No space left"):
        vault.generate(Kind.ED25519, "b")
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert list(vault.keys()) == [key]
    vault.generate(Kind.ED25519, "b")  # what the failure left behind is no obstacle


def test_key_file_of_another_is_not_overwritten(path: Path) -> None:
    software._create(path, b"one")
    with pytest.raises(FileExistsError):
        software._create(path, b"two")
    assert path.read_bytes() == b"one"


def test_changes_of_others_show_while_open(path: Path) -> None:
    one, two = open_vault(uri(path)), open_vault(uri(path))
    key = one.generate(Kind.P256, "a")
    assert two.public(key) == one.public(key)
    two.delete(key)
    two.generate(Kind.P256, "a")
    assert two.public(key) == one.public(key)  # the new one, not the one held in memory
    with pytest.raises(Exists):
        one.generate(Kind.ED25519, "a")


# --- other secrets


@pytest.fixture(params=["key file", "credential", "passphrase"])
def sealing_uri(request, path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "credential":
        (path.parent / "credentials").mkdir()
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(path.parent / "credentials"))
        secret_file(path.parent / "credentials" / "seal", "22" * 32)
        return uri(path, "?key-source=credential:seal")
    if request.param == "passphrase":
        secret = secret_file(path.parent / "pass", "correct horse")
        return uri(path, f"?passphrase-source=file:{secret}")
    return uri(path)


def test_seals_other_secrets(sealing_uri: str) -> None:
    vault = open_vault(sealing_uri)
    assert isinstance(vault, Seals)
    assert isinstance(vault, Provisions)
    assert vault.provision() == "xchacha20-poly1305"
    blob = vault.seal(b"secret", b"what for")
    assert b"secret" not in blob
    key = vault.generate(Kind.P256, "a")  # the file changes
    again = open_vault(sealing_uri)
    assert isinstance(again, Seals)
    assert again.unseal(blob, b"what for") == b"secret"
    assert list(again.keys()) == [key]
    with pytest.raises(Refused, match="does not open"):
        again.unseal(blob, b"other")
    for at in range(len(blob)):
        changed = bytearray(blob)
        changed[at] ^= 1
        with pytest.raises(Refused):
            again.unseal(bytes(changed), b"what for")
    for length in range(len(blob)):
        with pytest.raises(Refused):
            again.unseal(blob[:length], b"what for")


def test_sealing_leaves_the_keys(path: Path) -> None:
    vault = open_vault(uri(path))
    key = vault.generate(Kind.ED25519, "a")
    public = vault.public(key)
    assert isinstance(vault, Seals)
    vault.seal(b"x", b"")
    assert open_vault(uri(path)).public(key) == public


def test_unsealing_without_the_file_makes_none(path: Path) -> None:
    vault = open_vault(uri(path))
    assert isinstance(vault, Seals)
    with pytest.raises(NotFound, match="no vault file"):
        vault.unseal(b"\1" + bytes(60), b"")
    assert os.listdir(path.parent) == []


def test_passphrase_by_credential(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = uri(path, "?passphrase-source=credential:words")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(path.parent))
    secret_file(path.parent / "words", "correct horse\n")
    key = open_vault(source).generate(Kind.ED25519, "a")
    assert list(open_vault(source).keys()) == [key]
    assert json.loads(path.read_text())["kdf"] == "argon2id"
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    with pytest.raises(Locked, match="CREDENTIALS_DIRECTORY"):
        list(open_vault(source).keys())


# --- sealed by a token


def sealed_uri(path: Path, token: str) -> str:
    return uri(path, "?sealed-by=" + quote(token, safe="/"))


@pytest.fixture
def sealed(path: Path, soft_token: SoftToken) -> str:
    """The URI of a vault whose token has a seal key."""
    whole = sealed_uri(path, soft_token.uri())
    vault = open_vault(whole)
    assert isinstance(vault, Provisions)
    assert vault.provision() == "ecdh-p256"
    return whole


def test_token_opens_the_file(path: Path, sealed: str) -> None:
    vault = open_vault(sealed)
    key = vault.generate(Kind.ED25519, "a")
    assert isinstance(vault, Seals)
    blob = vault.seal(b"secret", b"")
    again = open_vault(sealed)
    assert again.public(key) == vault.public(key)
    assert isinstance(again, Seals)
    assert again.unseal(blob, b"") == b"secret"
    assert sorted(os.listdir(path.parent)) == ["keys", "keys.lock", "token"]
    assert json.loads(path.read_text()).keys() == {"version", "kdf", "sealed", "box"}


def test_token_without_a_seal_key(path: Path, soft_token: SoftToken) -> None:
    vault = open_vault(sealed_uri(path, soft_token.uri()))
    with pytest.raises(NoSealKey, match="no seal key") as caught:
        vault.generate(Kind.ED25519, "a")
    assert str(path) in str(caught.value)
    assert "vault seal" in caught.value.hint
    assert not path.exists()


def test_token_is_needed_once_per_process(path: Path, sealed: str, soft_token: SoftToken) -> None:
    key = open_vault(sealed).generate(Kind.ED25519, "a")
    vault = open_vault(sealed)
    vault.sign(key, b"x")
    away = soft_token.files.rename(soft_token.folder / "away")
    other = vault.generate(Kind.P256, "b")
    assert set(vault.keys()) == {key, other}
    with pytest.raises((DeviceGone, NotFound)):
        list(open_vault(sealed).keys())
    away.rename(soft_token.folder / "tokens" / "back")
    assert set(open_vault(sealed).keys()) == {key, other}


def test_copied_disk(path: Path, sealed: str, soft_token: SoftToken, tmp_path: Path) -> None:
    """Everything but the token, in another place: with no token, and with another one that has the
    same label, PIN and kind of seal key."""
    open_vault(sealed).generate(Kind.ED25519, "a")
    copy = tmp_path / "elsewhere"
    copy.mkdir()
    shutil.copy(path, copy / "keys")
    shutil.copy(soft_token.pin_file, copy / "pin")
    here = sealed_uri(copy / "keys", soft_token.uri().replace(str(soft_token.folder), str(copy)))
    assert list(open_vault(here).keys())  # the copy is good, as long as the token is there

    shutil.move(soft_token.files, soft_token.folder / "stays behind")
    module.stop_all()
    with pytest.raises(NotFound, match="there is no token"):
        list(open_vault(here).keys())

    soft_token.init("edge")
    with pytest.raises(NoSealKey, match="no seal key"):
        list(open_vault(here).keys())
    vault = open_vault(here)
    assert isinstance(vault, Provisions)
    vault.provision()
    with pytest.raises(Locked, match="was sealed with the key"):
        list(open_vault(here).keys())
    with pytest.raises(Locked, match="was sealed with the key"):
        open_vault(here).generate(Kind.ED25519, "b")
    with pytest.raises(Misconfigured, match="sealed with a token"):
        list(open_vault(uri(copy / "keys")).keys())


@pytest.mark.parametrize("change", [{"sealed": "!"}, {"sealed": None}, {"sealed": "AQ=="}, {}])
def test_damaged_sealed_key(path: Path, sealed: str, change: dict[str, object]) -> None:
    open_vault(sealed).generate(Kind.P256, "a")
    whole = json.loads(path.read_text())
    if not change:
        del whole["sealed"]
    path.write_text(json.dumps(whole | change))
    with pytest.raises(VaultError):
        list(open_vault(sealed).keys())


def test_file_of_another_sealing(path: Path, sealed: str) -> None:
    open_vault(uri(path)).generate(Kind.P256, "a")
    with pytest.raises(Misconfigured, match="sealed with a key file"):
        list(open_vault(sealed).keys())


# --- processes

WRITER = """
import sys
from vault_backends import open_vault
from vault_backends.vault import Kind
vault = open_vault(sys.argv[1])
for n in range(int(sys.argv[3])):
    key = vault.generate(Kind.ED25519, f"{sys.argv[2]}-{n}")
    print(key.label, vault.public(key).hex(), flush=True)
"""


def writer(path: Path, name: str, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, uri(path), name, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_processes_lose_nothing_of_each_other(path: Path) -> None:
    running = [writer(path, name, 15) for name in "abcd"]
    said = [line.split() for one in running for line in one.communicate(timeout=50)[0].splitlines()]
    assert [one.returncode for one in running] == [0] * 4
    assert len(said) == 60
    vault = open_vault(uri(path))
    assert {key.label: vault.public(key).hex() for key in list(vault.keys())} == dict(said)


def test_kill_loses_nothing_confirmed(path: Path) -> None:
    confirmed: dict[str, str] = {}
    seed = random.Random(1)
    for turn in range(12):
        process = writer(path, f"t{turn}", 1000)
        assert process.stdout is not None
        # From the first key on, so that the kill falls into the writing and not into the imports.
        confirmed.update([process.stdout.readline().split()])
        time.sleep(seed.random() / 50)
        process.send_signal(signal.SIGKILL)
        rest = process.communicate()[0]
        confirmed.update(line.split() for line in rest.splitlines() if len(line.split()) == 2)
        vault = open_vault(uri(path))
        found = {key.label: vault.public(key).hex() for key in list(vault.keys())}
        assert confirmed.items() <= found.items()
    assert len(confirmed) > 12
