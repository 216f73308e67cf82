"""A store of tpm2-pkcs11 that is not as it should be: each has its error, before any PIN is used."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from tests.tpm import forge
from vault_backends.tpm.store import FILE, find_key, store_folder
from vault_backends.tpm.structures import sized
from vault_backends.vault import Misconfigured, NotFound, Refused, Unsupported, VaultError

POINT = forge.ID.point()
PUBLIC = sized(forge.ID.encode())
SCHEMA = """
CREATE TABLE tokens(id INTEGER PRIMARY KEY, pid INTEGER, label TEXT UNIQUE, config TEXT);
CREATE TABLE sealobjects(id INTEGER PRIMARY KEY, tokid INTEGER, userpub BLOB, userpriv BLOB,
    userauthsalt TEXT, sopub BLOB, sopriv BLOB, soauthsalt TEXT);
CREATE TABLE pobjects(id INTEGER PRIMARY KEY, hierarchy TEXT, config TEXT, objauth TEXT);
CREATE TABLE tobjects(id INTEGER PRIMARY KEY, tokid INTEGER, attrs TEXT);
CREATE TABLE schema(id INTEGER PRIMARY KEY, schema_version INTEGER NOT NULL);
INSERT INTO tokens VALUES (1, 1, 'edge', '');
"""


def yaml(**pairs: str) -> str:
    lines = [f'  ? !!int "{name[1:]}"\n  : !!str "{value}",\n' for name, value in pairs.items()]
    return "---\n!!map {\n" + "".join(lines) + "}\n...\n"


def primary(transient: str = "false", handle: str = "81000001ff") -> str:
    return (
        f'---\n!!map {{\n  ? !!str "transient"\n  : !!bool "{transient}",\n'
        f'  ? !!str "esys-tr"\n  : !!str "{handle}",\n}}\n...\n'
    )


KEY = {
    "_0": "3", "_3": b"gateway".hex(), "_2399141891": sized(b"private").hex(),
    "_2399141890": PUBLIC.hex(), "_2399141889": b"aa:bb:cc".hex(),
}  # fmt: skip


def store(
    folder: Path,
    *,
    version: int = 8,
    config: str = primary(),
    user: bytes | None = sized(b"seal"),
    keys: tuple[dict[str, str], ...] = (KEY,),
) -> Path:
    with sqlite3.connect(folder / FILE) as database:
        database.executescript(SCHEMA)
        database.execute("INSERT INTO schema VALUES (1, ?)", (version,))
        database.execute("INSERT INTO pobjects VALUES (1, 'o', ?, '')", (config,))
        database.execute(
            "INSERT INTO sealobjects VALUES (1, 1, ?, ?, 'salt', '', '', '')", (user, user)
        )
        for key in keys:
            database.execute("INSERT INTO tobjects (tokid, attrs) VALUES (1, ?)", (yaml(**key),))
    database.close()
    return folder


def test_a_key_is_read(tmp_path: Path) -> None:
    found = find_key(store(tmp_path), "edge", "gateway", POINT)
    assert (found.public, found.private) == (forge.ID.encode(), b"private")
    assert (found.parent, found.parent_auth) == (0x81000001, b"")
    assert (found.wrapped_auth, found.sealed_public, found.salt) == ("aa:bb:cc", b"seal", "salt")


def test_of_two_keys_with_one_label_the_one_with_the_point_is_taken(tmp_path: Path) -> None:
    other = {**KEY, "_2399141890": sized(forge.AK.encode()).hex()}
    public_half = {**KEY, "_0": "2"}
    found = find_key(store(tmp_path, keys=(public_half, other, KEY)), None, "gateway", POINT)
    assert found.public == forge.ID.encode()


@pytest.mark.parametrize(
    ("given", "kind", "why"),
    [
        ({"version": 3}, Unsupported, "schema 3"),
        ({"version": 9}, Unsupported, "schema 9"),
        ({"config": primary("true")}, Unsupported, "transient"),
        ({"config": ""}, Unsupported, "transient"),
        ({"user": None}, Refused, "no user PIN"),
        ({"keys": ()}, NotFound, "no key 'gateway'"),
        (
            {"keys": ({name: KEY[name] for name in KEY if name != "_2399141890"},)},
            NotFound,
            "no key",
        ),
        ({"config": primary().replace("esys-tr", "other")}, Misconfigured, "no store"),
        ({"config": primary(handle="zz")}, Misconfigured, "no store"),
        ({"keys": ({**KEY, "_2399141890": "xyz"},)}, Misconfigured, "no store"),
        ({"keys": ({**KEY, "_2399141890": "0005aa"},)}, VaultError, "ends 4 bytes early"),
        ({"keys": ({**KEY, "_2399141890": ""},)}, VaultError, "early"),
    ],
)
def test_what_is_wrong_is_said(
    tmp_path: Path, given: dict[str, object], kind: type[VaultError], why: str
) -> None:
    folder = store(tmp_path, **given)  # type: ignore[arg-type]
    with pytest.raises(kind, match=why):
        find_key(folder, "edge", "gateway", POINT)


def test_the_store_is_where_the_module_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / ".tpm2_pkcs11"
    home.mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("TPM2_PKCS11_STORE", raising=False)
    if not Path("/etc/tpm2_pkcs11").exists():
        with pytest.raises(NotFound, match="/etc/tpm2_pkcs11 or "):
            store_folder()
        assert store_folder(str(store(home))) == home
        assert store_folder() == home
    monkeypatch.setenv("TPM2_PKCS11_STORE", str(tmp_path / "nowhere"))
    with pytest.raises(NotFound, match="nowhere"):
        store_folder()
