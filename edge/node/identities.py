"""Identities of ours: made, taken over and deleted, with the key in a vault and the rest in the store.

The order of steps is the point. The name and the key are written down before the key is made, and a key
is written down as going before it is destroyed: after a power cut between any two steps the next
command finishes what was begun, without a second key (keys.py). Rotation is rotation.py.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

from edge.errors import ConfigError
from edge.events import event
from edge.identity.history import ChangeHistory, create
from edge.identity.statement import KeyStatement, state
from edge.node.clock import identity_validity
from edge.node.home import Home, check_name
from edge.node.keys import (
    Ask,
    Identity,
    abandon,
    changing,
    check_held,
    check_present,
    check_token,
    choose_kind,
    destroy,
    find,
    log,
    make,
    opened,
    place,
    public_of,
    settle,
    signer,
    try_to_settle,
)
from edge.node.store import IdentityRecord, Store, Taken, UnsettledKey, VaultRecord
from vault_backends.uri import SoftwareUri, parse
from vault_backends.vault import Attests, Key, Kind, NotFound, Vault

DEFAULT_VAULT = "default"
_OBJECT = re.compile(r"(?<=[:;])object=([^;?]*);?")


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
    history: ChangeHistory | None = None,
    now: int,
    ask: Ask | None = None,
) -> IdentityRecord:
    """A new identity; or with `history` one that exists, whose key must be in the vault. `vault` is the
    name of a vault or a URI, which may say `object=LABEL`: then that is the label of the key, and a key
    that is there already is taken. One whose making was interrupted is finished with the same key."""
    check_name("an identity", name)
    with changing(home):
        if any(one.name == name for one in store.identities()):
            raise Taken(f"an identity named {name} exists already", hint="choose another name")
        begun = _begun(store, name)
        uri, label = _split(vault) if vault is not None and ":" in vault else (None, None)
        chosen = _vault(store, home, _named(vault, uri, begun), uri)
        _check_begun(begun, chosen, kind)
        with opened(chosen.uri, ask, home) as held:
            settle(store, held, chosen.name, name, current=None)
            if history is not None:
                return _taken_over(store, chosen, held, name, history)
            there = _there(held, label) if label and not begun else None
            key = there or _new_key(held, begun, kind, label or f"ockam-{name}")
            if there is None:
                make(store, held, chosen, name, key)
            else:
                _keep_vault(store, chosen)
            try:
                return _store(store, chosen, held, key, name, _history(held, key, now))
            except BaseException:
                if there is None:
                    abandon(store, held, chosen.name, name, key)
                raise


def delete_identity(
    store: Store, home: Home, name: str, *, keep_key: bool = False, ask: Ask | None = None
) -> None:
    """Forget the identity, and destroy its key unless it is to be kept; also one whose making was
    interrupted. The vault is opened first: no token, no deletion."""
    with changing(home):
        begun = _begun(store, name)
        if begun is not None:
            with opened(store.vault(begun.vault).uri, ask, home) as held:
                return destroy(store, held, begun)
        record = store.identity(name)
        if keep_key:
            return store.remove_identity(name)
        with opened(store.vault(record.vault).uri, ask, home) as held:
            check_present(held)
            check_token(held, load(store, name))
            if not _is_there(held, Key(Kind(record.kind), record.label)):
                log.warning(
                    "the key %s of %s was gone already", record.label, name, extra=event("key-left")
                )
            store.remove_identity(name, key_goes=True)
            return try_to_settle(store, held, record.vault, name)


def repair_identities(store: Store, home: Home, ask: Ask | None = None) -> list[UnsettledKey]:
    """Delete the keys that interrupted rotations and deletions left; what is still left after that."""
    with changing(home):
        for name, where in dict.fromkeys((row.identity, row.vault) for row in store.unsettled()):
            known = any(one.name == name for one in store.identities())
            current = load(store, name) if known else None
            with opened(store.vault(where).uri, ask, home) as held:
                settle(store, held, where, name, current=current)
        return store.unsettled()


def attest_key(
    identity: Identity, home: Home, *, nonce: bytes, now: int, ask: Ask | None = None
) -> KeyStatement:
    """What the vault says of the key, signed by that key for whoever chose the nonce."""
    with opened(identity.uri, ask, home) as held:
        check_held(held, identity)
        said = held.describe(identity.key) if isinstance(held, Attests) else {}
        return state(
            identity.history,
            signer(held, identity.key),
            {"kind": identity.key.kind.value, "label": identity.key.label, **said},
            nonce=nonce,
            now=now,
        )


# -- vaults


def add_vault(store: Store, home: Home, name: str, uri: str | None = None) -> VaultRecord:
    """A vault by name; without a URI a software vault of its own in the home."""
    check_name("a vault", name)
    wanted = uri or _own_uri(home, name)
    parse(wanted)
    return store.add_vault(name, wanted)


def _vault(store: Store, home: Home, name: str | None, uri: str | None) -> VaultRecord:
    """The vault to make a key in. A new one is written down with the first key, not here."""
    known = store.vaults()
    if uri is not None:
        found = next((vault for vault in known if vault.uri == uri), None)
        return found or VaultRecord(_free_name(store, uri), uri, False)
    default = store.default_vault() if name is None else None
    if default is not None:
        return default
    wanted = name or DEFAULT_VAULT
    found = next((vault for vault in known if vault.name == wanted), None)
    return found or VaultRecord(wanted, _own_uri(home, name), False)


def _named(vault: str | None, uri: str | None, begun: UnsettledKey | None) -> str | None:
    """The name of the vault that is meant: where nothing is said, that of an interrupted attempt."""
    if uri is not None:
        return None
    return vault or (begun.vault if begun else None)


def _own_uri(home: Home, name: str | None) -> str:
    """A software vault in the home."""
    if name is None:
        return home.vault_uri
    check_name("a vault", name)
    return home.vault_uri.removesuffix("vault.sealed") + f"vault-{name}.sealed"


def _keep_vault(store: Store, chosen: VaultRecord) -> None:
    if all(vault.name != chosen.name for vault in store.vaults()):
        store.add_vault(chosen.name, chosen.uri)


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


# -- how


def _begun(store: Store, name: str) -> UnsettledKey | None:
    """The key of an identity whose making was interrupted."""
    if any(one.name == name for one in store.identities()):
        return None
    return next((row for row in store.unsettled(name) if row.what == "making"), None)


def _check_begun(begun: UnsettledKey | None, chosen: VaultRecord, kind: str | None) -> None:
    """Another attempt that wants another key would leave the first one."""
    if begun is None or (begun.vault == chosen.name and kind in (None, begun.kind)):
        return
    raise ConfigError(
        f"the making of {begun.identity} was interrupted, with a {begun.kind} key in the vault"
        f" {begun.vault}",
        hint=f"finish it without --vault and --kind, or ockam-edge identity delete {begun.identity}",
    )


def _new_key(held: Vault, begun: UnsettledKey | None, kind: str | None, label: str) -> Key:
    if begun is not None:
        return Key(Kind(begun.kind), begun.label)
    return Key(choose_kind(held, kind), label)


def _there(vault: Vault, label: str) -> Key | None:
    return next((key for key in vault.keys() if key.label == label), None)  # noqa: SIM118


def _is_there(vault: Vault, key: Key) -> bool:
    """Raises VaultError where the vault does not open."""
    try:
        vault.public(key)
    except NotFound:
        return False
    return True


def _history(held: Vault, key: Key, now: int) -> ChangeHistory:
    valid_from, valid_until = identity_validity(now)
    return create(
        public_of(held, key), signer(held, key), valid_from=valid_from, valid_until=valid_until
    )


def _taken_over(
    store: Store, chosen: VaultRecord, held: Vault, name: str, history: ChangeHistory
) -> IdentityRecord:
    """An identity whose history came from elsewhere, after the disk was lost and the token was not."""
    if _begun(store, name):
        raise Taken(
            f"the making of {name} was interrupted", hint="choose another name, or delete it"
        )
    history.verify()
    key = find(held, history.latest.key)
    _keep_vault(store, chosen)
    return _store(store, chosen, held, key, name, history)


def _store(
    store: Store, chosen: VaultRecord, held: Vault, key: Key, name: str, history: ChangeHistory
) -> IdentityRecord:
    where = place(held, chosen.uri)
    return store.add_identity(
        name,
        identifier=str(history.identifier),
        vault=chosen.name,
        kind=key.kind.value,
        label=key.label,
        history=history.encoded,
        serial=where.serial,
        module=where.module,
    )
