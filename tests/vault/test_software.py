"""The file: what is on disk, who may read it, and what power cuts and other processes cannot do to
it."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vault_backends import open_vault, software
from vault_backends.vault import Exists, Key, Kind, Locked, Misconfigured, VaultError

from .conftest import secret_file


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
