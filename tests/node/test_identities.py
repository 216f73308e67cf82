"""Identities: no key without an identity, no identity without its key."""

import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from edge.errors import ConfigError
from edge.identity.history import ChangeHistory
from edge.node import identities
from edge.node.clock import BUILD_DATE, LIFETIME
from edge.node.home import Home
from edge.node.identities import (
    add_vault,
    attest_key,
    create_identity,
    delete_identity,
    load,
    repair_identities,
)
from edge.node.keys import check_held, choose_kind
from edge.node.rotation import rotate_identity
from edge.node.store import Store, Taken, Unknown, UnsettledKey, VaultRecord
from tests.vault.conftest import SoftToken, soft_token
from vault_backends import open_vault
from vault_backends.vault import (
    DeviceGone,
    Exists,
    Key,
    Kind,
    Misconfigured,
    NotFound,
    Refused,
    VaultError,
)

NOW = BUILD_DATE + 1000
__all__ = ["soft_token"]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path).prepare()


@pytest.fixture
def store(home: Home) -> Iterator[Store]:
    opened = Store(home.database)
    yield opened
    opened.close()


def keys(home: Home, uri: str | None = None) -> set[str]:
    vault = open_vault(uri or home.vault_uri)
    try:
        return {key.label for key in vault.keys()}  # noqa: SIM118 - not a map
    finally:
        vault.close()


def test_the_first_identity(store: Store, home: Home) -> None:
    with pytest.raises(ConfigError, match="no identity"):
        load(store)
    made = create_identity(store, home, "gateway", now=NOW)
    assert (made.vault, made.kind, made.label) == ("default", "ed25519", "ockam-gateway")
    assert made.is_default
    loaded = load(store)
    assert loaded.name == "gateway"
    assert str(loaded.history.identifier) == made.identifier
    assert loaded.history.latest.valid_from == BUILD_DATE
    assert loaded.history.latest.valid_until == NOW + LIFETIME
    said = attest_key(loaded, home, nonce=bytes(16), now=NOW)
    said.verify(bytes(16))
    assert said.description["label"] == "ockam-gateway"
    assert said.description["extractable"] is True


def test_made_in_1970_it_lives_for_decades(store: Store, home: Home) -> None:
    made = create_identity(store, home, "old", kind="p256", now=3600)
    latest = ChangeHistory.decode(made.history).latest
    assert (latest.valid_from, latest.valid_until) == (BUILD_DATE, BUILD_DATE + LIFETIME)
    assert made.kind == "p256"


def test_a_taken_name_makes_no_key(store: Store, home: Home) -> None:
    create_identity(store, home, "a", now=NOW)
    with pytest.raises(Taken):
        create_identity(store, home, "a", now=NOW)
    with pytest.raises(ConfigError, match="name"):
        create_identity(store, home, "a b", now=NOW)
    with pytest.raises(ConfigError, match="kind of key"):
        create_identity(store, home, "b", kind="rsa", now=NOW)
    assert keys(home) == {"ockam-a"}


def test_a_key_that_cannot_be_stored_is_deleted(
    store: Store, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ConfigError("the disk is full")

    create_identity(store, home, "a", now=NOW)
    before = load(store, "a")
    monkeypatch.setattr(Store, "add_identity", fail)
    monkeypatch.setattr(Store, "rotate_identity", fail)
    with pytest.raises(ConfigError, match="full"):
        create_identity(store, home, "b", now=NOW)
    with pytest.raises(ConfigError, match="full"):
        rotate_identity(store, home, "a", now=NOW)
    assert keys(home) == {"ockam-a"}
    assert load(store, "a") == before


def test_a_key_that_cannot_be_deleted_is_mentioned(
    store: Store, home: Home, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    create_identity(store, home, "a", now=NOW)

    def fail(*_: object) -> None:
        raise VaultError("gone")

    monkeypatch.setattr("vault_backends.software.SoftwareVault.delete", fail)
    rotate_identity(store, home, "a", now=NOW)
    assert "ockam-a could not be deleted" in caplog.text


def test_rotation(store: Store, home: Home) -> None:
    first = create_identity(store, home, "a", now=NOW)
    rotated = rotate_identity(store, home, "a", kind="p256", now=NOW + 10)
    assert rotated.identifier == first.identifier
    assert rotated.kind == "p256"
    loaded = load(store, "a")
    assert len(loaded.history.changes) == 2
    assert keys(home) == {rotated.label}
    again = rotate_identity(store, home, "a", now=NOW + 20)
    assert again.kind == "p256"
    assert keys(home) == {again.label}


def test_deletion(store: Store, home: Home, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a", "b", "c"):
        create_identity(store, home, name, now=NOW)
    delete_identity(store, home, "a")
    delete_identity(store, home, "b", keep_key=True)
    assert keys(home) == {"ockam-b", "ockam-c"}
    vault = open_vault(home.vault_uri)
    vault.delete(load(store, "c").key)
    vault.close()
    delete_identity(store, home, "c")
    assert "gone already" in caplog.text
    assert store.identities() == []


def test_a_vault_that_does_not_open_keeps_the_identity(store: Store, home: Home) -> None:
    create_identity(store, home, "a", now=NOW)
    (home.root / "vault.sealed.key").unlink()
    with pytest.raises(VaultError):
        delete_identity(store, home, "a")
    assert store.identity("a")


def test_vaults_by_name_and_uri(store: Store, home: Home) -> None:
    uri = f"software:{home.root}/other.keys"
    assert create_identity(store, home, "a", vault=uri, now=NOW).vault == "other"
    assert create_identity(store, home, "b", vault=uri, now=NOW).vault == "other"
    (home.root / "sub").mkdir()
    third = f"software:{home.root}/sub/other.keys"
    assert create_identity(store, home, "c", vault=third, now=NOW).vault == "other-2"
    assert create_identity(store, home, "d", vault="mine", now=NOW).vault == "mine"
    assert create_identity(store, home, "e", vault="mine", now=NOW).vault == "mine"
    assert keys(home, store.vault("mine").uri) == {"ockam-d", "ockam-e"}
    assert store.default_vault() is not None
    with pytest.raises(VaultError):
        add_vault(store, home, "bad", "nonsense:/x")
    with pytest.raises(ConfigError):
        add_vault(store, home, "b a d")


@pytest.mark.parametrize(
    ("uri", "whole", "label"),
    [
        ("pkcs11:token=t?module-path=/m", "pkcs11:token=t?module-path=/m", None),
        ("pkcs11:token=t;object=a%20b?module-path=/m", "pkcs11:token=t?module-path=/m", "a b"),
        ("pkcs11:object=k;token=t?module-path=/m", "pkcs11:token=t?module-path=/m", "k"),
        ("software:/object=5", "software:/object=5", None),
    ],
)
def test_an_object_in_the_uri_is_the_label(uri: str, whole: str, label: str | None) -> None:
    assert identities._split(uri) == (whole, label)


class Poor:
    """A vault that can hold almost nothing."""

    def __init__(self, *kinds: Kind) -> None:
        self.kinds = frozenset(kinds)


def test_the_kind_of_key_that_a_vault_can_hold() -> None:
    assert choose_kind(Poor(Kind.P256), None) is Kind.P256  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="cannot hold ed25519"):
        choose_kind(Poor(Kind.P256), "ed25519")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no kind"):
        choose_kind(Poor(), None)  # type: ignore[arg-type]


# -- interrupted, and finished


def unfinished(store: Store, home: Home, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """As after a kill between the making of the key and the writing of the identity."""
    with monkeypatch.context() as patch:
        patch.setattr(Store, "add_identity", _killed)
        patch.setattr(identities, "abandon", lambda *_: None)
        with pytest.raises(Killed):
            create_identity(store, home, name, now=NOW)


class Killed(BaseException):
    pass


def _killed(*_: object, **__: object) -> None:
    raise Killed


def test_what_was_begun_is_finished_as_it_was_begun(
    store: Store, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    unfinished(store, home, monkeypatch, "a")
    assert [row.what for row in store.unsettled()] == ["making"]
    vault = open_vault(home.vault_uri)
    before = vault.public(Key(Kind.ED25519, "ockam-a"))
    for wish in ({"kind": "p256"}, {"vault": "other"}):
        with pytest.raises(ConfigError, match="interrupted") as caught:
            create_identity(store, home, "a", now=NOW, **wish)
        assert "delete a" in caught.value.hint
    history = ChangeHistory.decode(create_identity(store, home, "b", now=NOW).history)
    with pytest.raises(Taken, match="interrupted"):
        create_identity(store, home, "a", history=history, now=NOW)
    made = create_identity(store, home, "a", now=NOW)
    assert ChangeHistory.decode(made.history).latest.key.value == before
    assert store.unsettled() == []
    vault.close()


def test_what_was_begun_can_be_undone(
    store: Store, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    unfinished(store, home, monkeypatch, "a")
    assert [row.identity for row in repair_identities(store, home)] == ["a"]
    delete_identity(store, home, "a")
    assert keys(home) == set()
    assert repair_identities(store, home) == []
    with pytest.raises(Unknown):
        delete_identity(store, home, "a")


def test_a_key_of_somebody_else_is_not_taken(store: Store, home: Home) -> None:
    vault = open_vault(home.vault_uri)
    vault.generate(Kind.ED25519, "ockam-a")
    with pytest.raises(Exists, match="no identity"):
        create_identity(store, home, "a", now=NOW)
    assert keys(home) == {"ockam-a"}
    assert store.unsettled() == store.vaults() == []
    vault.close()


def test_a_deletion_is_finished_later(
    store: Store, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_identity(store, home, "a", now=NOW)
    with monkeypatch.context() as patch:
        patch.setattr("vault_backends.software.SoftwareVault.delete", _gone)
        delete_identity(store, home, "a")
    assert keys(home) == {"ockam-a"}
    with monkeypatch.context() as patch:
        patch.setattr("vault_backends.software.SoftwareVault.delete", _gone)
        with pytest.raises(VaultError):
            repair_identities(store, home)
    again = create_identity(store, home, "a", now=NOW)  # destroys the old key first
    assert keys(home) == {again.label}
    assert store.unsettled() == []


def _gone(*_: object) -> None:
    raise DeviceGone("away")


def test_no_key_goes_before_the_new_one_was_seen(
    store: Store, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The vault file was restored from before a rotation: the last key of the identity stays."""
    create_identity(store, home, "a", now=NOW)
    file = home.root / "vault.sealed"
    backup = file.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("vault_backends.software.SoftwareVault.delete", _gone)
        rotate_identity(store, home, "a", now=NOW)
    file.write_bytes(backup)
    with pytest.raises(NotFound):
        repair_identities(store, home)
    assert keys(home) == {"ockam-a"}


def test_the_disk_is_lost_and_the_vault_is_not(store: Store, home: Home, tmp_path: Path) -> None:
    create_identity(store, home, "a", now=NOW)
    history = ChangeHistory.decode(rotate_identity(store, home, "a", now=NOW).history)
    fresh = Home(tmp_path / "fresh").prepare()
    new = Store(fresh.database)
    with pytest.raises(Misconfigured, match="does not hold"):
        create_identity(new, fresh, "b", history=history, now=NOW)
    assert new.vaults() == []
    made = create_identity(new, fresh, "b", vault=home.vault_uri, history=history, now=NOW)
    assert (made.label, made.identifier) == ("ockam-a-2", str(history.identifier))
    assert len(load(new, "b").history.changes) == 2
    rotate_identity(new, fresh, "b", now=NOW)
    new.close()


# -- in a token


def test_an_identity_in_a_token(soft_token: SoftToken, store: Store, home: Home) -> None:
    """Pinned when it is made, taken where a label says so, and refused when it was exchanged."""
    uri = soft_token.uri()
    made = create_identity(store, home, "a", vault=uri, kind="p256", now=NOW)
    assert made.serial
    assert made.module == soft_token.module
    said = attest_key(load(store, "a"), home, nonce=bytes(8), now=NOW).description
    assert (said["serial"], said["extractable"]) == (made.serial, False)
    again = rotate_identity(store, home, "a", now=NOW)
    assert again.serial == made.serial
    assert keys(home, uri) == {again.label}

    with closing(open_vault(uri)) as vault:
        key = vault.generate(Kind.P256, "made-in-the-factory")
        public = vault.public(key)
    taken = create_identity(
        store, home, "b", vault=soft_token.uri("token=edge;object=made-in-the-factory"), now=NOW
    )
    assert taken.label == key.label
    assert ChangeHistory.decode(taken.history).latest.key.value == public

    loaded = load(store, "b")
    with closing(open_vault(uri)) as vault:
        check_held(vault, loaded)
        elsewhere = loaded._replace(record=loaded.record._replace(serial="0123"))
        with pytest.raises(Refused, match="serial 0123"):
            check_held(vault, elsewhere)
        vault.delete(key)
        vault.generate(Kind.P256, key.label)
    with (
        closing(open_vault(uri)) as vault,
        pytest.raises(Refused, match="not the key of identity b"),
    ):
        check_held(vault, loaded)


@pytest.mark.parametrize("half", ["pubkey", "privkey"])
def test_half_a_key_in_a_token_is_made_anew(
    soft_token: SoftToken, store: Store, home: Home, half: str
) -> None:
    """The power went while the token made the pair."""
    uri = soft_token.uri()
    row = UnsettledKey("a", "edge", "p256", "ockam-a", "making")
    store.reserve_key(row, VaultRecord("edge", uri, False))
    with closing(open_vault(uri)) as vault:
        vault.generate(Kind.P256, "ockam-a")
    if shutil.which("pkcs11-tool") is None:
        pytest.skip(
            "PKCS11-TOOL IS NOT INSTALLED: half a key is not tested (apt-get install opensc)"
        )
    soft_token.tool("--delete-object", "--type", half, "--label", "ockam-a")
    made = create_identity(store, home, "a", vault=uri, now=NOW)
    assert keys(home, uri) == {made.label}
    rotate_identity(store, home, "a", now=NOW)


def test_no_deletion_without_its_token(soft_token: SoftToken, store: Store, home: Home) -> None:
    """Neither where no token is there, nor where another one of that label is: the key would stay, and
    nobody would know of it."""
    uri = soft_token.uri()
    create_identity(store, home, "a", vault=uri, now=NOW)
    files, away = soft_token.files, soft_token.folder / "away"
    files.rename(away)
    with pytest.raises(VaultError, match="no token with label 'edge'"):
        delete_identity(store, home, "a")
    soft_token.init("edge")
    other = soft_token.files
    before = set(home.root.glob("pin-*.json"))
    with pytest.raises(Refused, match="has serial"):
        delete_identity(store, home, "a")
    assert set(home.root.glob("pin-*.json")) == before  # it was not given the PIN
    shutil.rmtree(other)
    away.rename(files)
    delete_identity(store, home, "a")
    assert keys(home, uri) == set()
