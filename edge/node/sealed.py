"""Sealed: secrets of an identity that must survive a restart, such as a kept channel key or a ticket.

A record is AES-256-GCM under the data key of its identity. The data key is sealed by the vault of the
identity where that can seal; else (a token without a seal key) by a software vault, with its key file,
passphrase or credential. It is unsealed once, in the vault's thread; records cost the
vault nothing. See docs/decisions/0007-sealing.md.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from edge.errors import TrustError
from edge.events import event
from edge.keyring import Ask, Keyring
from edge.node.home import Home
from edge.node.identities import load
from edge.node.keys import Identity
from edge.node.store import DataKeyRecord, SealedRecord, Store, VaultRecord
from edge.node.storethread import StoreThread
from edge.wire import cbor
from vault_backends import open_vault
from vault_backends.vault import NoSealKey, Provisions, Seals, Unsupported, Vault

log = logging.getLogger("edge.sealed")

NONCE, TAG = 12, 16
KEY = 32
FORMAT = 1


class Sealed:
    """The secrets of one identity. The methods take the Store first, so that a node calls them by
    `store.call(sealed.get, "name")`."""

    def __init__(self, identifier: str, key: bytes) -> None:
        self._identifier = identifier
        self._cipher = AESGCM(key)

    def put(
        self,
        store: Store,
        name: str,
        secret: bytes,
        context: bytes = b"",
        *,
        node: str | None = None,
    ) -> None:
        """On the disk when it returns, over what had this name. `context` is whatever the secret
        belongs to; get() must give the same. What belongs to a `node` goes when that is deleted."""

        def sealing(version: int) -> bytes:
            nonce = os.urandom(NONCE)
            return nonce + self._cipher.encrypt(nonce, secret, self._aad(name, version, context))

        store.put_sealed(self._identifier, name, sealing, node)

    def get(self, store: Store, name: str, context: bytes = b"") -> bytes | None:
        """The secret, or None where there is none. TrustError where the record was changed, or is
        that of another name, version, identity or context."""
        found = store.sealed(self._identifier, name)
        return None if found is None else self._opened(name, found, context)

    def delete(self, store: Store, name: str) -> None:
        store.remove_sealed(self._identifier, name)

    def names(self, store: Store) -> list[str]:
        return store.sealed_names(self._identifier)

    def _opened(self, name: str, found: SealedRecord, context: bytes) -> bytes:
        nonce, box = found.record[:NONCE], found.record[NONCE:]
        try:
            if len(box) < TAG:
                raise InvalidTag
            return self._cipher.decrypt(nonce, box, self._aad(name, found.version, context))
        except InvalidTag:
            raise TrustError(
                f"the sealed record {name} of {self._identifier} does not open: it was changed",
                hint="restore the home from a backup, or make again what was kept in the record",
            ) from None

    def _aad(self, name: str, version: int, context: bytes) -> bytes:
        return cbor.encode(["record", FORMAT, self._identifier, name, version, context])


# -- the data key


async def unlock(
    store: StoreThread, keyring: Keyring, home: Home, identity: Identity, ask: Ask | None = None
) -> Sealed:
    """The Sealed of a node's identity; its data key is made if there is none. Raises what the vault
    that sealed it raises: DeviceGone while that is a token and away."""
    identifier, vault = identity.record.identifier, keyring.vault
    found = await store.call(Store.data_key, identifier)
    if found is None:
        otherwise = await store.call(_otherwise, home)
        made = await keyring.run(_new, vault, otherwise, home, identifier, ask)
        found = await store.call(Store.add_data_key, identifier, *made)
    return Sealed(identifier, await keyring.run(_unsealed, found, vault, home, identifier, ask))


def open_sealed(
    store: Store, vault: Vault, home: Home, identity: Identity, ask: Ask | None = None
) -> Sealed:
    """The same, for a command; `vault` is that of the identity."""
    identifier = identity.record.identifier
    found = store.data_key(identifier)
    if found is None:
        made = _new(vault, _otherwise(store, home), home, identifier, ask)
        found = store.add_data_key(identifier, *made)
    return Sealed(identifier, _unsealed(found, vault, home, identifier, ask))


def reseal(
    store: Store,
    home: Home,
    identity: Identity,
    old: Vault,
    new: Vault | None = None,
    ask: Ask | None = None,
) -> DataKeyRecord | None:
    """Have the data key sealed anew: by `new`, the vault that the identity is in from now on, or once
    more by the one it is in, which may have got a seal key. Records stay as they are. None where
    nothing was sealed for the identity yet."""
    identifier = identity.record.identifier
    found = store.data_key(identifier)
    if found is None:
        return None
    key = _unsealed(found, old, home, identifier, ask)
    made = _sealed(key, new or old, _otherwise(store, home), home, identifier, ask)
    store.replace_data_key(identifier, found, *made)
    return store.data_key(identifier)


def provision(
    store: Store, home: Home, record: VaultRecord, ask: Ask | None = None
) -> tuple[str, list[str]]:
    """Make the seal key of a vault: how it seals, and the identities whose data key it has sealed now
    and another vault had before. Raises Unsupported where it cannot seal at all."""
    vault = open_vault(record.uri, ask, state_dir=home.root)
    try:
        if not isinstance(vault, Provisions):
            raise Unsupported(f"the vault {record.name} cannot seal")
        suite = vault.provision()
        names = []
        for one in store.identities():
            found = store.data_key(one.identifier) if one.vault == record.name else None
            if found is not None and found.uri is not None:
                reseal(store, home, load(store, one.name), vault, ask=ask)
                names.append(one.name)
        return suite, names
    finally:
        vault.close()


def _otherwise(store: Store, home: Home) -> str:
    """Who seals where the vault of the identity cannot: a software vault that has a name, the default
    one first, or that of the home."""
    vaults = sorted(store.vaults(), key=lambda vault: not vault.is_default)
    software = [vault.uri for vault in vaults if vault.uri.startswith("software:")]
    return software[0] if software else home.vault_uri


def _new(
    vault: Vault, otherwise: str, home: Home, identifier: str, ask: Ask | None
) -> DataKeyRecord:
    return _sealed(os.urandom(KEY), vault, otherwise, home, identifier, ask)


def _sealed(
    key: bytes, vault: Vault, otherwise: str, home: Home, identifier: str, ask: Ask | None
) -> DataKeyRecord:
    """By the vault of the identity, or by the other one where that has nothing to seal with. One that
    is away or locked is not passed by: it is an error."""
    try:
        return DataKeyRecord(None, _seals(vault).seal(key, _aad(identifier)))
    except (NoSealKey, Unsupported) as error:
        log.warning(
            "secrets of %s are sealed by %s, because %s",
            identifier,
            otherwise,
            error,
            extra=event("sealed-elsewhere", error),
        )
    with _opened(otherwise, home, ask) as other:
        return DataKeyRecord(otherwise, other.seal(key, _aad(identifier)))


def _unsealed(
    found: DataKeyRecord, vault: Vault, home: Home, identifier: str, ask: Ask | None
) -> bytes:
    if found.uri is None:
        return _seals(vault).unseal(found.sealed, _aad(identifier))
    with _opened(found.uri, home, ask) as other:
        return other.unseal(found.sealed, _aad(identifier))


@contextmanager
def _opened(uri: str, home: Home, ask: Ask | None) -> Iterator[Seals]:
    vault = open_vault(uri, ask, state_dir=home.root)
    try:
        yield _seals(vault)
    finally:
        vault.close()


def _seals(vault: Vault) -> Seals:
    if not isinstance(vault, Seals):
        raise Unsupported("this vault cannot seal")
    return vault


def _aad(identifier: str) -> bytes:
    return cbor.encode(["data key", FORMAT, identifier])
