"""The keys of our identities: made, compared with what was pinned, and cleaned up.

A key is written down before it is made and until it is gone (`unsettled` in the store), so that after a
power cut at any moment a key that belongs to no identity can be found. The rule that goes before all
others: a key that an identity has is never deleted here.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import NamedTuple

from edge.errors import ConfigError, EdgeError
from edge.events import event
from edge.identity.history import ChangeHistory
from edge.identity.keys import KeyKind, PublicKey, Sign
from edge.node.home import Home
from edge.node.store import IdentityRecord, Store, UnsettledKey, VaultRecord
from vault_backends import open_vault
from vault_backends.uri import SoftwareUri, parse
from vault_backends.vault import (
    Exists,
    Key,
    Kind,
    Misconfigured,
    NotFound,
    Pins,
    Refused,
    Token,
    Vault,
    VaultError,
)

log = logging.getLogger("edge.identities")

Ask = Callable[[str], str | None]
PATIENCE = 60.0
"""Seconds to wait for another command that changes identities; it may be asking for a PIN."""


class Identity(NamedTuple):
    """An identity of ours, ready to be used: `uri` opens the vault that holds `key`."""

    record: IdentityRecord
    history: ChangeHistory
    key: Key
    uri: str

    @property
    def name(self) -> str:
        return self.record.name


class Place(NamedTuple):
    """Which token a key is in, and by which module: empty for a file."""

    serial: str
    module: str


@contextmanager
def changing(home: Home, *, patience: float = PATIENCE) -> Iterator[None]:
    """Only one process at a time makes, rotates or deletes identities of a home: the kernel lets go of
    this lock when the process is killed. Raises ConfigError when `patience` seconds are over."""
    fd = os.open(home.root / "identities.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    until = time.monotonic() + patience
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise ConfigError(
                        "another command is changing identities",
                        hint="wait until it is done, or end it",
                    ) from None
                time.sleep(0.05)
        yield
    finally:
        os.close(fd)


@contextmanager
def opened(uri: str, ask: Ask | None, home: Home) -> Iterator[Vault]:
    """A vault for the length of a `with`."""
    vault = open_vault(uri, ask, state_dir=home.root)
    try:
        yield vault
    finally:
        vault.close()


# -- a key


def choose_kind(vault: Vault, wanted: str | None) -> Kind:
    """Ed25519 where the vault has it: it is what stock identities use."""
    held = ", ".join(sorted(vault.kinds))
    if wanted is not None:
        if wanted not in set(Kind):
            raise ConfigError(f"{wanted!r} is no kind of key", hint="use ed25519 or p256")
        if Kind(wanted) not in vault.kinds:
            raise ConfigError(f"this vault cannot hold {wanted} keys", hint=f"it can: {held}")
        return Kind(wanted)
    for kind in (Kind.ED25519, Kind.P256):
        if kind in vault.kinds:
            return kind
    raise ConfigError("this vault can hold no kind of key that identities use", hint=held)


def public_of(vault: Vault, key: Key) -> PublicKey:
    return PublicKey(KeyKind(key.kind.value), vault.public(key))


def signer(vault: Vault, key: Key) -> Sign:
    return partial(vault.sign, key)


def place(vault: Vault, uri: str) -> Place:
    """Where `vault` is now. Raises VaultError when its token is away."""
    parsed = parse(uri)
    if isinstance(parsed, SoftwareUri) or not isinstance(vault, Token):
        return Place("", "")
    return Place(vault.state().serial, parsed.module_path)


def pin(vault: Vault, identity: Identity) -> None:
    """Whatever the vault is asked for from now on, no other token is given the PIN, and no other key
    signs as this identity. Nothing is asked of the token for it."""
    if isinstance(vault, Pins):
        vault.pin(identity.key, identity.history.latest.key.value, identity.record.serial)


def check_present(vault: Vault) -> None:
    """Raise NotFound or DeviceGone where the token is not there: that it shows no key says nothing."""
    if isinstance(vault, Token) and not vault.state().present:
        vault.probe()


def check_token(vault: Vault, identity: Identity) -> None:
    """Raise Refused where another token is there than the one that the key was made in. Without the
    PIN, which that one need not be told."""
    record = identity.record
    there = place(vault, identity.uri).serial
    if record.serial and there and there != record.serial:
        raise Refused(
            f"the key of identity {record.name} was made in the token with serial {record.serial},"
            f" and the token that is there has serial {there}",
            hint="put the first token back; if it is lost, so is the identity: make a new one",
        )


def check_held(vault: Vault, identity: Identity) -> None:
    """Raise Refused unless the vault holds the key of the identity, in the token that it was made in.
    What is compared was pinned when the key was made: its public half, and the token's serial number.
    DeviceGone and NotFound stay what they are: an absent token is not an exchanged one."""
    check_token(vault, identity)
    record, key = identity.record, identity.key
    if public_of(vault, key) != identity.history.latest.key:
        raise Refused(
            f"the key {key.label!r} in the vault is not the key of identity {record.name}",
            hint="the token or the key was exchanged; put the right one back, or make a new identity",
        )


# -- made, and cleaned up


def make(store: Store, vault: Vault, where: VaultRecord, name: str, key: Key) -> None:
    """Make a key for the identity `name`: written down first. Where it is written down already, an
    earlier attempt was interrupted; a key which that left is taken, and half a one replaced."""
    row = UnsettledKey(name, where.name, key.kind.value, key.label, "making")
    if row not in store.unsettled(name):
        _refuse_taken(vault, key)
        store.reserve_key(row, where)
    elif _works(vault, key):
        return
    else:
        with suppress(NotFound):
            vault.delete(key)  # half a pair is nobody's key, and keeps the label
    try:
        vault.generate(key.kind, key.label)
    except Exists:  # somebody else's, since a moment ago
        store.settle_key(row)
        raise
    except BaseException:
        abandon(store, vault, where.name, name, key)
        raise


def _refuse_taken(vault: Vault, key: Key) -> None:
    """Before the key is written down as ours: one that has its label is somebody else's."""
    if any(one.label == key.label for one in vault.keys()):  # noqa: SIM118 - not a map
        raise Exists(
            f"the vault has a key {key.label!r} already, which belongs to no identity here",
            hint="choose another name for the identity; to use that key, say object=LABEL in the URI",
        )


def _works(vault: Vault, key: Key) -> bool:
    try:
        vault.public(key)
    except (NotFound, Refused):
        return False
    return True


def abandon(store: Store, vault: Vault, where: str, name: str, key: Key) -> None:
    """What was begun did not succeed: delete the new key, unless the store has come to count on it."""
    try:
        if not _in_use(store, where, key.label):
            destroy(store, vault, UnsettledKey(name, where, key.kind.value, key.label, "making"))
    except (VaultError, EdgeError) as error:
        log.warning(
            "the key %s could not be deleted: %s; it is remembered",
            key.label,
            error,
            extra=event("key-left", error),
        )


def destroy(store: Store, vault: Vault, row: UnsettledKey) -> None:
    """Delete a key of no identity, and forget that it was there. Not where its token is away."""
    check_present(vault)
    with suppress(NotFound):
        vault.delete(Key(Kind(row.kind), row.label))
    store.settle_key(row)


def settle(
    store: Store, vault: Vault, where: str, name: str, *, current: Identity | None
) -> list[str]:
    """Delete the keys that interrupted changes of the identity `name` left in this vault; their labels.
    `current` is the identity as it is stored: its key must be there and right before any other goes.
    A key that was made for an identity that is not there yet stays, for `identity create` to take."""
    rows = [row for row in store.unsettled(name) if row.vault == where]
    if current is None:
        rows = [row for row in rows if row.what == "going"]
    elif rows:
        check_held(vault, current)
    for row in rows:
        if not _in_use(store, where, row.label):
            destroy(store, vault, row)
    return [row.label for row in rows]


def try_to_settle(
    store: Store, vault: Vault, where: str, name: str, *, current: Identity | None = None
) -> None:
    """The same where nothing depends on it; a failure is said, and tried again another time."""
    try:
        settle(store, vault, where, name, current=current)
    except (VaultError, EdgeError) as error:
        left = ", ".join(row.label for row in store.unsettled(name))
        log.warning(
            "the key %s could not be deleted: %s; ockam-edge identity repair tries it again",
            left,
            error,
            extra=event("key-left", error),
        )


def _in_use(store: Store, where: str, label: str) -> bool:
    return any((one.vault, one.label) == (where, label) for one in store.identities())


def find(vault: Vault, public: PublicKey) -> Key:
    """The key in the vault whose public half is `public`. Raises Misconfigured where there is none."""
    for key in vault.keys():  # noqa: SIM118 - not a map
        with suppress(NotFound, Refused):
            if public_of(vault, key) == public:
                return key
    raise Misconfigured(
        "the vault does not hold the key of this history's latest change",
        hint="name the vault or token that the key is in; a key cannot be brought in from outside",
    )
