"""Vault URIs, and the secrets they point at."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vault_backends import open_vault
from vault_backends.uri import Pkcs11Uri, SoftwareUri, obtain, parse, read_secret, unparse
from vault_backends.vault import Locked, Misconfigured, VaultError

from .conftest import secret_file

MODULE = "?module-path=/m.so"


def test_software() -> None:
    assert parse("software:/var/lib/my%20keys") == SoftwareUri(
        Path("/var/lib/my keys"), "file:/var/lib/my keys.key"
    )
    assert parse("software:/k?key-source=file:/x").key_source == "file:/x"
    assert parse("software:/k?key-source=file:///x").key_source == "file:/x"
    passphrase = parse("software:/k?passphrase-source=credential:edge-pass")
    assert passphrase == SoftwareUri(Path("/k"), None, "credential:edge-pass")
    assert parse("software:/k?passphrase-source=ask").passphrase_source == "ask"


def test_pkcs11() -> None:
    whole = (
        "pkcs11:token=my%20edge%00%00;serial=0%31;manufacturer=SoftHSM%20project;model=v2%20;"
        "object=id;id=%0b%01;type=private;slot-id=7?module-path=/m.so&pin-source=file:/p"
    )
    assert parse(whole) == Pkcs11Uri(
        module_path="/m.so",
        token="my edge",
        serial="01",
        manufacturer="SoftHSM project",
        model="v2",
        slot_id=7,
        object="id",
        id=b"\x0b\x01",
        pin_source="file:/p",
    )
    assert parse("pkcs11:" + MODULE) == Pkcs11Uri("/m.so")
    assert parse(f"pkcs11:{MODULE}&x-parameters=a%3Db").parameters == "a=b"


@pytest.mark.parametrize(
    ("uri", "names"),
    [
        ("", "no scheme"),
        ("/path", "no scheme"),
        ("file:/x", "scheme 'file'"),
        ("software:", "absolute"),
        ("software:keys", "absolute"),
        ("software:/k?key-file=/x", "'key-file'"),
        ("software:/k?key-source=file:/a&passphrase-source=file:/b", "not both"),
        ("software:/k?key-source=file:/a&key-source=file:/b", "twice"),
        ("software:/k?key-source=", "key-source has no value"),
        ("software:/k?key-source=/a", "key-source must be"),
        ("software:/k?key-source=ask", "key-source must be"),
        ("software:/k?key-source=file:relative", "key-source must be"),
        ("software:/k?key-source=credential:../x", "key-source must be"),
        ("software:/k?key-source=credential:..", "key-source must be"),
        ("software:/k?key-source=file:/a&sealed-by=pkcs11%3A%3Fmodule-path%3D/m.so", "not both"),
        ("software:/k?sealed-by=software:/other", "URI of a token"),
        ("software:/k?sealed-by=pkcs11%3Atoken%3Dedge", "module-path is missing"),
        ("software:/k?sealed-by=/usr/lib/m.so", "no scheme"),
        ("software:/%zz", "percent"),
        ("software:/%ff", "UTF-8"),
        ("software:/a%00b", "NUL"),
        ("pkcs11:token=edge", "module-path is missing"),
        ("pkcs11:?module-path=/m.so&module-name=m", "not both"),
        ("pkcs11:?module-name=../m", "a name such as"),
        ("pkcs11:?module-name=%2fm.so", "a name such as"),
        ("pkcs11:?module-name=.m", "a name such as"),
        ("pkcs11:tokn=edge" + MODULE, "'tokn'"),
        ("pkcs11:token=a;token=b" + MODULE, "twice"),
        ("pkcs11:token" + MODULE, "token has no value"),
        ("pkcs11:library-version=1" + MODULE, "'library-version'"),
        ("pkcs11:type=cert" + MODULE, "type=cert"),
        ("pkcs11:slot-id=x" + MODULE, "slot-id is not a number"),
        ("pkcs11:id=%" + MODULE, "id is not percent"),
        ("pkcs11:token=a b" + MODULE, "token is not percent"),
        ("pkcs11:token=é" + MODULE, "token is not percent"),
        ("pkcs11:?module-path=/m.so&pin=1", "'pin'"),
    ],
)
def test_refused(uri: str, names: str) -> None:
    with pytest.raises(Misconfigured) as caught:
        parse(uri)
    assert names in str(caught.value)
    with pytest.raises(VaultError):
        open_vault(uri)


@pytest.mark.parametrize(
    "uri",
    [
        "pkcs11:token=edge?module-path=/m.so&pin-value=98765",
        "pkcs11:token=edge?pin-value=98765",
        "pkcs11:?module-path=/m.so&pin-source=98765",
        "software:/k?passphrase-source=98765",
    ],
)
def test_secret_in_the_uri_is_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(Misconfigured) as caught:
        parse(uri)
    assert "98765" not in str(caught.value) + caught.value.hint
    assert "pin-" in str(caught.value) or "passphrase-source" in str(caught.value)


def test_pin_value_where_the_caller_allows_it() -> None:
    uri = parse("pkcs11:token=edge?module-path=/m.so&pin-value=98%37%36%35", allow_pin_value=True)
    assert isinstance(uri, Pkcs11Uri)
    assert uri.pin_value == "98765"
    assert uri.pin_source == "pin-value"
    assert "98765" not in repr(uri) + str(uri) + unparse(uri)


@pytest.mark.parametrize(
    "query",
    [
        "pin-value=98765&pin-source=file:/p",
        "pin-value=98765&pin-value=98765",
        "pin-value=9&8765",  # the rest of a PIN looks like an attribute
        "pin-value=98765%zz",
        "pin-value=98765%ff",
        "pin-value=98765%00x",
    ],
)
def test_pin_value_never_shows(query: str) -> None:
    with pytest.raises(Misconfigured) as caught:
        parse(f"pkcs11:token=edge?module-path=/m.so&{query}", allow_pin_value=True)
    assert "8765" not in str(caught.value) + caught.value.hint


@pytest.mark.parametrize(
    "uri",
    [
        "pkcs11:token=a%20%3b?module-path=/m.so",
        "pkcs11:token=edge;serial=01;slot-id=0;object=k%26%25;id=%00%ff?module-name=softhsm2&pin-source=file:/p%20q",
        "pkcs11:manufacturer=%c3%a9;model=m?module-path=/m.so&x-parameters=configdir%3D%27sql:/x%27",
    ],
)
def test_unparse(uri: str) -> None:
    parsed = parse(uri)
    assert isinstance(parsed, Pkcs11Uri)
    assert parse(unparse(parsed)) == parsed
    assert "'" not in unparse(parsed)


def test_read_secret(tmp_path: Path) -> None:
    path = secret_file(tmp_path / "pin", "12 34\n\n")
    assert read_secret(f"file:{path}") == "12 34\n"  # one newline


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_secret_that_others_read(tmp_path: Path, mode: int) -> None:
    path = secret_file(tmp_path / "pin", "98765")
    path.chmod(mode)
    with pytest.raises(Misconfigured, match=f"{mode:04o}") as caught:
        read_secret(f"file:{path}")
    assert "chmod 600" in caught.value.hint
    assert "98765" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to give a file away")
def test_secret_of_another_user(tmp_path: Path) -> None:
    path = secret_file(tmp_path / "pin", "98765")
    os.chown(path, 12345, -1)
    with pytest.raises(Misconfigured, match="12345"):
        read_secret(f"file:{path}")


def test_secret_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(Locked, match="No such file"):
        read_secret(f"file:{tmp_path}/missing")
    with pytest.raises(Misconfigured, match="not a file"):
        read_secret(f"file:{tmp_path}")
    with pytest.raises(Locked, match="1 to"):
        read_secret(f"file:{secret_file(tmp_path / 'a', chr(10))}")
    with pytest.raises(Locked, match="1 to"):
        read_secret(f"file:{secret_file(tmp_path / 'b', 'x' * 5000)}")
    path = secret_file(tmp_path / "c", "")
    path.write_bytes(b"\xff98765")
    with pytest.raises(Locked, match="UTF-8") as caught:
        read_secret(f"file:{path}")
    assert "98765" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_fifo_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pin", 0o600)
    with pytest.raises(Misconfigured, match="not a file"):
        read_secret(f"file:{tmp_path}/pin")


def test_credential(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(Locked, match="CREDENTIALS_DIRECTORY"):
        read_secret("credential:pin")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    path = secret_file(tmp_path / "pin", "1234\n")
    path.chmod(0o440)  # as systemd shows a file it opened with an ACL
    assert read_secret("credential:pin") == "1234"
    path.chmod(0o444)
    with pytest.raises(Misconfigured, match="0444"):
        read_secret("credential:pin")


def test_obtain(tmp_path: Path) -> None:
    prompts: list[str] = []

    def ask(prompt: str) -> str | None:
        prompts.append(prompt)
        return "answer"

    assert obtain("ask", ask, "the PIN") == "answer"
    assert prompts == ["the PIN"]
    for nobody in (None, lambda prompt: None, lambda prompt: ""):
        with pytest.raises(Locked, match="the PIN is needed"):
            obtain("ask", nobody, "the PIN")
    path = secret_file(tmp_path / "pin", "1234\n")
    assert obtain(f"file:{path}", ask, "the PIN") == "1234"


def test_nothing_is_imported_before_it_is_needed() -> None:
    code = (
        "import sys, vault_backends; vault_backends.uri.parse('software:/x');"
        "heavy = ('pkcs11', 'nacl', 'asyncio', 'edge', 'cryptography');"
        "print([name for name in heavy if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


# --- who else can say what is in the place of a secret


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to give files away")
@pytest.mark.parametrize("whose", ["folder", "link", "link above", "open folder"])
def test_secret_that_another_user_can_exchange(tmp_path: Path, whose: str) -> None:
    """Whoever owns the folder of a PIN may put a link there to any secret of ours: each is a PIN to
    try, until the token is locked."""
    ours = secret_file(tmp_path / "host_key", "98765")
    theirs = tmp_path / "theirs"
    theirs.mkdir(mode=0o755)
    named = theirs / "pin"
    if whose == "link above":
        good = tmp_path / "good"
        good.mkdir(mode=0o755)
        secret_file(good / "pin", "98765")
        theirs.rmdir()
        theirs.symlink_to(good)
        os.chown(theirs, 12345, -1, follow_symlinks=False)
    else:
        named.symlink_to(ours)
    read_first = "12345"
    if whose == "folder":
        os.chown(theirs, 12345, -1)
    elif whose == "link":
        os.chown(named, 12345, -1, follow_symlinks=False)
    elif whose == "open folder":
        theirs.chmod(0o777)
        read_first = "0777"
    with pytest.raises(Misconfigured, match=read_first) as caught:
        read_secret(f"file:{named}")
    assert "98765" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to give files away")
def test_secret_of_ours_in_a_folder_for_everybody(tmp_path: Path) -> None:
    """Nobody can move what is ours out of a sticky folder such as /tmp; links of ours lead on."""
    sticky = tmp_path / "sticky"
    sticky.mkdir()
    sticky.chmod(0o1777)
    secret_file(sticky / "pin", "98765")
    (tmp_path / "link").symlink_to("sticky/../sticky/pin")
    assert read_secret(f"file:{tmp_path}/link") == "98765"
    for place in ("pin", "link"):
        os.chown(sticky / "pin", 12345, -1)
        with pytest.raises(Misconfigured, match="12345"):
            read_secret(f"file:{sticky}/{place}" if place == "pin" else f"file:{tmp_path}/link")


def test_secret_behind_links_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(Misconfigured, match="links"):
        read_secret(f"file:{tmp_path}/a")
