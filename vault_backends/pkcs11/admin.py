"""The keys in a token, for the person who looks after it: what is there, made once, deleted once.

Every function may be called again after a power cut or by mistake: a key that is there is shown, one
that is gone is gone, and none is ever replaced."""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import pkcs11
from pkcs11 import Attribute, ObjectClass

from vault_backends.pkcs11 import points
from vault_backends.pkcs11.objects import destroy, kind_of, read, search
from vault_backends.pkcs11.token import TokenLogin
from vault_backends.pkcs11.vault import Pkcs11Vault
from vault_backends.uri import Pkcs11Uri, unparse
from vault_backends.vault import Exists, Kind, Misconfigured, TokenState, Unsupported

_SHOWN = {
    "sensitive": Attribute.SENSITIVE,
    "extractable": Attribute.EXTRACTABLE,
    "never extractable": Attribute.NEVER_EXTRACTABLE,
    "made here": Attribute.LOCAL,
}


@dataclass(frozen=True)
class KeyRecord:
    """A private or secret key as the token shows it."""

    label: str
    id: str
    """CKA_ID in hexadecimal digits."""
    kind: str
    """ed25519, p256, or the token's word for any other."""
    usable: bool
    """Whether an identity can sign with it."""
    attributes: dict[str, bool | None]
    public: str
    """The public key in hexadecimal digits; empty where the token shows none."""
    uri: str


class Made(NamedTuple):
    record: KeyRecord
    fresh: bool
    """False: it was there already."""


def keys(login: TokenLogin) -> list[KeyRecord]:
    """All private and secret keys, also those that identities cannot use. Where the URI names an
    object or an id, only those."""
    with login.logged_in() as first:
        private, session = search(first, ObjectClass.PRIVATE_KEY), first
        if not private and not login.view_is_good():
            session = login.renew()
            private = search(session, ObjectClass.PRIVATE_KEY)
        public = search(session, ObjectClass.PUBLIC_KEY)
        records = [_record(login, one, public) for one in private]
        records += [_record(login, one, []) for one in search(session, ObjectClass.SECRET_KEY)]
    uri = login.uri
    return [
        one
        for one in records
        if uri.object in (None, one.label) and (uri.id is None or uri.id.hex() == one.id)
    ]


def create_key(vault: Pkcs11Vault, label: str, kind: Kind | None) -> Made:
    """A key of this label, made in the token unless it is there. Exists if the label belongs to a
    key of another kind; without a `kind`, any that is there will do."""
    there = [one for one in keys(vault.login) if one.label == label]
    if len(there) > 1:
        raise Misconfigured(
            f"{vault.login.name} has {len(there)} keys {label!r}: {listed(there)}",
            hint="say which one by its URI",
        )
    if there:
        return Made(_same(vault, there[0], kind), fresh=False)
    vault.generate(kind or _preferred(vault), label)
    made = [one for one in keys(vault.login) if one.label == label]
    return Made(made[0], fresh=True)


def delete_key(login: TokenLogin, label: str) -> KeyRecord | None:
    """Delete the pair of this label, and what a power cut left of it; None when there was none.
    Misconfigured if several have the label and the URI names no id."""
    there = [one for one in keys(login) if one.label == label]
    if len(there) > 1:
        raise Misconfigured(
            f"{login.name} has {len(there)} keys {label!r}: {listed(there)}",
            hint="say which one by its URI, with id=",
        )
    with login.logged_in() as session:
        for one in _pair(session, there[0] if there else None, label):
            destroy(one)
    return there[0] if there else None


def listed(records: list[KeyRecord]) -> str:
    """The URIs to choose from, one a line, ready for a shell."""
    return "".join(f"\n    '{one.uri}'" for one in records)


def exact(uri: Pkcs11Uri, state: TokenState) -> Pkcs11Uri:
    """The URI, with what tells this token from others; a serial of zeros tells nothing."""
    serial = state.serial if state.serial.strip("0 ") else None
    return replace(uri, token=state.label or None, serial=serial)


def key_uri(login: TokenLogin, label: str, key_id: bytes = b"") -> str:
    """The whole URI of a key."""
    return unparse(replace(exact(login.uri, login.state), object=label or None, id=key_id or None))


def _pair(session: Any, record: KeyRecord | None, label: str) -> list[Any]:
    """The private part first: without it the rest is of no use to anyone. Other keys may have the same
    id: what is deleted has the label too, or the very public key. Without a private key, the public
    one of the label that a power cut left."""
    named = [
        one
        for what in (ObjectClass.PRIVATE_KEY, ObjectClass.SECRET_KEY, ObjectClass.PUBLIC_KEY)
        for one in search(session, what, label=label)
        if record is None or (read(one, Attribute.ID) or b"").hex() == record.id
    ]
    if record is None or not record.public:
        return named
    kind = Kind(record.kind)
    return named + [
        one
        for one in search(session, ObjectClass.PUBLIC_KEY, id=bytes.fromhex(record.id))
        if read(one, Attribute.LABEL) != label
        and (points.point(kind, read(one, Attribute.EC_POINT) or b"") or b"").hex() == record.public
    ]


def _same(vault: Pkcs11Vault, there: KeyRecord, kind: Kind | None) -> KeyRecord:
    if not there.usable or (kind is not None and there.kind != kind.value):
        raise Exists(
            f"{vault.login.name} has a key {there.label!r} already, of the kind {there.kind}",
            hint="choose another label; a key is never replaced",
        )
    for key in vault.keys():  # noqa: SIM118 - not a map
        if key.label == there.label:
            vault.public(key)  # refuses one that can be read out, or has no public key
    return there


def _preferred(vault: Pkcs11Vault) -> Kind:
    for kind in (Kind.ED25519, Kind.P256):
        if kind in vault.kinds:
            return kind
    raise Unsupported(f"{vault.login.name} can make no kind of key that identities use")


def _record(login: TokenLogin, found: Any, public: list[Any]) -> KeyRecord:
    kind = kind_of(found)
    label, key_id = read(found, Attribute.LABEL) or "", read(found, Attribute.ID) or b""
    return KeyRecord(
        label=label,
        id=key_id.hex(),
        kind=kind.value if kind else _word(found),
        usable=kind is not None and read(found, Attribute.SIGN) is not False,
        attributes={name: read(found, one) for name, one in _SHOWN.items()},
        public=_public(kind, key_id, label, public).hex() if kind else "",
        uri=key_uri(login, label, key_id),
    )


def _public(kind: Kind, key_id: bytes, label: str, public: list[Any]) -> bytes:
    for one in public:
        wanted, by = (key_id, Attribute.ID) if key_id else (label, Attribute.LABEL)
        if kind_of(one) is kind and read(one, by) == wanted:
            return points.point(kind, read(one, Attribute.EC_POINT) or b"") or b""
    return b""


def _word(found: Any) -> str:
    try:
        return str(read(found, Attribute.KEY_TYPE).name).lower()
    except (AttributeError, pkcs11.PKCS11Error):
        return "unknown"
