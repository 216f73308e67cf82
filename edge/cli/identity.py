"""`identity`: who this machine is."""

from typing import TYPE_CHECKING, Any

import click

from edge.cli import local
from edge.cli.arguments import Name
from edge.cli.main import Noun
from edge.cli.output import Result, confirm, done, listing
from edge.cli.resource import all_option, unnamed, yes_option
from edge.errors import ConfigError

if TYPE_CHECKING:
    from edge.identity.history import Change, ChangeHistory
    from edge.node.store import IdentityRecord

NAME = Name("identity")
KINDS = click.Choice(["ed25519", "p256"])
SHOWN_KINDS = {"ed25519": "EdDSACurve25519", "p256": "ECDSASHA256CurveP256"}
NONE = "there is no identity"


@click.group("identity", cls=Noun)
def identity() -> None:
    """Identities: keys with a history that others can verify."""


@identity.command()
@click.argument("name", type=NAME, required=False)
@click.option(
    "--vault", metavar="NAME|URI", help="Where the key is made; without it, the default vault."
)
@click.option("--kind", type=KINDS, help="The kind of key; without it, what the vault can do.")
def create(name: str | None, vault: str | None, kind: str | None) -> Result:
    """Make an identity, its key inside the vault."""
    from edge.node.clock import Clock  # noqa: PLC0415
    from edge.node.identities import create_identity  # noqa: PLC0415

    with local.store() as store:
        made = create_identity(
            store,
            local.home(),
            name or _free([record.name for record in store.identities()]),
            vault=vault,
            kind=kind,
            now=Clock(floor=store.time_floor()).now(),
            ask=local.ask,
        )
    text = done(f"identity {made.name}: {made.identifier}")
    return Result(text=text, machine=made.identifier, json={"identifier": made.identifier})


def _free(taken: list[str]) -> str:
    """`default`, or a random name where that is taken."""
    import os  # noqa: PLC0415

    return "default" if "default" not in taken else f"identity-{os.urandom(4).hex()}"


@identity.command()
@click.argument("name", type=NAME, required=False)
@click.option("-f", "--full", is_flag=True, help="The whole change history.")
@click.option(
    "--encoding", type=click.Choice(["plain", "hex"]), help="Of the history; needs --full."
)
def show(name: str | None, full: bool, encoding: str | None) -> Result:
    """The identifier, or the change history."""
    if encoding and not full:
        raise click.UsageError("--encoding needs --full")
    with local.store() as store:
        if not store.identities():
            return Result(text=f"    {NONE}", json=[])
        record = store.identity(name) if name else store.default_identity()
    if record is None:
        raise ConfigError("which identity?", hint="name one; ockam-edge identity list shows them")
    if not full:
        return Result(
            text=record.identifier,
            machine=record.identifier,
            json={"identifier": record.identifier},
        )
    if encoding == "hex":
        return Result(
            text=record.history.hex(),
            json={"encoded": record.history.hex()},
            machine=record.history.hex(),
        )
    return _full(record)


def _full(record: "IdentityRecord") -> Result:
    from edge.identity.history import ChangeHistory  # noqa: PLC0415  (cryptography)

    history = ChangeHistory.decode(record.history)
    changes = [_change(history, change) for change in history.changes]
    text = f"Identifier: {record.identifier}"
    for number, change in enumerate(changes):
        pairs = "\n".join(f"    {key}: {_word(value)}" for key, value in change.items())
        text += f"\n  Change[{number}]:\n{pairs}"
    return Result(
        text=text, machine=text, json={"identifier": record.identifier, "changes": changes}
    )


def _change(history: "ChangeHistory", change: "Change") -> dict[str, Any]:
    return {
        "identifier": bytes(change.hash).hex(),
        "primary_public_key": f"{SHOWN_KINDS[change.key.kind.value]}: {change.key.value.hex()}",
        "revoke_all_purpose_keys": bool(change.revoke),
    }


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


@identity.command("list")
def list_() -> Result:
    """All identities."""
    with local.store() as store:
        records = store.identities()
    items = [
        {
            "identifier": record.identifier,
            "name": record.name,
            "vault_name": record.vault,
            "is_default": record.is_default,
        }
        for record in records
    ]
    return listing(
        items,
        lambda item: (
            f"{item['name']}: {item['identifier']}{' (default)' if item['is_default'] else ''}"
        ),
        NONE,
    )


@identity.command()
@click.argument("name", type=NAME, required=False)
def default(name: str | None) -> Result:
    """Show the default identity, or make NAME the default."""
    with local.store() as store:
        if name:
            store.make_default_identity(name)
            return Result(text=done(f"{name} is the default identity"), machine=name)
        record = store.default_identity()
    if record is None:
        raise ConfigError(NONE, hint="make one: ockam-edge identity create NAME")
    return Result(text=record.name)


@identity.command()
@click.argument("name", type=NAME)
@click.option("--kind", type=KINDS, help="The kind of the new key.")
@yes_option
def rotate(name: str, kind: str | None, yes: bool) -> Result:
    """Give an identity a new key, announced by the old one, which is destroyed."""
    from edge.node.clock import Clock  # noqa: PLC0415
    from edge.node.identities import rotate_identity  # noqa: PLC0415

    with local.store() as store:
        store.identity(name)
        confirm(f"Replace the key of identity {name}?", yes=yes)
        now = Clock(floor=store.time_floor()).now()
        made = rotate_identity(store, local.home(), name, kind=kind, now=now, ask=local.ask)
    text = done(f"identity {name} has a new key; it is still {made.identifier}")
    return Result(text=text, machine=made.identifier, json={"identifier": made.identifier})


@identity.command()
@click.argument("name", type=NAME, required=False)
@click.option("--keep-key", is_flag=True, help="Leave the key in the vault.")
@all_option
@yes_option
def delete(name: str | None, keep_key: bool, all_: bool, yes: bool) -> Result | None:
    """Forget an identity and destroy its key."""
    from edge.node.identities import delete_identity  # noqa: PLC0415

    with local.store() as store:
        records = store.identities()
        if not records:
            return Result(json=[])
        names = [record.name for record in records] if all_ else [name] if name else []
        if not names:
            unnamed("an identity")
            return None
        for one in names:
            store.identity(one)
        what = "Forget" if keep_key else "Forget, and destroy the key of,"
        confirm(f"{what} identity {', '.join(names)}?", yes=yes)
        for one in names:
            delete_identity(store, local.home(), one, keep_key=keep_key, ask=local.ask)
    text = "\n".join(done(f"identity {one} is deleted") for one in names)
    items = [{"name": one} for one in names]
    return Result(text=text, machine="\n".join(names), json=items[0] if len(items) == 1 else items)
