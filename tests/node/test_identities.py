"""Identities: no key without an identity, no identity without its key."""

from collections.abc import Iterator
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
)
from edge.node.keys import choose_kind
from edge.node.rotation import rotate_identity
from edge.node.store import Store, Taken
from vault_backends import open_vault
from vault_backends.vault import Kind, VaultError

NOW = BUILD_DATE + 1000


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
