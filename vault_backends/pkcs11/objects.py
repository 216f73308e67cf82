"""Objects in a token: searching them, reading them, and destroying them. Nothing here logs in."""

from contextlib import suppress
from typing import Any, NamedTuple

import pkcs11
from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass

from vault_backends.pkcs11 import points
from vault_backends.vault import Kind

SEAL_LABEL = "ockam-seal"
"""Of the key that seals other secrets; no identity's."""


class Way(NamedTuple):
    """How one kind of key is made and used."""

    key_type: KeyType
    generate: Mechanism
    sign: Mechanism


# P-256 hashes in software everywhere: not every token has ECDSA_SHA256, and all have plain ECDSA.
WAYS = {
    Kind.ED25519: Way(KeyType.EC_EDWARDS, Mechanism.EC_EDWARDS_KEY_PAIR_GEN, Mechanism.EDDSA),
    Kind.P256: Way(KeyType.EC, Mechanism.EC_KEY_PAIR_GEN, Mechanism.ECDSA),
}


def kinds_of(mechanisms: set[Any]) -> frozenset[Kind]:
    """The kinds that a token with these mechanisms makes and signs with."""
    return frozenset(kind for kind, way in WAYS.items() if {way.generate, way.sign} <= mechanisms)


def search(session: pkcs11.Session, what: ObjectClass, **wanted: Any) -> list[Any]:
    """Objects of a class with these attributes (`id=`, `label=`). Search by those alone: tokens
    disagree about everything else. Always the whole list, since an unfinished search blocks the
    session."""
    template: dict[Attribute, Any] = {Attribute.CLASS: what}
    template |= {Attribute[name.upper()]: value for name, value in wanted.items()}
    return list(session.get_objects(template))


def read(found: Any, attribute: Attribute) -> Any:
    """An attribute, or None where the token has none to show (ValueError: "unavailable")."""
    try:
        return found[attribute]
    except (pkcs11.AttributeTypeInvalid, pkcs11.AttributeSensitive, ValueError):
        return None


def kind_of(found: Any) -> Kind | None:
    """None for every key that is not ours to use, also of types python-pkcs11 has no name for."""
    kind = points.curve(read(found, Attribute.EC_PARAMS) or b"")
    return kind if kind and read(found, Attribute.KEY_TYPE) == WAYS[kind].key_type else None


def destroy(found: Any) -> None:
    # On YubiHSM the pair is one object, and went with its first part.
    with suppress(pkcs11.ObjectHandleInvalid):
        found.destroy()
