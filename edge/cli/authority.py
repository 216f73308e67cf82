"""`authority`: a node that says who is a member. `project init` makes one together with a hub."""

import click

from edge.cli import fleetinit, local
from edge.cli.arguments import Address, Duration, HostPort, Name
from edge.cli.main import Noun
from edge.cli.output import Result, done, note
from edge.cli.resource import at_option
from edge.errors import ConfigError


@click.group("authority", cls=Noun)
def authority() -> None:
    """Authorities: who vouches for the members of a fleet."""


@authority.command()
@click.option("--project-identifier", "project", required=True, metavar="ID")
@click.option(
    "--trusted-identities", "trusted", required=True, metavar="JSON",
    help='{"I…": {"ockam-role": "enroller"}}: members from the start; enrollers among them.',
)  # fmt: skip
@click.option(
    "-t", "--tcp-listener-address", "listen", type=Address(), default="127.0.0.1:4000",
    help="Where it listens.",
)  # fmt: skip
@click.option("--identity", type=Name("identity"), help="Whose word it is; made if missing.")
@click.option("--vault", metavar="NAME|URI", help="Where the key of a new identity is made.")
@click.option("--credential-key", type=click.Choice(["memory", "vault"]), default="memory")
@click.option("--credential-lifetime", type=Duration(), default="30d")
@click.option("--database", metavar="URL|file:PATH|credential:NAME", help="PostgreSQL.")
@click.option("--no-direct-authentication", is_flag=True, help="Members come by tickets only.")
@click.option("--no-token-enrollment", is_flag=True, help="There are no tickets.")
@click.option("--account-authority", metavar="HEX", help="Whose credentials make project admins.")
@click.option("--enforce-admin-checks", is_flag=True, help="Enrollers are no admins.")
@click.option("--disable-trust-context-id", is_flag=True)
@click.option("-f", "--foreground", is_flag=True, help="Stay attached until the node ends.")
def create(
    project: str,
    trusted: str,
    listen: HostPort,
    identity: str | None,
    vault: str | None,
    credential_key: str,
    credential_lifetime: int,
    database: str | None,
    no_direct_authentication: bool,
    no_token_enrollment: bool,
    account_authority: str | None,
    enforce_admin_checks: bool,
    disable_trust_context_id: bool,
    foreground: bool,
) -> Result:
    """Make an authority and start it, as the node authority-ID."""
    from edge.cli import spawn  # noqa: PLC0415
    from edge.node.trustcontext import read_history  # noqa: PLC0415

    name = f"authority-{project}"
    fleetinit.check_database(database)
    if account_authority:
        read_history(account_authority)
    with local.store() as store:
        owner = fleetinit.identity(store, identity or name, vault)
        settings = {
            "authority": {"history": owner.history.encoded.hex()},
            "serves": {
                "authority": fleetinit.authority_settings(
                    project,
                    trusted=_trusted(trusted),
                    key=credential_key,
                    lifetime=max(credential_lifetime // 1000, 1),
                    database=database,
                    direct=not no_direct_authentication,
                    tokens=not no_token_enrollment,
                    account=account_authority,
                    account_only=enforce_admin_checks,
                    mark=not disable_trust_context_id,
                )
            },
        }
        fleetinit.add_node(store, name, identity or name, str(listen), settings)
    if foreground:
        status = spawn.foreground(local.home(), name, ask=local.ask, exit_on_eof=False)
        raise click.exceptions.Exit(status)
    fleetinit.start(name)
    return Result(
        text=done(f"authority {owner.record.identifier} listens at {listen}, as node {name}")
    )


@authority.command()
@click.argument("file", type=click.Path(dir_okay=False))
@at_option(text="The authority's node, where there are several.")
def backup(file: str, at: str | None) -> Result:
    """Write members, tickets, project and settings to FILE. It cannot sign: see `restore`."""
    from pathlib import Path  # noqa: PLC0415

    from edge.node.backup import back_up  # noqa: PLC0415
    from edge.node.clock import Clock  # noqa: PLC0415

    with local.store() as store:
        now = Clock(floor=store.time_floor()).now()
        node = back_up(store, local.home(), at, Path(file).absolute(), now)
        uri = store.vault(store.identity(node.identity).vault).uri
    if node.settings["serves"]["authority"].get("database"):
        note("members and tickets are in PostgreSQL, and not in this file: use pg_dump for them")
    note(
        "the key is in a token, and not in this file"
        if uri.startswith("pkcs11:")
        else "what opens the vault is not in this file: keep the key file or passphrase of "
        f"{uri.partition('?')[0]} elsewhere"
    )
    return Result(text=done(f"authority {node.name} is in {file}"), machine=file)


@authority.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@click.option("--vault", metavar="URI", help="Where its key is now, if that has moved.")
def restore(file: str, vault: str | None) -> Result:
    """Be the authority of FILE, on this machine, and start it. Its key must be here already: in the
    token; or the key file of its software vault, which no backup has."""
    import time  # noqa: PLC0415
    from pathlib import Path  # noqa: PLC0415

    from edge.node.backup import restore as restored  # noqa: PLC0415

    with local.store() as store:
        made = restored(store, local.home(), Path(file), vault=vault, ask=local.ask)
    then = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(made.made_at))
    note(f"as of {then}: who was removed since is a member again, a ticket used since is not used")
    fleetinit.start(made.node)
    return Result(
        text=done(f"authority {made.authority} runs as node {made.node}"),
        machine=made.node,
        json={"node": made.node, "authority": made.authority, "made_at": made.made_at},
    )


def _trusted(text: str) -> dict[str, dict[str, str]]:
    """The only shape that stock takes, too (05 §1.9)."""
    from edge.authority.rights import unfit  # noqa: PLC0415
    from edge.identity.project import parse_json  # noqa: PLC0415
    from edge.node.fields import identifier  # noqa: PLC0415

    given = parse_json(text, "--trusted-identities")
    if not isinstance(given, dict):
        raise ConfigError('--trusted-identities is an object: {"I…": {"name": "value"}}')
    found: dict[str, dict[str, str]] = {}
    for who, attributes in given.items():
        if not isinstance(attributes, dict) or not all(
            isinstance(value, str) for value in attributes.values()
        ):
            raise ConfigError(f"the attributes of {who} are an object with texts as values")
        reason = unfit(attributes)
        if reason is not None:
            raise ConfigError(reason)
        found[str(identifier(who))] = attributes
    return found
