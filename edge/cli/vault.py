"""`vault`: where private keys live."""

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from edge.cli import local
from edge.cli.arguments import Name
from edge.cli.main import Noun
from edge.cli.output import Result, confirm, done, lines, listing
from edge.cli.resource import all_option, unnamed, yes_option
from edge.errors import ConfigError

if TYPE_CHECKING:
    from edge.node.store import VaultRecord

NAME = Name("vault")


@click.group("vault", cls=Noun)
def vault() -> None:
    """Vaults: where private keys live, a sealed file or a PKCS#11 token."""


@vault.command()
@click.argument("name", type=NAME, default="default")
@click.option("--uri", help="pkcs11:token=…?module-path=…&pin-source=file:…, or software:/path.")
@click.option("--path", type=click.Path(), help="A sealed file, instead of a URI.")
def create(name: str, uri: str | None, path: str | None) -> Result:
    """Give a vault a name."""
    if uri and path:
        raise click.UsageError("--uri and --path exclude each other")
    if path:
        from pathlib import Path  # noqa: PLC0415

        uri = "software:" + quote(str(Path(path).absolute()))
    from edge.node.identities import add_vault  # noqa: PLC0415

    with local.store() as store:
        made = add_vault(store, local.home(), name, uri)
    return Result(text=done(f"vault {made.name}: {made.uri}"), machine=name, json={"name": name})


@vault.command()
@click.argument("name", type=NAME, required=False)
def show(name: str | None) -> Result:
    """One vault: its kind, and where it is. No secret is part of that."""
    with local.store() as store:
        if not store.vaults():
            return Result(text="    there is no vault", json=[])
        record = store.vault(name) if name else store.default_vault()
    if record is None:
        raise ConfigError("which vault?", hint="name one; ockam-edge vault list shows them")
    block = {"name": record.name, "uri": record.uri, "default": "yes" if record.is_default else ""}
    return Result(text=lines(block), machine=record.name, json=_shown(record))


@vault.command("list")
def list_() -> Result:
    """All vaults."""
    with local.store() as store:
        records = store.vaults()
    return listing(
        [_shown(record) for record in records],
        lambda item: f"{item['vault']['name']}: {item['vault']['uri']}",
        "there is no vault",
    )


def _shown(record: "VaultRecord") -> dict[str, Any]:
    scheme, _, rest = record.uri.partition(":")
    path = rest.partition("?")[0]
    kind: dict[str, Any] = {"LocalFileVault": {"path": path, "use_aws_kms": "No"}}
    if scheme == "pkcs11":
        kind = {"Pkcs11Vault": {"token": path}}
    shown = {
        "name": record.name, "uri": record.uri, "vault_type": kind, "is_default": record.is_default,
    }  # fmt: skip
    return {"vault": shown}


@vault.command()
@click.argument("name", type=NAME, required=False)
def seal(name: str | None) -> Result:
    """Make the key with which a vault's token seals other secrets of its identities.

    What was sealed otherwise so far is sealed by it from now on, and the token is needed when a node
    starts. Safe to repeat: a key that is there is tested, and never replaced."""
    from edge.node.sealed import provision  # noqa: PLC0415

    with local.store() as store:
        record = store.vault(name) if name else store.default_vault()
        if record is None:
            raise ConfigError("there is no vault", hint="make one: ockam-edge vault create NAME")
        suite, resealed = provision(store, local.home(), record, local.ask)
    text = done(f"vault {record.name} seals with {suite}")
    if resealed:
        text += f"\n    now sealed by it: secrets of {', '.join(resealed)}"
    shown = {"name": record.name, "suite": suite, "resealed": resealed}
    return Result(text=text, machine=suite, json=shown)


@vault.command()
@click.argument("name", type=NAME, required=False)
@all_option
@yes_option
def delete(name: str | None, all_: bool, yes: bool) -> Result | None:
    """Forget a vault. The file or token with its keys stays where it is."""
    with local.store() as store:
        records = store.vaults()
        if not records:
            return Result(json=[])
        names = [record.name for record in records] if all_ else [name] if name else []
        if not names:
            unnamed("a vault")
            return None
        for one in names:
            store.vault(one)
        confirm(f"Forget vault {', '.join(names)}?", yes=yes)
        for one in names:
            store.remove_vault(one)
    text = "\n".join(done(f"vault {one} is forgotten") for one in names)
    return Result(text=text, machine="\n".join(names), json=_named(names))


def _named(names: list[str]) -> Any:
    items = [{"name": name} for name in names]
    return items[0] if len(items) == 1 else items
