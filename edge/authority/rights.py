"""Who may ask what of an authority (05 §1.2). Pure decisions about attributes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from edge.authority.registry import Member

ROLE, ENROLLER = "ockam-role", "enroller"
RELAY = "ockam-relay"
PROJECT = "project"
"""In a credential of the account authority: its subject is an admin of that project."""
TRUST_CONTEXT = "trust_context_id"
RESERVED = ("identifier", "has_credential")
"""What policies know of everybody: no attribute may pass for it (05 §3.5)."""
MAX_NAME = 256


class Rights(NamedTuple):
    """Of one caller."""

    member: bool = False
    enroller: bool = False
    admin: bool = False
    account: bool = False
    """By a credential of the account authority, not by membership."""


def rights(member: Member | None, *, account: bool, account_only: bool) -> Rights:
    """`account`: the caller has shown the account authority's credential for this project;
    `account_only`: nobody else is an admin."""
    if account:
        return Rights(True, True, True, True)
    enroller = member is not None and is_enroller(member.attributes)
    return Rights(member is not None, enroller, enroller and not account_only)


def is_enroller(attributes: Mapping[bytes, bytes] | Mapping[str, str]) -> bool:
    wanted = (ROLE, ENROLLER)
    return any((_text(name), _text(value)) == wanted for name, value in attributes.items())


def unfit(attributes: Mapping[str, str]) -> str | None:
    """Why these attributes may not be given to a member; None where they may."""
    for name in attributes:
        if name in RESERVED:
            return f"the attribute name {name} is reserved"
        if (
            not name
            or len(name) > MAX_NAME
            or not name.isprintable()
            or any(c.isspace() for c in name)
        ):
            return f"the attribute name {name[:40]!r} is not usable in policies"
    return None


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", "replace")
