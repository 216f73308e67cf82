"""`project`: a fleet: the authority whose word counts in it, and the hub where its members meet."""

import time
from typing import TYPE_CHECKING, Any

import click

from edge.cli import fleetwork, local
from edge.cli.arguments import Address, Duration, HostPort, Name, Route
from edge.cli.fleetwork import (
    attribute_option,
    enroller_option,
    identity_option,
    project_option,
    relay_option,
)
from edge.cli.main import Noun
from edge.cli.output import Result, confirm, done, listing, note
from edge.cli.resource import yes_option
from edge.errors import ConfigError

if TYPE_CHECKING:
    from edge.authority.client import Client
    from edge.identity.credential import Credential
    from edge.identity.history import ChangeHistory
    from edge.identity.project import Project
    from edge.identity.ticket import Ticket
    from edge.node.clock import Clock
    from edge.node.keys import Identity

NAME = Name("project")
NONE = "there is no project"
MANY_DAYS, MANY_USES = 5 * 86_400, 10
"""A ticket that lives so long and has so many uses is worth a word."""


@click.group("project", cls=Noun)
def project() -> None:
    """Projects: fleets whose members an authority vouches for, and who meet at a hub."""


@project.command()
@click.argument("name", type=NAME)
@click.option(
    "--address", type=Address(), required=True,
    help="Where members reach this machine: HOST:PORT.",
)  # fmt: skip
@click.option(
    "--listen", type=Address(), help="Where it listens; without it, that port on all addresses."
)
@click.option("--vault", metavar="NAME|URI", help="Where the authority's key is made.")
@click.option(
    "--credential-key", type=click.Choice(["memory", "vault"]), default="memory",
    help="Where the key is that signs credentials; that of the identity attests it.",
)  # fmt: skip
@click.option(
    "--database", metavar="URL|file:PATH|credential:NAME",
    help="PostgreSQL for members and tickets; a URL with a password stands in a file.",
)  # fmt: skip
@click.option("--enroller", metavar="NAME", help="The identity that may make tickets first.")
@click.option(
    "--authority-identity", metavar="HEX",
    help="The authority is elsewhere, and this its history: this machine is the hub only.",
)  # fmt: skip
@click.option("--authority-route", type=Route(), help="Where that authority is.")
def init(
    name: str,
    address: HostPort,
    listen: HostPort | None,
    vault: str | None,
    credential_key: str,
    database: str | None,
    enroller: str | None,
    authority_identity: str | None,
    authority_route: str | None,
) -> Result:
    """Make a fleet: its authority, its hub and its first enroller, on this machine."""
    from edge.cli.fleetinit import Plan, make_project  # noqa: PLC0415

    if (authority_identity is None) != (authority_route is None):
        raise click.UsageError("--authority-identity and --authority-route go together")
    if authority_identity is not None and (database or enroller or credential_key == "vault"):
        raise click.UsageError(
            "--database, --enroller and --credential-key are of an authority on this machine"
        )
    plan = Plan(
        name, address, listen, vault, credential_key, database, enroller, authority_identity,
        authority_route,
    )  # fmt: skip
    made = make_project(plan)
    if authority_identity is None:
        said = (
            done(f"project {name}: its authority and hub are node {name}, at {address}"),
            f"    a ticket for a device: ockam-edge project ticket --relay {name}-1",
        )
    else:
        said = (
            done(f"project {name}: its hub is node {name}, at {address}"),
            f"    an enroller makes it a member: ockam-edge project-member add {made.identifier}",
        )
    file = f"    the project file:      ockam-edge project show {name} > {name}.json"
    return Result(text="\n".join((*said, file)), machine=name, json=made.model)


@project.command()
@attribute_option
@click.option("--expires-in", type=Duration(), default="10m", help="How long it lives.")
@click.option("--usage-count", type=click.IntRange(1), default=1, help="How often it can be used.")
@relay_option
@enroller_option
@click.option("--tls", is_flag=True, hidden=True)
@click.option("--hex", "as_hex", is_flag=True, help="In hexadecimal digits.")
@click.option("--legacy", is_flag=True, help="As release 0.139 writes it.")
@click.option("--skip-controller-call", is_flag=True, hidden=True)
@project_option
@identity_option
@click.option("--timeout", type=Duration(), default="30s")
def ticket(
    attributes: tuple[str, ...],
    expires_in: int,
    usage_count: int,
    relay: str | None,
    enroller: bool,
    tls: bool,
    as_hex: bool,
    legacy: bool,
    skip_controller_call: bool,
    project: str | None,
    identity: str | None,
    timeout: int,
) -> Result:
    """Make an enrollment ticket: whoever redeems it is a member. It is a secret until then."""
    from edge.identity.ticket import Ticket  # noqa: PLC0415
    from edge.node.trustcontext import keep_project  # noqa: PLC0415

    given = fleetwork.read_attributes(attributes, relay=relay, enroller=enroller, tls=tls)
    lifetime = max(expires_in // 1000, 1)
    if lifetime >= MANY_DAYS and usage_count >= MANY_USES:
        note(f"warning: this ticket lives {lifetime // 86_400} days and has {usage_count} uses")

    async def ask(client: "Client") -> "tuple[bytes, ChangeHistory]":
        return await client.create_token(given, lifetime, usage_count), client.history

    with local.store() as store:
        context = fleetwork.context_of(store, project)
        assert context.project is not None
        who = fleetwork.identity_of(store, identity)
        code, authority = fleetwork.converse(store, context, who, ask, timeout=timeout / 1000)
        joined = fleetwork.followed(context.project, authority)
        if joined != context.project:
            keep_project(store, joined)
    return _ticket_result(Ticket(code, joined), as_hex=as_hex, legacy=legacy)


def _ticket_result(made: "Ticket", *, as_hex: bool, legacy: bool) -> Result:
    if legacy:
        return Result(text=made.legacy_hex, machine=made.legacy_hex, json=made.legacy_model)
    text = made.hex if as_hex else made.text
    return Result(text=text, machine=text, json=made.model)


@project.command()
@click.argument("ticket", required=False)
@project_option
@identity_option
@click.option("--skip-credential-issue", is_flag=True, hidden=True)
@click.option("--timeout", type=Duration(), default="240s")
def enroll(
    ticket: str | None,
    project: str | None,
    identity: str | None,
    skip_credential_issue: bool,
    timeout: int,
) -> Result:
    """Become a member by a TICKET: its text, a file, a URL, or - for standard input; without one,
    $ENROLLMENT_TICKET, or the systemd credential `ticket`. Twice is harmless."""
    text = fleetwork.read_ticket(ticket)
    return _enrolled(*join(text, project, identity, timeout, fetch=not skip_credential_issue))


def join(
    text: str | None, project: str | None, identity: str | None, timeout: int, *, fetch: bool = True
) -> "tuple[Identity, Project, Credential | None]":
    """Redeem the text of a ticket, within `timeout` milliseconds, and remember its project."""
    from edge.node.clock import Clock  # noqa: PLC0415
    from edge.node.trustcontext import keep_project, of_project  # noqa: PLC0415

    with local.store() as store:
        code, joining = _joining(store, text, project)
        who = fleetwork.identity_of(store, identity, make=True)
        credential, authority = fleetwork.converse(
            store,
            of_project(joining),
            who,
            lambda client: _redeemed(client, code, fetch=fetch),
            timeout=timeout / 1000,
        )
        joining = fleetwork.followed(joining, authority)
        if credential is not None:
            _check_credential(credential, joining, who, Clock(floor=store.time_floor()))
        keep_project(store, joining)
    return who, joining, credential


def _joining(store: Any, text: str | None, name: str | None) -> tuple[bytes | None, "Project"]:
    """The code, and the project of the ticket; without a ticket a project that is known already."""
    from edge.identity.ticket import read  # noqa: PLC0415
    from edge.node.trustcontext import check_authority, find_project  # noqa: PLC0415

    if text is None:
        return None, find_project(store, name)
    found = read(text)
    check_authority(store, found.project)
    return found.code, found.project


async def _redeemed(
    client: "Client", code: bytes | None, *, fetch: bool
) -> "tuple[Credential | None, ChangeHistory]":
    """Our credential, and the authority's history as it is now."""
    from edge.authority.client import AlreadyMember  # noqa: PLC0415

    if code is not None:
        try:
            await client.redeem(code)
        except AlreadyMember:
            note("this identity is a member already; the ticket was not used")
    return await client.credential() if fetch else None, client.history


def _check_credential(
    credential: "Credential", joining: "Project", who: "Identity", clock: "Clock"
) -> None:
    from edge.identity.known import Known  # noqa: PLC0415

    known = Known()
    known.learn(joining.authority)
    credential.verify(
        who.history.identifier,
        (joining.authority.identifier,),
        known,
        clock.now(),
        allow_future=clock.unset(),
    )


def _enrolled(who: "Identity", joining: "Project", credential: "Credential | None") -> Result:
    record = who.record
    shown = None if credential is None else fleetwork.credential_json(credential)
    text = done(f"{record.identifier} ({record.name}) is a member of project {joining.name}")
    if shown is not None:
        until = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(shown["expires_at"]))
        said = ", ".join(f"{name}={value}" for name, value in sorted(shown["attributes"].items()))
        text += f"\n    the authority says until {until}: {said or 'a member'}"
    return Result(
        text=text,
        json={
            "identity": {
                "identifier": record.identifier,
                "name": record.name,
                "vault_name": record.vault,
                "is_default": record.is_default,
            },
            "project_name": joining.name,
            "credential": shown,
        },
    )


@project.command("import")
@click.option("--project-file", type=click.Path(exists=True, dir_okay=False), required=True)
def import_(project_file: str) -> Result:
    """Remember a project from its file."""
    from pathlib import Path  # noqa: PLC0415

    from edge.identity.project import Project  # noqa: PLC0415
    from edge.node.trustcontext import keep_project  # noqa: PLC0415

    found = Project.parse(Path(project_file).read_text(encoding="utf-8", errors="replace"))
    with local.store() as store:
        keep_project(store, found)
    return Result(text=done(f"Successfully imported project {found.name}"))


def _model(found: "Project") -> dict[str, Any]:
    """As stock shows a project."""
    egress = [_host_port(found.access_route), _host_port(found.authority_route)]
    return found.model | {
        "access_address": egress[0],
        "authority_access_address": egress[1],
        "egress_allow_list": list(dict.fromkeys(egress)),
    }


def _host_port(route: Any) -> str:
    (_, host), (_, port) = route.components[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@project.command()
@click.argument("name", type=NAME, required=False)
def show(name: str | None) -> Result:
    """The project file, which stock imports too."""
    import json  # noqa: PLC0415

    from edge.node.trustcontext import find_project  # noqa: PLC0415

    with local.store() as store:
        if not store.projects():
            return Result(text=f"    {NONE}", json=[])
        found = find_project(store, name)
    return Result(text=json.dumps(_model(found), indent=2, sort_keys=True), json=_model(found))


@project.command("list")
def list_() -> Result:
    """All projects."""
    from edge.node.trustcontext import read_project  # noqa: PLC0415

    with local.store() as store:
        records = store.projects()
    return listing(
        [_model(read_project(record)) for record in records],
        lambda item: f"{item['name']}: {item['access_route']}",
        NONE,
    )


@project.command()
@click.argument("name", type=NAME, required=False)
def default(name: str | None) -> Result:
    """Show the default project, or make NAME the default."""
    with local.store() as store:
        if name:
            store.make_default_project(name)
            return Result(text=done(f"{name} is the default project"), machine=name)
        record = store.default_project()
    if record is None:
        raise ConfigError(NONE)
    return Result(text=record.name)


@project.command()
@click.argument("name", type=NAME)
@yes_option
def delete(name: str, yes: bool) -> Result:
    """Forget a project. Its members, its authority and its hub stay what they are."""
    with local.store() as store:
        store.project(name)
        confirm(f"Forget project {name}?", yes=yes)
        store.remove_project(name)
    return Result(text=done(f"project {name} is forgotten"), machine=name, json={"name": name})
