"""Secrets at rest: sealed by whom, opened by whom, and nowhere in plain; the kept channel key."""

import asyncio
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from edge.cli.main import run
from edge.errors import EdgeError, TrustError
from edge.keyring import Unattested
from edge.node import channelkey
from edge.node.channelkey import ChannelKey
from edge.node.home import Home
from edge.node.identities import create_identity, delete_identity, load
from edge.node.node import Node
from edge.node.rotation import rotate_identity
from edge.node.sealed import Sealed, open_sealed, provision, reseal
from edge.node.store import Store
from tests.node.world import NOW, eventually, running
from tests.vault.conftest import SoftToken, secret_file, soft_token
from vault_backends import open_vault
from vault_backends.pkcs11 import module
from vault_backends.vault import DeviceGone, NotFound, Refused, Unsupported, Vault, VaultError

__all__ = ["soft_token"]
SECRET = b"a ticket that nobody may read"


class World:
    """A home with one identity, and its vault."""

    def __init__(self, folder: Path, uri: str | None = None) -> None:
        self.home = Home(folder).prepare()
        self.uri = uri
        with closing(self.store()) as store:
            self.record = create_identity(store, self.home, "me", vault=uri, now=NOW)

    def store(self) -> Store:
        return Store(self.home.database)

    def vault(self, store: Store) -> Vault:
        return open_vault(load(store, "me").uri, state_dir=self.home.root)

    def open(self, store: Store) -> Sealed:
        with closing(self.vault(store)) as vault:
            return open_sealed(store, vault, self.home, load(store, "me"))

    def provision(self) -> tuple[str, list[str]]:
        with closing(self.store()) as store:
            return provision(store, self.home, store.vaults()[0])

    def sealed_by(self, store: Store) -> str | None:
        found = store.data_key(self.record.identifier)
        assert found is not None
        return found.uri

    def assert_nowhere(self, *secrets: bytes) -> None:
        for path in self.home.root.rglob("*"):
            if path.is_file():
                data = path.read_bytes()
                for secret in secrets:
                    assert secret not in data, path
                    assert secret.hex().encode() not in data, path


@pytest.fixture(params=["key file", "credential", "passphrase", "token", "token without seal key"])
def world(request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """Each way of sealing that there is."""
    folder, vault = tmp_path / "home", f"software:{tmp_path}/keys"
    if request.param == "credential":
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
        secret_file(tmp_path / "seal", "22" * 32)
        return World(folder, f"{vault}?key-source=credential:seal")
    if request.param == "passphrase":
        secret_file(tmp_path / "words", "correct horse")
        return World(folder, f"{vault}?passphrase-source=file:{tmp_path}/words")
    if request.param == "key file":
        return World(folder)
    token: SoftToken = request.getfixturevalue("soft_token")
    made = World(folder, token.uri())
    if request.param == "token":
        assert made.provision() == ("ecdh-p256", [])
    return made


@pytest.fixture
def store(world: World) -> Iterator[Store]:
    with closing(world.store()) as opened:
        yield opened


def test_secrets_come_back_and_are_nowhere_in_plain(world: World, store: Store) -> None:
    sealed = world.open(store)
    assert sealed.get(store, "ticket") is None
    sealed.put(store, "ticket", SECRET)
    sealed.put(store, "other", b"")
    again = world.open(store)
    assert again.get(store, "ticket") == SECRET
    assert again.get(store, "other") == b""
    assert again.names(store) == ["other", "ticket"]
    sealed.put(store, "ticket", SECRET + b"2")
    assert again.get(store, "ticket") == SECRET + b"2"
    world.assert_nowhere(SECRET)
    again.delete(store, "ticket")
    assert again.get(store, "ticket") is None


def test_who_seals(world: World, store: Store) -> None:
    world.open(store)
    without = world.uri is not None and world.uri.startswith("pkcs11:") and not _provisioned(world)
    assert world.sealed_by(store) == (world.home.vault_uri if without else None)


def _provisioned(world: World) -> bool:
    with closing(world.store()) as store, closing(world.vault(store)) as vault:
        try:
            vault.seal(b"", b"")  # type: ignore[attr-defined]
        except NotFound:
            return False
        return True


def test_the_data_key_is_not_on_the_disk(
    world: World, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: list[bytes] = []
    made = Sealed.__init__

    def spied(self: Sealed, identifier: str, key: bytes) -> None:
        keys.append(key)
        made(self, identifier, key)

    monkeypatch.setattr(Sealed, "__init__", spied)
    world.open(store).put(store, "x", b"y")
    world.open(store)
    assert keys[0] == keys[1]
    assert len(keys[0]) == 32
    world.assert_nowhere(keys[0])


# --- records


@pytest.fixture
def plain(tmp_path: Path) -> World:
    return World(tmp_path / "home")


@pytest.fixture
def at(plain: World) -> Iterator[Store]:
    with closing(plain.store()) as opened:
        yield opened


def change(world: World, sql: str, *values: object) -> None:
    with closing(sqlite3.connect(world.home.database)) as db, db:
        assert db.execute(sql, values).rowcount > 0


def test_changed_records(plain: World, at: Store) -> None:
    sealed = plain.open(at)
    sealed.put(at, "ticket", SECRET)
    kept = at.sealed(plain.record.identifier, "ticket")
    assert kept is not None
    for index in range(len(kept.record)):
        changed = bytearray(kept.record)
        changed[index] ^= 1
        change(plain, "UPDATE sealed SET record = ?", bytes(changed))
        with pytest.raises(TrustError, match="ticket"):
            sealed.get(at, "ticket")
    for length in range(len(kept.record)):
        change(plain, "UPDATE sealed SET record = ?", kept.record[:length])
        with pytest.raises(TrustError):
            sealed.get(at, "ticket")


def test_records_of_other_names_versions_contexts_and_identities(plain: World, at: Store) -> None:
    sealed = plain.open(at)
    sealed.put(at, "ticket", SECRET, b"authority 1")
    assert sealed.get(at, "ticket", b"authority 1") == SECRET
    with pytest.raises(TrustError):
        sealed.get(at, "ticket", b"authority 2")
    change(plain, "UPDATE sealed SET name = 'credential'")
    with pytest.raises(TrustError):
        sealed.get(at, "credential", b"authority 1")
    change(plain, "UPDATE sealed SET name = 'ticket', version = 2")
    with pytest.raises(TrustError):
        sealed.get(at, "ticket", b"authority 1")
    other = create_identity(at, plain.home, "other", now=NOW)
    with closing(plain.vault(at)) as vault:
        theirs = open_sealed(at, vault, plain.home, load(at, "other"))
    theirs.put(at, "ticket", b"theirs", b"authority 1")
    change(
        plain,
        "UPDATE sealed SET record = (SELECT record FROM sealed WHERE identifier = ?), version = 1"
        " WHERE identifier = ?",
        other.identifier,
        plain.record.identifier,
    )
    with pytest.raises(TrustError):
        sealed.get(at, "ticket", b"authority 1")


def test_data_key_of_another_identity(plain: World, at: Store) -> None:
    plain.open(at)
    create_identity(at, plain.home, "other", now=NOW)
    with closing(plain.vault(at)) as vault:
        open_sealed(at, vault, plain.home, load(at, "other"))
        change(
            plain,
            "UPDATE data_key SET sealed = (SELECT sealed FROM data_key WHERE identifier = ?)",
            plain.record.identifier,
        )
        with pytest.raises(Refused):
            open_sealed(at, vault, plain.home, load(at, "other"))


def test_two_at_once_agree_on_a_data_key(plain: World, at: Store) -> None:
    first, found = plain.open(at), at.data_key(plain.record.identifier)
    assert at.add_data_key(plain.record.identifier, None, b"of the slower one") == found
    first.put(at, "x", SECRET)
    assert plain.open(at).get(at, "x") == SECRET


def test_secrets_go_with_their_identity(plain: World, at: Store) -> None:
    plain.open(at).put(at, "ticket", SECRET)
    delete_identity(at, plain.home, "me")
    assert at.sealed_names(plain.record.identifier) == []
    assert at.data_key(plain.record.identifier) is None


def test_rotation_of_the_identity_keeps_them(world: World, store: Store) -> None:
    world.open(store).put(store, "ticket", SECRET)
    rotate_identity(store, world.home, "me", now=NOW + 10)
    assert world.open(store).get(store, "ticket") == SECRET


# --- a token


def test_another_token_and_none(soft_token: SoftToken, tmp_path: Path) -> None:
    world = World(tmp_path / "home", soft_token.uri())
    world.provision()
    with closing(world.store()) as store:
        world.open(store).put(store, "ticket", SECRET)
        shutil.move(soft_token.files, soft_token.folder / "away")
        module.stop_all()
        with pytest.raises((NotFound, DeviceGone)):
            world.open(store)
        soft_token.init("edge")
        world.provision()
        with pytest.raises(VaultError, match="was sealed with the key"):
            world.open(store)
        assert world.sealed_by(store) is None


def test_token_that_is_away_is_not_passed_by(soft_token: SoftToken, tmp_path: Path) -> None:
    """Or the first data key would be sealed by a file, because the token came a second later."""
    world = World(tmp_path / "home", soft_token.uri())
    world.provision()
    away = soft_token.files.rename(soft_token.folder / "away")
    with closing(world.store()) as store:
        with closing(world.vault(store)) as vault:
            identity = load(store, "me")
            with pytest.raises((NotFound, DeviceGone)):
                open_sealed(store, vault, world.home, identity)
        assert store.data_key(world.record.identifier) is None
    assert away.exists()
    assert not (world.home.root / "vault.sealed").exists()


def test_seal_key_made_later(soft_token: SoftToken, tmp_path: Path) -> None:
    world = World(tmp_path / "home", soft_token.uri())
    with closing(world.store()) as store:
        world.open(store).put(store, "ticket", SECRET)
        assert world.sealed_by(store) == world.home.vault_uri
        assert world.provision() == ("ecdh-p256", ["me"])
        assert world.sealed_by(store) is None
        (world.home.root / "vault.sealed").unlink()  # is not needed any more
        assert world.open(store).get(store, "ticket") == SECRET
        assert world.provision() == ("ecdh-p256", [])


def test_reseal_by_another_vault(plain: World, at: Store, tmp_path: Path) -> None:
    identity = load(at, "me")
    with closing(plain.vault(at)) as old, closing(open_vault(f"software:{tmp_path}/new")) as new:
        assert reseal(at, plain.home, identity, old, new) is None
        open_sealed(at, old, plain.home, identity).put(at, "ticket", SECRET)
        assert reseal(at, plain.home, identity, old, new) == at.data_key(plain.record.identifier)
        assert open_sealed(at, new, plain.home, identity).get(at, "ticket") == SECRET
        with pytest.raises(Refused):
            open_sealed(at, old, plain.home, identity)


def test_command(
    soft_token: SoftToken,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("OCKAM_HOME", str(tmp_path / "home"))
    assert run(["vault", "create", "token", "--uri", soft_token.uri()]) == 0
    for _ in range(2):
        assert run(["vault", "seal", "token"]) == 0
        assert "ecdh-p256" in capsys.readouterr().out
    soft_token.tool("--delete-object", "--type", "pubkey", "--label", "ockam-seal")
    module.stop_all()
    assert run(["vault", "seal", "token"]) != 0
    assert "never replaced" in capsys.readouterr().err


def test_vault_that_cannot_seal(plain: World, at: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    class Six:
        """A vault with the six methods alone."""

        def close(self) -> None: ...

    monkeypatch.setattr("edge.node.sealed.open_vault", lambda *_, **__: Six())
    with pytest.raises(Unsupported, match="cannot seal"):
        provision(at, plain.home, at.vaults()[0])


# --- the kept channel key


def node(world: World, **settings: bool) -> None:
    with closing(world.store()) as store:
        store.add_node("n", identity="me", listener=None, settings=dict(settings))


def presented(world: World) -> tuple[bytes, bytes, int]:
    """The static key and the attestation of one run of the node, and its signatures."""

    async def once() -> tuple[bytes, bytes, int]:
        async with running(world.home, "n") as [one]:
            now = one.present()
            return now.secret, now.attestation.encoded, one.signatures

    return asyncio.run(asyncio.wait_for(once(), 50))


def test_by_default_the_key_is_fresh(world: World) -> None:
    node(world)
    assert presented(world)[0] != presented(world)[0]
    with closing(world.store()) as store:
        assert store.data_key(world.record.identifier) is None


def test_kept_key(world: World) -> None:
    node(world, keep_channel_key=True)
    first, second = presented(world), presented(world)
    assert first[:2] == second[:2]
    assert (first[2], second[2]) == (1, 0)
    world.assert_nowhere(first[0])


def test_kept_key_goes_with_the_node(plain: World, at: Store) -> None:
    node(plain, keep_channel_key=True)
    before = presented(plain)
    at.remove_node("n")
    assert at.sealed_names(plain.record.identifier) == []
    node(plain, keep_channel_key=True)
    assert presented(plain)[0] != before[0]


def test_kept_key_is_attested_anew_after_a_rotation(plain: World, at: Store) -> None:
    node(plain, keep_channel_key=True)
    before = presented(plain)
    rotate_identity(at, plain.home, "me", now=NOW + 10)
    after = presented(plain)
    assert after[0] == before[0]
    assert after[1] != before[1]
    assert after[2] == 1


def test_kept_key_is_attested_anew_when_it_expired(plain: World, at: Store) -> None:
    node(plain, keep_channel_key=True)
    before = presented(plain)
    sealed = plain.open(at)
    kept = channelkey.load(at, sealed, "n")
    assert kept is not None
    history = load(at, "me").history
    assert kept.presentation(history, kept.attestation.expires_at) is not None
    assert kept.presentation(history, kept.attestation.expires_at + 1) is None
    assert ChannelKey(bytes(31) + b"\1", kept.attestation).presentation(history, NOW) is None
    assert before[0] == kept.secret


def test_kept_record_that_is_none(plain: World, at: Store) -> None:
    node(plain, keep_channel_key=True)
    plain.open(at).put(at, "channel key of node n", b"nonsense", node="n")
    assert presented(plain)[:2] == presented(plain)[:2]


def test_changed_record_stops_the_node(plain: World) -> None:
    node(plain, keep_channel_key=True)
    presented(plain)
    change(plain, "UPDATE sealed SET record = zeroblob(60)")
    with pytest.raises(TrustError, match="channel key of node n"):
        presented(plain)


def test_start_while_the_token_is_away(soft_token: SoftToken, tmp_path: Path) -> None:
    """Sealed by the key file of the home, since the token has no seal key."""
    world = World(tmp_path / "home", soft_token.uri())
    node(world, keep_channel_key=True)
    before = presented(world)
    away = soft_token.files.rename(soft_token.folder / "away")
    module.stop_all()
    assert presented(world) == (*before[:2], 0)
    change(world, "DELETE FROM sealed")  # and without it the token is missed
    with pytest.raises((VaultError, EdgeError)):
        presented(world)
    away.rename(soft_token.folder / "tokens" / "back")
    module.stop_all()
    assert presented(world)[2] == 1


def test_start_while_the_token_that_seals_is_away(soft_token: SoftToken, tmp_path: Path) -> None:
    world = World(tmp_path / "home", soft_token.uri())
    world.provision()
    node(world, keep_channel_key=True)
    before = presented(world)
    away = soft_token.files.rename(soft_token.folder / "away")

    async def waits() -> bytes:
        async with running(world.home, "n") as [one]:
            with pytest.raises(Unattested):
                one.present()
            away.rename(soft_token.folder / "tokens" / "back")
            await eventually(
                lambda: one.presence.presenter and one.presence.presenter.valid_until, 15
            )
            return one.present().secret

    assert asyncio.run(asyncio.wait_for(waits(), 50)) == before[0]
    assert presented(world)[0] == before[0]


def test_the_vault_is_asked_once_for_all_records(
    plain: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    node(plain)
    asked: list[str] = []

    async def once() -> None:
        async with running(plain.home, "n") as [one]:
            await spy(one, asked)

    asyncio.run(asyncio.wait_for(once(), 50))
    assert asked == ["vault_0"]  # once, and in the vault's thread


async def spy(one: Node, asked: list[str]) -> None:
    import threading  # noqa: PLC0415

    vault: Any = one.presence.keyring.vault if one.presence.keyring else None
    unseal = vault.unseal

    def spied(blob: bytes, aad: bytes) -> bytes:
        asked.append(threading.current_thread().name)
        return bytes(unseal(blob, aad))

    vault.unseal = spied
    for sealed in await asyncio.gather(*(one.sealed() for _ in range(5))):
        await one.store.call(sealed.put, "ticket", SECRET)
        assert await one.store.call(sealed.get, "ticket") == SECRET
