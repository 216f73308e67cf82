"""Identities of ours: made, rotated and deleted, with the key in a vault and the rest in the store.

The order of steps is the point. A name is checked before a key is made; a key that nothing refers to is
deleted again; an old key goes only after the new history is on the disk.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from functools import partial
from typing import NamedTuple
from urllib.parse import unquote

from edge.errors import ConfigError, EdgeError
from edge.identity.history import ChangeHistory, create
from edge.identity.keys import KeyKind, PublicKey, Sign
from edge.node.clock import identity_validity
from edge.node.home import Home, check_name
from edge.node.store import IdentityRecord, Store, Taken, VaultRecord
from vault_backends import open_vault
from vault_backends.uri import SoftwareUri, parse
from vault_backends.vault import Attests, Key, Kind, NotFound, Vault, VaultError

log = logging.getLogger("edge.identities")

Ask = Callable[[str], str | None]
DEFAULT_VAULT = "default"
_OBJECT = re.compile(r"(?<=[:;])object=([^;?]*);?")


class Identity(NamedTuple):
    """An identity of ours, ready to be used: `uri` opens the vault that holds `key`."""

    record: IdentityRecord
    history: ChangeHistory
    key: Key
    uri: str

    @property
    def name(self) -> str:
        return self.record.name


def load(store: Store, name: str | None = None) -> Identity:
    """The identity `name`, or the default one; its history is verified."""
    record = store.identity(name) if name is not None else store.default_identity()
    if record is None:
        raise ConfigError("there is no identity", hint="make one: ockam-edge identity create NAME")
    history = ChangeHistory.decode(record.history)
    history.verify()
    key = Key(Kind(record.kind), record.label)
    return Identity(record, history, key, store.vault(record.vault).uri)


def create_identity(
    store: Store,
    home: Home,
    name: str,
    *,
    vault: str | None = None,
    kind: str | None = None,
    now: int,
    ask: Ask | None = None,
) -> IdentityRecord:
    """A new identity. `vault` is the name of a vault or a URI, which may say `object=LABEL`: then
    that is the label of the key, and a key that is there already is taken."""
    check_name("an identity", name)
    if any(one.name == name for one in store.identities()):
        raise Taken(f"an identity named {name} exists already", hint="choose another name")
    uri, label = _split(vault) if vault is not None and ":" in vault else (None, None)
    chosen = _vault(store, home, None if uri else vault, uri)
    with _Opened(chosen.uri, ask, home) as opened:
        key, fresh = _key(opened, _kind(opened, kind), label or f"ockam-{name}", adopt=bool(label))
        try:
            return _store_new(store, chosen, opened, key, name, now)
        except BaseException:
            if fresh:
                _discard(opened, key)
            raise


def rotate_identity(
    store: Store,
    home: Home,
    name: str,
    *,
    kind: str | None = None,
    now: int,
    ask: Ask | None = None,
) -> IdentityRecord:
    """Give the identity a new key in the same vault, announced by the old one (02 §3.5)."""
    identity = load(store, name)
    with _Opened(identity.uri, ask, home) as opened:
        label = f"ockam-{name}-{len(identity.history.changes) + 1}"
        wanted = _kind(opened, kind or identity.record.kind)
        new, _ = _key(opened, wanted, label, adopt=False)
        try:
            valid_from, valid_until = identity_validity(now)
            history = identity.history.rotated(
                _public(opened, new),
                _signer(opened, new),
                _signer(opened, identity.key),
                valid_from=valid_from,
                valid_until=valid_until,
            )
            record = store.rotate_identity(
                name, kind=new.kind.value, label=new.label, history=history.encoded
            )
        except BaseException:
            _discard(opened, new)
            raise
        _discard(opened, identity.key)
        return record


def delete_identity(
    store: Store, home: Home, name: str, *, keep_key: bool = False, ask: Ask | None = None
) -> None:
    """Forget the identity, and destroy its key unless it is to be kept. The vault is opened first: a
    missing token must not leave a key that nobody knows of."""
    record = store.identity(name)
    if keep_key:
        store.remove_identity(name)
        return
    with _Opened(store.vault(record.vault).uri, ask, home) as opened:
        key = Key(Kind(record.kind), record.label)
        there = _is_there(opened, key)
        store.remove_identity(name)
        if there:
            opened.delete(key)
        else:
            log.warning("the key %s of %s was gone already", record.label, name)


def describe_key(identity: Identity, home: Home, ask: Ask | None = None) -> dict[str, object]:
    """Where the key is and how it is held, as the vault says."""
    with _Opened(identity.uri, ask, home) as opened:
        if isinstance(opened, Attests):
            return dict(opened.describe(identity.key))
        return {"kind": identity.key.kind.value, "label": identity.key.label}


# -- vaults


def add_vault(store: Store, home: Home, name: str, uri: str | None = None) -> VaultRecord:
    """A vault by name; without a URI a software vault of its own in the home."""
    check_name("a vault", name)
    wanted = uri or home.vault_uri.removesuffix("vault.sealed") + f"vault-{name}.sealed"
    parse(wanted)
    return store.add_vault(name, wanted)


def _vault(store: Store, home: Home, name: str | None, uri: str | None) -> VaultRecord:
    """The vault to make a key in."""
    if uri is not None:
        known = [vault for vault in store.vaults() if vault.uri == uri]
        return known[0] if known else store.add_vault(_free_name(store, uri), uri)
    if name is not None:
        known = [vault for vault in store.vaults() if vault.name == name]
        return known[0] if known else add_vault(store, home, name)
    return store.default_vault() or store.add_vault(DEFAULT_VAULT, home.vault_uri)


def _split(uri: str) -> tuple[str, str | None]:
    """A vault URI without its object, and the object."""
    parse(uri)
    found = _OBJECT.search(uri.partition("?")[0]) if uri.startswith("pkcs11:") else None
    if found is None:
        return uri, None
    whole = (uri[: found.start()] + uri[found.end() :]).replace(";?", "?")
    return whole, unquote(found[1])


def _free_name(store: Store, uri: str) -> str:
    """A name for a vault that was given by URI: that of its token or file."""
    parsed = parse(uri)
    text = parsed.path.stem if isinstance(parsed, SoftwareUri) else parsed.token or "token"
    base = re.sub(r"[^A-Za-z0-9_-]", "-", text)[:48] or "vault"
    taken = {vault.name for vault in store.vaults()}
    names = [base, *(f"{base}-{n}" for n in range(2, len(taken) + 3))]
    return next(name for name in names if name not in taken)


class _Opened:
    """A vault for the length of a `with`."""

    def __init__(self, uri: str, ask: Ask | None, home: Home) -> None:
        self._vault: Vault = open_vault(uri, ask, state_dir=home.root)

    def __enter__(self) -> Vault:
        return self._vault

    def __exit__(self, *_: object) -> None:
        self._vault.close()


# -- keys


def _kind(vault: Vault, wanted: str | None) -> Kind:
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


def _key(vault: Vault, kind: Kind, label: str, *, adopt: bool) -> tuple[Key, bool]:
    """The key of a label, and whether it was made here."""
    if adopt:
        there = [key for key in vault.keys() if key.label == label]  # noqa: SIM118 - not a map
        if there:
            return there[0], False
    return vault.generate(kind, label), True


def _is_there(vault: Vault, key: Key) -> bool:
    """Raises VaultError where the vault does not open."""
    try:
        vault.public(key)
    except NotFound:
        return False
    return True


def _public(vault: Vault, key: Key) -> PublicKey:
    return PublicKey(KeyKind(key.kind.value), vault.public(key))


def _signer(vault: Vault, key: Key) -> Sign:
    return partial(vault.sign, key)


def _store_new(
    store: Store, chosen: VaultRecord, vault: Vault, key: Key, name: str, now: int
) -> IdentityRecord:
    valid_from, valid_until = identity_validity(now)
    history = create(
        _public(vault, key), _signer(vault, key), valid_from=valid_from, valid_until=valid_until
    )
    return store.add_identity(
        name,
        identifier=str(history.identifier),
        vault=chosen.name,
        kind=key.kind.value,
        label=key.label,
        history=history.encoded,
    )


def _discard(vault: Vault, key: Key) -> None:
    """Delete a key that nothing refers to. A failure leaves it there, and is said."""
    try:
        vault.delete(key)
    except (VaultError, EdgeError) as error:
        log.warning("the key %s could not be deleted: %s", key.label, error)
