"""`project-member`: the members of a project, as its authority knows them. For enrollers."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edge.cli import fleetwork, local
from edge.cli.arguments import Duration, Identifier
from edge.cli.fleetwork import attribute_option, enroller_option, identity_option, relay_option
from edge.cli.main import Noun
from edge.cli.output import Result, confirm, done, lines, listing
from edge.cli.resource import unnamed, yes_option

if TYPE_CHECKING:
    from edge.authority.client import Client
    from edge.identity.authority_api import MemberEntry

T = TypeVar("T")
project_option = click.option(
    "-p", "--project-name", "--project", "project", metavar="NAME",
    help="The project; without it, the default one.",
)  # fmt: skip
timeout_option = click.option("--timeout", type=Duration(), default="30s")
WHO = Identifier()
NONE = "there is no member"


@click.group("project-member", cls=Noun)
def project_member() -> None:
    """Members of a project: added, looked at and removed by an enroller."""


def _ask(
    work: "Callable[[Client], Awaitable[T]]",
    project: str | None,
    identity: str | None,
    timeout: int,
) -> tuple[str, T]:
    """The name of the project, and what its authority says."""
    with local.store() as store:
        context = fleetwork.context_of(store, project)
        assert context.project is not None
        who = fleetwork.identity_of(store, identity)
        found = fleetwork.converse(store, context, who, work, timeout=timeout / 1000)
        return context.project.name, found


@project_member.command()
@click.argument("member", type=WHO)
@attribute_option
@relay_option
@enroller_option
@project_option
@identity_option
@timeout_option
def add(
    member: str,
    attributes: tuple[str, ...],
    relay: str | None,
    enroller: bool,
    project: str | None,
    identity: str | None,
    timeout: int,
) -> Result:
    """Make an identity a member, or replace what is said of it."""
    given = fleetwork.read_attributes(attributes, relay=relay, enroller=enroller)
    name, _ = _ask(
        lambda client: client.add_member(_parsed(member), given), project, identity, timeout
    )
    return Result(
        text=done(f"{member} is a member of project {name}"),
        json={"project": name, "identifier": member, "attributes": given},
    )


@project_member.command("list-ids")
@project_option
@identity_option
@timeout_option
def list_ids(project: str | None, identity: str | None, timeout: int) -> Result:
    """The identifiers of all members."""
    _, found = _ask(lambda client: client.member_ids(), project, identity, timeout)
    items = [{"identifier": one} for one in sorted(map(str, found))]
    return listing(items, lambda item: str(item["identifier"]), NONE)


@project_member.command("list")
@click.option("--enrollers", "--enroller", "enrollers", is_flag=True, help="Enrollers only.")
@project_option
@identity_option
@timeout_option
def list_(enrollers: bool, project: str | None, identity: str | None, timeout: int) -> Result:
    """All members, and what the authority says of them."""
    from edge.authority.rights import is_enroller  # noqa: PLC0415

    _, found = _ask(lambda client: client.members(), project, identity, timeout)
    items = [
        _item(str(who), entry)
        for who, entry in sorted(found.items())
        if not enrollers or is_enroller(entry.attributes)
    ]
    return listing(items, _line, NONE)


@project_member.command()
@click.argument("member", type=WHO, required=False)
@project_option
@identity_option
@timeout_option
def show(member: str | None, project: str | None, identity: str | None, timeout: int) -> Result:
    """One member; without MEMBER, this identity."""
    with local.store() as store:
        wanted = member or fleetwork.identity_of(store, identity).record.identifier
    _, entry = _ask(lambda client: client.member(_parsed(wanted)), project, identity, timeout)
    item = _item(wanted, entry)
    said = item["attributes"]
    text = lines({"Member": wanted, **said["attributes"], "Added by": said["attested_by"]})
    return Result(text=text, json=item)


@project_member.command()
@click.argument("member", type=WHO, required=False)
@click.option("--all", "all_", is_flag=True, help="All whom you may remove, but yourself.")
@project_option
@identity_option
@timeout_option
@yes_option
def delete(
    member: str | None,
    all_: bool,
    project: str | None,
    identity: str | None,
    timeout: int,
    yes: bool,
) -> Result | None:
    """Remove a member: it gets no new credential, and hubs of ours cut it off within seconds."""
    if all_:
        confirm("Remove all members?", yes=yes)
        return _removed(*_ask(_delete_all, project, identity, timeout))
    if member is None:
        unnamed("a member")
        return None
    name, _ = _ask(lambda client: client.delete_member(_parsed(member)), project, identity, timeout)
    return _removed(name, [member])


async def _delete_all(client: "Client") -> list[str]:
    """Who is no member any more: the authority does not say, and leaves those whom it must."""
    before = set(await client.member_ids())
    await client.delete_members()
    return sorted(map(str, before - set(await client.member_ids())))


def _removed(project: str, members: list[str]) -> Result:
    text = "\n".join(done(f"{one} is no member of project {project} any more") for one in members)
    return Result(
        text=text or "    nobody was removed", json={"project": project, "identifiers": members}
    )


def _parsed(text: str) -> Any:
    from edge.identity import history  # noqa: PLC0415

    return history.Identifier.parse(text)


def _item(identifier: str, entry: "MemberEntry") -> dict[str, Any]:
    attributes = {
        name.decode("utf-8", "replace"): value.decode("utf-8", "replace")
        for name, value in entry.attributes.items()
    }
    by = None if entry.added_by is None else str(entry.added_by)
    return {
        "identifier": identifier,
        "attributes": {
            "attributes": attributes,
            "added_at": entry.added_at,
            "expires_at": entry.expires_at,
            "attested_by": by,
        },
    }


def _line(item: dict[str, Any]) -> str:
    said = item["attributes"]["attributes"]
    return f"{item['identifier']}: " + (
        ", ".join(f"{name}={value}" for name, value in sorted(said.items())) or "a member"
    )
