"""`identity`: who this machine is."""

import time
from typing import TYPE_CHECKING, Any

import click

from edge.cli import client, local
from edge.cli.arguments import Name
from edge.cli.main import Noun
from edge.cli.output import Result, confirm, done, listing, note
from edge.cli.resource import all_option, unnamed, yes_option
from edge.cli.statement import attest, verify_attestation
from edge.errors import ConfigError, EdgeError

if TYPE_CHECKING:
    from edge.identity.history import Change, ChangeHistory
    from edge.node.store import IdentityRecord, Store, UnsettledKey

NAME = Name("identity")
KINDS = click.Choice(["ed25519", "p256"])
SHOWN_KINDS = {"ed25519": "EdDSACurve25519", "p256": "ECDSASHA256CurveP256"}
NONE = "there is no identity"


@click.group("identity", cls=Noun)
def identity() -> None:
    """Identities: keys with a history that others can verify."""


identity.add_command(attest)
identity.add_command(verify_attestation)


@identity.command()
@click.argument("name", type=NAME, required=False)
@click.option(
    "--vault", metavar="NAME|URI", help="Where the key is made; without it, the default vault."
)
@click.option("--kind", type=KINDS, help="The kind of key; without it, what the vault can do.")
@click.option(
    "--identity", "exported", metavar="HEX",
    help="Take over this identity, as exported: its key is in the vault.",
)  # fmt: skip
def create(name: str | None, vault: str | None, kind: str | None, exported: str | None) -> Result:
    """Make an identity, its key inside the vault; or finish one whose making was interrupted."""
    if exported and kind:
        raise click.UsageError("--identity and --kind exclude each other")
    from edge.node.clock import Clock  # noqa: PLC0415
    from edge.node.identities import create_identity  # noqa: PLC0415

    with local.store() as store:
        there = {record.name for record in store.vaults()}
        made = create_identity(
            store,
            local.home(),
            name or _free([record.name for record in store.identities()]),
            vault=vault,
            kind=kind,
            history=_history(exported) if exported else None,
            now=Clock(floor=store.time_floor()).now(),
            ask=local.ask,
        )
        if vault == made.vault and made.vault not in there:
            note(f"there was no vault {vault}: it was made, {store.vault(vault).uri}")
    text = done(f"identity {made.name}: {made.identifier}")
    return Result(text=text, machine=made.identifier, json={"identifier": made.identifier})


def _history(exported: str) -> "ChangeHistory":
    from edge.identity.history import ChangeHistory  # noqa: PLC0415

    try:
        return ChangeHistory.decode(bytes.fromhex(exported))
    except ValueError:
        raise ConfigError("--identity is not hexadecimal", hint="give what export prints") from None


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
        record = _wanted(store, name)
    if not full:
        return Result(
            text=record.identifier,
            machine=record.identifier,
            json={"identifier": record.identifier},
        )
    if encoding == "hex":
        return _encoded(record, {})
    return _full(record)


def _wanted(store: "Store", name: str | None) -> "IdentityRecord":
    record = store.identity(name) if name else store.default_identity()
    if record is None:
        raise ConfigError("which identity?", hint="name one; ockam-edge identity list shows them")
    return record


def _encoded(record: "IdentityRecord", more: dict[str, Any]) -> Result:
    encoded = record.history.hex()
    return Result(text=encoded, machine=encoded, json={**more, "encoded": encoded})


@identity.command()
@click.argument("name", type=NAME, required=False)
def export(name: str | None) -> Result:
    """The change history, in hexadecimal: what others verify, and all of an identity that can leave.

    The private key is never part of it. With the key in a token, this text is the backup: after the
    disk was lost, `identity create NAME --vault URI --identity HEX` takes the identity over again. An
    identity whose token is lost is lost."""
    with local.store() as store:
        record = _wanted(store, name)
    return _encoded(record, {"identifier": record.identifier, "name": record.name})


def _full(record: "IdentityRecord") -> Result:
    from edge.identity.history import ChangeHistory  # noqa: PLC0415  (cryptography)

    history = ChangeHistory.decode(record.history)
    _warn_when_due(record.name, history)
    changes = [_change(history, change) for change in history.changes]
    text = f"Identifier: {record.identifier}"
    for number, change in enumerate(changes):
        pairs = "\n".join(f"    {key}: {_word(value)}" for key, value in change.items())
        text += f"\n  Change[{number}]:\n{pairs}"
    return Result(
        text=text, machine=text, json={"identifier": record.identifier, "changes": changes}
    )


def _warn_when_due(name: str, history: "ChangeHistory") -> None:
    from edge.node.rotation import rotation_due  # noqa: PLC0415

    if time.time() >= rotation_due(history):
        until = time.strftime("%Y-%m-%d", time.gmtime(history.latest.valid_until))
        note(f"the key of {name} may attest until {until}: ockam-edge identity rotate {name}")


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
        records, unsettled = store.identities(), store.unsettled()
    for row in unsettled:
        note(_unsettled(row, known=any(one.name == row.identity for one in records)))
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


def _unsettled(row: "UnsettledKey", *, known: bool) -> str:
    name = row.identity
    if row.what == "making" and not known:
        return (
            f"the making of {name} was interrupted: ockam-edge identity create {name} finishes it,"
            f" ockam-edge identity delete {name} undoes it"
        )
    return (
        f"the key {row.label} of {name} in the vault {row.vault} is not needed any more:"
        " ockam-edge identity repair destroys it"
    )


@identity.command()
def repair() -> Result:
    """Destroy the keys that interrupted rotations and deletions left behind."""
    from edge.node.identities import repair_identities  # noqa: PLC0415

    with local.store() as store:
        before = store.unsettled()
        left = repair_identities(store, local.home(), local.ask)
        known = {record.name for record in store.identities()}
    for row in left:
        note(_unsettled(row, known=row.identity in known))
    gone = [row.label for row in before if row not in left]
    text = "\n".join(done(f"the key {label} is destroyed") for label in gone) or done(
        "nothing to do"
    )
    return Result(text=text, machine="\n".join(gone), json={"destroyed": gone})


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
    """Give an identity a new key, announced by the old one, which is destroyed. Nodes that run with it
    present the new key from now on; what is open stays open."""
    from edge.node.clock import Clock  # noqa: PLC0415
    from edge.node.rotation import rotate_identity  # noqa: PLC0415

    nodes: dict[str, str] = {}
    with local.store() as store:
        store.identity(name)
        confirm(f"Replace the key of identity {name}?", yes=yes)
        now = Clock(floor=store.time_floor()).now()
        made = rotate_identity(
            store, local.home(), name, kind=kind, now=now, ask=local.ask,
            tell=lambda record: nodes.update(_told(store, record.name)),
        )  # fmt: skip
    text = done(f"identity {name} has a new key; it is still {made.identifier}")
    text += "".join(f"\n    node {node}: {state}" for node, state in nodes.items())
    found = {"identifier": made.identifier, "nodes": nodes}
    return Result(text=text, machine=made.identifier, json=found)


def _told(store: "Store", name: str) -> dict[str, str]:
    """Tell the nodes of an identity that it was rotated: what each of them does about it."""
    home = local.home()
    states = {}
    for record in store.nodes():
        if record.identity != name:
            continue
        running = home.running(record.name)
        if running is None:
            states[record.name] = "stopped"
            continue
        states[record.name] = _follow(client.Client(record.name, running.socket))
    return states


def _follow(node: "client.Client") -> str:
    try:
        node.post("/node/identity")
        return "follows"
    except EdgeError as error:
        note(f"node {node.name} cannot follow yet, and tries again by itself: {error}")
        return "waits"
    finally:
        node.close()


@identity.command()
@click.argument("name", type=NAME, required=False)
@click.option("--keep-key", is_flag=True, help="Leave the key in the vault.")
@all_option
@yes_option
def delete(name: str | None, keep_key: bool, all_: bool, yes: bool) -> Result | None:
    """Forget an identity and destroy its key."""
    from edge.node.identities import delete_identity  # noqa: PLC0415

    with local.store() as store:
        begun = {row.identity for row in store.unsettled() if row.what == "making"}
        known = [record.name for record in store.identities()]
        known += sorted(begun.difference(known))
        if not known:
            return Result(json=[])
        names = known if all_ else [name] if name else []
        if not names:
            unnamed("an identity")
            return None
        for one in names:
            if one not in begun:
                store.identity(one)
        what = "Forget" if keep_key else "Forget, and destroy the key of,"
        confirm(f"{what} identity {', '.join(names)}?", yes=yes)
        for one in names:
            delete_identity(store, local.home(), one, keep_key=keep_key, ask=local.ask)
    text = "\n".join(done(f"identity {one} is deleted") for one in names)
    items = [{"name": one} for one in names]
    return Result(text=text, machine="\n".join(names), json=items[0] if len(items) == 1 else items)
